//! One file for each message, like the local disk spool of KumoMTA. Most mail servers work this
//! way, so it is the baseline.

use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use anyhow::{Context, Result};
use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tempfile::NamedTempFile;
use tidespool_core::{Closed, Locked, NotFound, Spool, SpoolCallerDeadlineExceeded, SpoolEntry, SpoolId};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// A spool of plain files, for comparison only: it has no checksums and does not sync directories.
///
/// * A message is written to a temporary file in `new/` and renamed to `data/x/y/<id>`. With
///   `force_sync` the file is synced (`fdatasync`) before the rename.
/// * All system calls run on tokio's blocking threads.
#[derive(Debug)]
pub struct LocalDiskSpool {
    root: PathBuf,
    runtime: Handle,
    closed: AtomicBool,
    /// Read-locked to create a directory and put a message into it, write-locked to remove empty
    /// ones.
    directories: Arc<RwLock<()>>,
    /// Owned, so that `shutdown` can end the tasks.
    enumerations: Mutex<JoinSet<()>>,
    /// Held open: closing the file releases the lock.
    _lock: std::fs::File,
}

impl LocalDiskSpool {
    /// Opens the spool in `root`, creates it if it is missing, and deletes files that a crash left
    /// incomplete.
    ///
    /// # Errors
    ///
    /// [`Locked`], or an I/O error that names the path.
    pub async fn open(root: &Path) -> Result<Self> {
        let root = root.to_owned();
        let runtime = Handle::current();
        let lock = runtime.spawn_blocking({
            let root = root.clone();
            move || prepare(&root)
        });
        let lock = lock.await??;
        Ok(Self {
            root,
            runtime,
            closed: AtomicBool::new(false),
            directories: Arc::default(),
            enumerations: Mutex::new(JoinSet::new()),
            _lock: lock,
        })
    }

    /// Runs `work` on a thread that may block.
    async fn blocking<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        self.runtime.spawn_blocking(work).await?
    }

    fn data(&self) -> PathBuf {
        self.root.join("data")
    }
}

fn prepare(root: &Path) -> Result<std::fs::File> {
    for dir in ["new", "data"] {
        let dir = root.join(dir);
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let path = root.join("lock");
    let lock = std::fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            return Err(Locked { path: root.to_owned(), pid: None }.into());
        }
        Err(std::fs::TryLockError::Error(err)) => {
            return Err(err).with_context(|| format!("locking {}", path.display()));
        }
    }
    for half_written in list(&root.join("new"))? {
        std::fs::remove_file(&half_written)
            .with_context(|| format!("removing {}", half_written.display()))?;
    }
    Ok(lock)
}

/// Returns `data/x/y/<id>`, in one of 256 directories, which a warm-up soon creates. The hash
/// covers the whole id: ids minted in a row differ in few bytes.
fn place(root: &Path, id: SpoolId) -> PathBuf {
    let folded = id.as_bytes().iter().fold(0, |sum: u8, byte| sum ^ byte);
    root.join(format!("data/{:x}/{:x}/{id}", folded >> 4, folded & 0xf))
}

/// The arguments of one `store`.
struct Write {
    root: PathBuf,
    directories: Arc<RwLock<()>>,
    id: SpoolId,
    data: Arc<Box<[u8]>>,
    sync: bool,
    deadline: Option<Instant>,
}

impl Write {
    fn run(self) -> Result<()> {
        self.in_time()?;
        let Self { root, id, .. } = &self;
        let mut file = NamedTempFile::new_in(root.join("new"))
            .with_context(|| format!("creating a temporary file for {id} in {}", root.display()))?;
        file.write_all(&self.data).with_context(|| format!("writing {}", file.path().display()))?;
        if self.sync {
            file.as_file().sync_data().with_context(|| format!("syncing {}", file.path().display()))?;
        }
        // After the rename an error would leave the message behind.
        self.in_time()?;
        let path = place(root, *id);
        rename(file, &path, &self.directories).with_context(|| format!("renaming to {}", path.display()))
    }

