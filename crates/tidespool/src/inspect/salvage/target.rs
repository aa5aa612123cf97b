//! The new spool of a repair: made beside its place under another name, and put there when it is
//! complete.
//!
//! Its messages are all in its journal. Its first opening makes the index.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use tidespool_core::SpoolId;

use crate::Config;
use crate::checkpoint::{Manifest, ManifestFile};
use crate::inspect::Inspector;
use crate::journal::{JournalChange, NoPoolEvents, Pool, PoolSettings, Segments, Writer, payload_crc};
use crate::storage::{FileLock, OsStorage, Storage, create_private_dir, is_bystander, open_private};
use crate::tiered::Directory;

/// Says that a directory is a repair's own, and may be deleted by the next one. Locked while one is under way.
const MARKER: &str = "unfinished-repair";
/// Bytes that are written and synced together.
const BATCH_BYTES: usize = 4 << 20;
/// The most segments that a batch and a message after it may need.
const SEGMENTS_AHEAD: usize = 3;

/// The directory to work in, where the new spool's own directory can't be replaced.
const INSIDE: &str = ".tidespool-repair.partial";
/// What a new spool consists of, in the order in which it is moved. With the last one it is a
/// spool.
const PARTS: [&str; 4] = ["LOCK", "journal", "manifest", "FORMAT"];

pub(super) struct Target {
    /// Where the new spool is to be in the end.
    place: PathBuf,
    /// `place` holds what others have left there, or is a mount point: it can't be replaced.
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
    /// Begins a new spool that will be in `place`. `source` is not to be touched.
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
        let settings = PoolSettings {
            dir,
            spool: directory.spool,
            segment_size: Config::new(&place).segment_size,
            // Its first opening files it, whatever its capacity will be.
            capacity: u64::MAX,
            keep_free: 0,
            next_slot: 0,
        };
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

    /// Writes a message. It is durable after [`Target::finish`].
    pub(super) fn put(&mut self, id: SpoolId, data: Vec<u8>) -> Result<()> {
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

    /// Makes everything durable, reads it back, and puts it in its place.
    pub(super) fn finish(mut self) -> Result<()> {
        self.write()?;
        let last = self.writer.last_seq();
        let manifest = Manifest {
            durable_seq: last,
            next_generation: self.segments.reserved_generation(),
            ..Manifest::default()
        };
        ManifestFile::new(self.storage.clone(), &self.directory.path).write(&manifest)?;
        self.directory.finish_creation()?;
        let Self { place, inside, work, directory, messages, .. } = self;
        let spool = directory.path.clone();
        // Its lock has to be free for whoever looks at it.
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

/// Where a new spool may be made.
struct TargetPlace {
    /// Whole.
    path: PathBuf,
    /// It is a directory that can't be replaced by another.
    inside: bool,
}

/// The place, if a new spool may be made there.
fn check_place(source: &Path, place: &Path) -> Result<TargetPlace> {
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
    let path = parent.join(name);
    if path.starts_with(source) {
        bail!("{shown} is inside the damaged spool, in which nothing is changed: give another place");
    }
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.is_dir() => bail!("{shown} is there and is no directory: give another place"),
        Ok(found) => {
            let names = fs::read_dir(&path).with_context(doing)?;
            let names: io::Result<Vec<OsString>> = names.map(|entry| Ok(entry?.file_name())).collect();
            let names = names.with_context(doing)?;
            let is_interrupted = names.iter().any(|name| name == INSIDE);
            let is_own = |name: &str| is_interrupted && (name == INSIDE || PARTS[..3].contains(&name));
            let is_theirs = |name: &OsString| {
                let name = name.to_string_lossy();
                !is_bystander(&name) && !is_own(&name)
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

/// Removes what a repair that was interrupted while it moved the parts has left. The caller holds
/// the marker, and [`check_place`] found no part where there was none.
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

/// Moves a complete spool into a directory that stays as it is otherwise.
fn move_parts(spool: &Path, place: &Path) -> io::Result<()> {
    let (format, others) = (PARTS[3], &PARTS[..3]);
    for part in others {
        fs::rename(spool.join(part), place.join(part))?;
    }
    // Only when all of it is there, it is a spool.
    File::open(place)?.sync_all()?;
    fs::rename(spool.join(format), place.join(format))?;
    File::open(place)?.sync_all()
}

/// Makes the directory to work in, after what an interrupted repair left there is deleted.
fn take_work(work: &Path, place: &Path, inside: bool) -> Result<FileLock> {
    let shown = work.display();
    let marker = work.join(MARKER);
    let under_way = || format!("another repair into {} is under way", place.display());
    if work.symlink_metadata().is_ok() {
        let Ok(left) = File::open(&marker) else {
            bail!("{shown} is in the way, and was not left by a repair: move it elsewhere");
        };
        // Unlocked with the file, and not before: no other repair can take a marker that is about
        // to be deleted.
        let Ok(_left) = FileLock::try_lock(left).with_context(|| format!("locking {}", marker.display()))?
        else {
            bail!(under_way());
        };
        if inside {
            // First, because the marker proves that they are a repair's.
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
