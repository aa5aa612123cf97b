//! The new spool of a repair. It is made under another name, and moved to its place when it is
//! complete.
//!
//! All its messages are in its journal. Its first opening makes the index.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Config;
use crate::checkpoint::{Manifest, ManifestFile};
use crate::directory::{Directory, SpoolNames};
use crate::inspect::Inspector;
use crate::journal::{JournalChange, NoPoolEvents, Pool, PoolSettings, Segments, Writer, payload_crc};
use crate::message_id::MessageId;
use crate::storage::{FileLock, OsStorage, Storage, create_private_dir, is_ignored_name, open_private};
use anyhow::{Context as _, Result, bail};

/// The file that marks a repair's work directory, which the next repair may delete. Locked while
/// the repair runs.
const MARKER: &str = "unfinished-repair";
/// Bytes of a batch, which is written and synced together.
const BATCH_BYTES: usize = 4 << 20;
/// The most segments that a batch and the message after it can need.
const SEGMENTS_AHEAD: usize = 3;

/// The work directory inside of a new spool's directory that can't be replaced.
const INSIDE: &str = ".tidespool-repair.partial";
/// The entries of a new spool, in the order in which they are moved. Only the last entry makes the
/// directory a spool.
const PARTS: [&str; 4] = ["LOCK", "journal", "manifest", "FORMAT"];

pub(super) struct Target {
    /// The final directory of the new spool.
    place: PathBuf,
    /// `place` can't be replaced, because it has entries of others or is a mount point.
    inside: bool,
    work: PathBuf,
    storage: Arc<dyn Storage>,
    directory: Directory,
    segments: Arc<Segments>,
    writer: Writer,
    queued: usize,
    messages: u64,
    _marker: FileLock,
}

impl Target {
    /// Begins a new spool that will be in `place`, which must be outside of `source`.
    pub(super) fn begin(source: &Path, place: &Path) -> Result<Self> {
        let TargetPlace { path: place, inside } = check_place(source, place)?;
        let work = if inside {
            place.join(INSIDE)
        } else {
            let mut name = place.file_name().map_or_else(OsString::new, OsString::from);
            name.push(".partial");
            place.with_file_name(name)
        };
        let marker = take_work(&work, &place, inside)?;
        Self::make(place, inside, work.clone(), marker).inspect_err(|_| drop(fs::remove_dir_all(&work)))
    }