    fn in_time(&self) -> Result<(), SpoolCallerDeadlineExceeded> {
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(SpoolCallerDeadlineExceeded),
            _ => Ok(()),
        }
    }
}

/// The directory nearly always exists, so it is created only if the rename fails.
fn rename(file: NamedTempFile, path: &Path, directories: &RwLock<()>) -> io::Result<()> {
    let file = match file.persist(path) {
        Ok(_) => return Ok(()),
        Err(err) if err.error.kind() == ErrorKind::NotFound => err.file,
        Err(err) => return Err(err.error),
    };
    let _no_cleanup = directories.read().unwrap_or_else(PoisonError::into_inner);
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    file.persist(path).map(drop).map_err(|err| err.error)
}

/// Lists a directory; empty if it was removed meanwhile or is a stray file.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(err) if matches!(err.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(err) => Err(err),
    }
}

/// Sends every message below `data`, directory by directory. At most one listing of each level is
/// in memory.
async fn walk(data: PathBuf, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()> {
    let listed = |dir: PathBuf| tokio::task::spawn_blocking(move || list(&dir));
    for first in listed(data).await?? {
        for second in listed(first).await?? {
            for path in listed(second).await?? {
                let name = path.file_name().and_then(|name| name.to_str());
                let Some(id) = name.and_then(|name| name.parse::<SpoolId>().ok()) else { continue };
                if id.created().is_some_and(|created| created >= start_time) {
                    continue;
                }
                let data = match tokio::task::spawn_blocking(move || std::fs::read(path)).await? {
                    Ok(data) => data,
                    // Removed after it was listed.
                    Err(err) if err.kind() == ErrorKind::NotFound => continue,
                    Err(err) => return Err(err).with_context(|| format!("reading message {id}")),
                };
                if sender.send(SpoolEntry::Item { id, data }).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

#[async_trait]
impl Spool for LocalDiskSpool {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        let path = place(&self.root, id);
        self.blocking(move || match std::fs::read(&path) {
            Err(err) if err.kind() == ErrorKind::NotFound => Err(NotFound { id }.into()),
            read => read.with_context(|| format!("reading {}", path.display())),
        })
        .await
    }

    async fn remove(&self, id: SpoolId) -> Result<()> {
        let path = place(&self.root, id);
        self.blocking(move || match std::fs::remove_file(&path) {
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.with_context(|| format!("removing {}", path.display())),
        })
        .await
    }

    async fn store(
        &self,
        id: SpoolId,
        data: Arc<Box<[u8]>>,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Closed.into());
        }
        let (root, directories) = (self.root.clone(), Arc::clone(&self.directories));
        let write = Write { root, directories, id, data, sync: force_sync, deadline };
        self.blocking(move || write.run()).await
    }

    fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Closed.into());
        }
        let data = self.data();
        let mut enumerations = self.enumerations.lock().unwrap_or_else(PoisonError::into_inner);
        while enumerations.try_join_next().is_some() {}
        enumerations.spawn_on(
            async move {
                if let Err(err) = walk(data, sender, start_time).await {
                    tracing::error!("the enumeration is not complete: {err:#}");
                }
            },
            &self.runtime,
        );
        Ok(())
    }

    /// Removes empty directories.
    async fn cleanup(&self) -> Result<()> {
        let (data, directories) = (self.data(), Arc::clone(&self.directories));
        self.blocking(move || {
            for first in list(&data)? {
                let _no_new_ones = directories.write().unwrap_or_else(PoisonError::into_inner);
                for second in list(&first)? {
                    // Removing fails unless the directory is empty, so no check is needed.
                    drop(std::fs::remove_dir(second));
                }
                drop(std::fs::remove_dir(first));
            }
            Ok(())
        })
        .await
    }

    async fn shutdown(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        let mut enumerations =
            std::mem::take(&mut *self.enumerations.lock().unwrap_or_else(PoisonError::into_inner));
        enumerations.shutdown().await;
        Ok(())
    }

    /// The spool keeps nothing in memory.
    async fn advise_low_memory(&self) -> Result<isize> {
        Ok(0)
    }
}

#[cfg(test)]
mod tests;
