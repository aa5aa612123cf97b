//! The new spool of a repair: made beside its place under another name, and put there when it is complete.
//!
//! Its messages are all in its journal, and sled is made by its first opening: a process in which sled met damaged files should not trust sled with
//! new ones.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use tidespool_core::SpoolId;

use crate::Config;
use crate::checkpoint::{Ledger, LedgerFile};
use crate::inspect::Inspector;
use crate::journal::{Change, Pool, PoolEvents, PoolSettings, Segments, Writer, payload_crc};
use crate::storage::{OsStorage, Storage};
use crate::tiered::Directory;

/// Says that a directory is a repair's own, and may be deleted by the next one. Locked while one is under way.
const MARKER: &str = "unfinished-repair";
/// Bytes that are written and synced together.
const BATCH_BYTES: usize = 4 << 20;
/// The most segments that a batch and a message after it may need.
const SEGMENTS_AHEAD: usize = 3;

pub(super) struct Target {
    /// Where the new spool is to be in the end.
    place: PathBuf,
    work: PathBuf,
    storage: Arc<dyn Storage>,
    directory: Directory,
    segments: Arc<Segments>,
    writer: Writer,
    queued: usize,
    messages: u64,
    _marker: File,
}

/// Nothing is prewritten here.
struct Nobody;

impl PoolEvents for Nobody {
    fn segment_free(&self) {}
    fn prewrite_failed(&self, _error: &io::Error) {}
}

impl Target {
    /// Begins a new spool that will be in `place`. `source` is not to be touched.
    pub(super) fn begin(source: &Path, place: &Path) -> Result<Self> {
        let place = check_place(source, place)?;
        let mut name = place.file_name().map_or_else(OsString::new, OsString::from);
        name.push(".partial");
        let work = place.with_file_name(name);
        let marker = take_work(&work)?;
        Self::make(place, work.clone(), marker).inspect_err(|_| drop(fs::remove_dir_all(&work)))
    }

    fn make(place: PathBuf, work: PathBuf, marker: File) -> Result<Self> {
        let directory = Directory::open_or_create(&work.join("spool"))?;
        let storage: Arc<dyn Storage> = Arc::new(OsStorage);
        let dir = directory.path.join("journal");
        storage.create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let settings = PoolSettings {
            dir,
            spool: directory.spool,
            segment_size: Config::new(&place).segment_size,
            // Its first opening files it, whatever its capacity will be.
            capacity: u64::MAX,
            keep_free: 0,
            next_slot: 0,
        };
        let pool = Pool::new(storage.clone(), settings, Arc::new(Nobody));
        let segments = Arc::new(Segments::new(Arc::new(pool), directory.spool, 1));
        let writer = Writer::new(segments.clone(), 1);
        Ok(Self {
            place,
            work,
            storage,
            directory,
            segments,
            writer,
            queued: 0,
            messages: 0,
            _marker: marker,
        })
    }

    /// A place for what is needed only while the repair runs.
    pub(super) fn scratch(&self) -> PathBuf {
        self.work.join("sled")
    }

    /// Writes a message. It is durable after [`Target::finish`].
    pub(super) fn put(&mut self, id: SpoolId, data: Vec<u8>) -> Result<()> {
        if self.queued > 0 && self.queued + data.len() > BATCH_BYTES {
            self.write()?;
        }
        self.queued += data.len() + 64;
        self.messages += 1;
        let crc = payload_crc(&data);
        self.writer.append(id, Change::Put(Arc::new(data.into_boxed_slice()), crc));
        if self.queued > BATCH_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let doing = || format!("writing {}", self.directory.path.display());
        let pool = self.segments.pool();
        while pool.free() < SEGMENTS_AHEAD {
            pool.give(pool.allocate(pool.segment_size()).with_context(doing)?);
        }
        self.writer.write().with_context(doing)?;
        let job = self.writer.take_sync();
        self.writer.end_sync(job.run()).with_context(doing)?;
        self.queued = 0;
        Ok(())
    }

    /// Makes everything durable, reads it back, and puts it in its place.
    pub(super) fn finish(mut self) -> Result<()> {
        self.write()?;
        let last = self.writer.last_seq();
        let ledger = Ledger {
            durable_seq: last,
            next_generation: self.segments.reserved_generation(),
            ..Ledger::default()
        };
        LedgerFile::new(self.storage.clone(), &self.directory.path).write(&ledger)?;
        self.directory.finish_creation()?;
        let Self { place, work, directory, messages, .. } = self;
        let spool = directory.path.clone();
        // Its lock has to be free for whoever looks at it.
        drop(directory);
        let found = Inspector::open(&spool)?.verify()?;
        if found.messages != messages || !found.damage.is_empty() {
            bail!("{} of {messages} messages could be read back from {}", found.messages, spool.display());
        }
        let doing = || format!("moving the new spool to {}", place.display());
        fs::rename(&spool, &place).with_context(doing)?;
        sync_parent(&place).with_context(doing)?;
        // The new spool is complete: what is left of the work may be deleted by hand, too.
        if let Err(error) = fs::remove_dir_all(&work) {
            tracing::warn!(path = %work.display(), %error, "what a repair left could not be deleted");
        }
        Ok(())
    }

    /// Gives up.
    pub(super) fn discard(self) {
        drop(fs::remove_dir_all(&self.work));
    }
}

/// The place as a whole path, if a new spool may be made there.
fn check_place(source: &Path, place: &Path) -> Result<PathBuf> {
    let shown = place.display();
    let doing = || format!("looking at {shown}");
    let plain: PathBuf = place.components().collect();
    let (parent, name) = (plain.parent(), plain.file_name());
    let Some((parent, name)) = parent.zip(name) else {
        bail!("{shown} names no directory that could be made: give a path that ends in a name");
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let parent = fs::canonicalize(parent)
        .with_context(|| format!("looking at the parent of {shown}, which must exist"))?;
    let whole = parent.join(name);
    let source = fs::canonicalize(source).with_context(|| format!("looking at {}", source.display()))?;
    if whole.starts_with(&source) {
        bail!("{shown} is inside the damaged spool, in which nothing is changed: give another place");
    }
    match fs::symlink_metadata(&whole) {
        Ok(found) if !found.is_dir() => bail!("{shown} is there and is no directory: give another place"),
        Ok(_) if fs::read_dir(&whole).with_context(doing)?.next().is_some() => {
            bail!("{shown} is not empty: give a directory that is new or empty")
        }
        Ok(_) => Ok(whole),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(whole),
        Err(error) => Err(error).with_context(doing),
    }
}

/// Makes the directory to work in, after what an interrupted repair left there is deleted.
fn take_work(work: &Path) -> Result<File> {
    let shown = work.display();
    let marker = work.join(MARKER);
    let lock = |file: &File| flock(file, FlockOperation::NonBlockingLockExclusive);
    if work.symlink_metadata().is_ok() {
        let Ok(left) = File::open(&marker) else {
            bail!("{shown} is in the way, and was not left by a repair: move it elsewhere");
        };
        if lock(&left).is_err() {
            bail!("another repair into {} is under way", work.with_extension("").display());
        }
        fs::remove_dir_all(work)
            .with_context(|| format!("deleting {shown}, which an interrupted repair left"))?;
    }
    let make = || -> io::Result<File> {
        DirBuilder::new().mode(0o700).create(work)?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&marker)?;
        lock(&file)?;
        file.sync_all()?;
        Ok(file)
    };
    make().with_context(|| format!("creating {shown}"))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}