    fn make(place: PathBuf, inside: bool, work: PathBuf, marker: FileLock) -> Result<Self> {
        let directory = Directory::open_or_create(&work.join("spool"))?;
        let storage: Arc<dyn Storage> = Arc::new(OsStorage);
        let dir = directory.path.join("journal");
        storage.create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        // The first opening checkpoints the segments, whatever the capacity is then.
        let capacity = u64::MAX;
        let settings = PoolSettings::new(dir, directory.spool, Config::new(&place).segment_size, capacity);
        let pool = Pool::new(storage.clone(), settings, Arc::new(NoPoolEvents));
        let segments = Arc::new(Segments::new(Arc::new(pool), directory.spool, 1));
        let writer = Writer::new(segments.clone(), 1);
        Ok(Self {
            place,
            inside,
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

    /// Adds a message, which is durable after [`Target::finish`].
    pub(super) fn put(&mut self, id: MessageId, data: Vec<u8>) -> Result<()> {
        if self.queued > 0 && self.queued + data.len() > BATCH_BYTES {
            self.write()?;
        }
        self.queued += data.len() + 96;
        self.messages += 1;
        let crc = payload_crc(&data);
        self.writer.append(id, JournalChange::Put(Arc::new(data.into_boxed_slice()), crc));
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

    /// Makes all messages durable, reads them back, and moves the spool to its place. `names` has
    /// the spool of each message.
    pub(super) fn finish(mut self, names: SpoolNames) -> Result<()> {
        self.write()?;
        let last = self.writer.last_seq();
        let manifest = Manifest {
            durable_seq: last,
            next_generation: self.segments.reserved_generation(),
            ..Manifest::default()
        };
        ManifestFile::new(self.storage.clone(), &self.directory.path).write(&manifest)?;
        self.directory.set_new_names(names)?;
        self.directory.finish_creation()?;
        let Self { place, inside, work, directory, messages, .. } = self;
        let spool = directory.path.clone();
        // Releases the lock, which `Inspector` takes.
        drop(directory);
        let found = Inspector::open(&spool)?.verify()?;
        if found.messages != messages || !found.damage.is_empty() {
            bail!("{} of {messages} messages could be read back from {}", found.messages, spool.display());
        }
        let doing = || format!("moving the new spool to {}", place.display());
        match inside {
            true => move_parts(&spool, &place),
            false => fs::rename(&spool, &place).and_then(|()| sync_parent(&place)),
        }
        .with_context(doing)?;
        // Not an error: the new spool is complete, and the work directory can be deleted by hand.
        if let Err(error) = fs::remove_dir_all(&work) {
            tracing::warn!(path = %work.display(), %error, "the work directory of a repair could not be deleted");
        }
        Ok(())
    }

    /// Deletes the unfinished spool.
    pub(super) fn discard(self) {
        drop(fs::remove_dir_all(&self.work));
    }
}

/// Where a new spool may be made.
struct TargetPlace {
    /// The full path.
    path: PathBuf,
    /// `path` is a directory that can't be replaced.
    inside: bool,
}

/// Checks that a new spool may be made in `place`.
fn check_place(source: &Path, place: &Path) -> Result<TargetPlace> {
    let shown = place.display();
    let doing = || format!("checking {shown}");
    let plain: PathBuf = place.components().collect();
    let (parent, name) = (plain.parent(), plain.file_name());
    let Some((parent, name)) = parent.zip(name) else {
        bail!("{shown} can't be the new directory: give a path that ends in a name");
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let parent = fs::canonicalize(parent)
        .with_context(|| format!("checking the parent of {shown}, which must exist"))?;
    let path = parent.join(name);
    if path.starts_with(source) {
        bail!("{shown} is inside the damaged spool, which repair does not change: give another path");
    }
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.is_dir() => bail!("{shown} is not a directory: give another path"),
        Ok(found) => {
            let names = fs::read_dir(&path).with_context(doing)?;
            let names: io::Result<Vec<OsString>> = names.map(|entry| Ok(entry?.file_name())).collect();
            let names = names.with_context(doing)?;
            let is_interrupted = names.iter().any(|name| name == INSIDE);
            let is_own = |name: &str| is_interrupted && (name == INSIDE || PARTS[..3].contains(&name));
            let is_theirs = |name: &OsString| {
                let name = name.to_string_lossy();
                !is_ignored_name(&name) && !is_own(&name)
            };
            if names.iter().any(is_theirs) {
                bail!("{shown} is not empty: give a directory that is new or empty");
            }
            let is_mount_point = found.dev() != fs::metadata(&parent).with_context(doing)?.dev();
            Ok(TargetPlace { path, inside: is_mount_point || !names.is_empty() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(TargetPlace { path, inside: false }),
        Err(error) => Err(error).with_context(doing),
    }
}

/// Removes the parts that an interrupted repair moved. The caller holds the marker of that repair,
/// and [`check_place`] accepts parts only beside the work directory of an interrupted repair.
fn remove_parts(place: &Path) -> Result<()> {
    for part in PARTS {
        let path = place.join(part);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("deleting {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Moves a complete spool into a directory and leaves the other entries of that directory alone.
fn move_parts(spool: &Path, place: &Path) -> io::Result<()> {
    let (format, others) = (PARTS[3], &PARTS[..3]);
    for part in others {
        fs::rename(spool.join(part), place.join(part))?;
    }
    // `FORMAT` makes the directory a spool, so it is moved when the other parts are durable.
    File::open(place)?.sync_all()?;
    fs::rename(spool.join(format), place.join(format))?;
    File::open(place)?.sync_all()
}

/// Makes the work directory. Deletes the work directory of an interrupted repair first.
fn take_work(work: &Path, place: &Path, inside: bool) -> Result<FileLock> {
    let shown = work.display();
    let marker = work.join(MARKER);
    let under_way = || format!("another repair into {} is under way", place.display());
    if work.symlink_metadata().is_ok() {
        let Ok(left) = File::open(&marker) else {
            bail!("{shown} exists, and was not left by a repair: move it elsewhere");
        };
        // The lock is held until the work directory is deleted. So no other repair can lock a
        // marker that is about to be deleted.
        let Ok(_left) = FileLock::try_lock(left).with_context(|| format!("locking {}", marker.display()))?
        else {
            bail!(under_way());
        };
        if inside {
            // Before the marker is deleted, because it proves that a repair made the parts.
            remove_parts(place)?;
        }
        fs::remove_dir_all(work)
            .with_context(|| format!("deleting {shown}, which an interrupted repair left"))?;
    }
    let make = || -> io::Result<Result<FileLock, File>> {
        create_private_dir(work)?;
        let file = open_private(OpenOptions::new().write(true).truncate(true), &marker)?;
        file.sync_all()?;
        FileLock::try_lock(file)
    };
    match make().with_context(|| format!("creating {shown}"))? {
        Ok(locked) => Ok(locked),
        Err(_) => bail!(under_way()),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}
