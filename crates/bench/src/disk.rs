//! The disk below the engine: free space, usage of the engine, and the cost of a bare sync.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytesize::ByteSize;
use tidespool::storage::{OsStorage, Storage as _};

use crate::figures::ratio;
use crate::latency::Latency;
use crate::segments::prewritten;

/// Free space that is left for others.
const SPARE: u64 = 256 << 20;

/// The size of the file that is synced.
const SYNCED_FILE: usize = 4 << 20;

const PAGE: usize = 4_096;

/// The interval between samples of disk usage. It is longer if a sample takes more than a twentieth
/// of it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Returns an error unless `bytes` and some spare space are free under `dir`.
pub(crate) fn require(dir: &Path, bytes: u64) -> Result<()> {
    let space = OsStorage.space(dir).with_context(|| format!("looking at the disk of {}", dir.display()))?;
    let needed = bytes.saturating_add(SPARE);
    if !space.has_room_for(needed) {
        bail!(
            "the disk of {} has {} free and this workload may need {}: give another --dir, or fewer bytes or messages",
            dir.display(),
            ByteSize(space.free_bytes),
            ByteSize(needed),
        );
    }
    Ok(())
}

/// Calls `visit` for each file and directory below `dir`, except those that are removed meanwhile.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, &std::fs::Metadata) -> io::Result<()>) -> io::Result<()> {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Some(entries) = unless_gone(std::fs::read_dir(&dir))? else { continue };
        for entry in entries {
            let Some(entry) = unless_gone(entry)? else { continue };
            let path = entry.path();
            let Some(metadata) = unless_gone(std::fs::symlink_metadata(&path))? else { continue };
            visit(&path, &metadata)?;
            if metadata.is_dir() {
                dirs.push(path);
            }
        }
    }
    Ok(())
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

/// Returns the bytes of all blocks allocated below `dir`.
pub(crate) fn allocated(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    let walked = walk(dir, &mut |_, metadata| {
        bytes += metadata.blocks() * 512;
        Ok(())
    });
    walked.with_context(|| format!("looking at the files in {}", dir.display()))?;
    Ok(bytes)
}

/// Drops all files below `dir` from the page cache. The kernel keeps pages that are mapped.
pub(crate) async fn drop_page_cache(dir: &Path) -> Result<()> {
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || {
        // The kernel drops only clean pages.
        File::open(&dir)
            .and_then(|dir| Ok(rustix::fs::syncfs(dir)?))
            .and_then(|()| {
                walk(&dir, &mut |path, metadata| {
                    if metadata.is_file()
                        && let Some(file) = unless_gone(File::open(path))?
                    {
                        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
                    }
                    Ok(())
                })
            })
            .with_context(|| format!("dropping the page cache of {}", dir.display()))
    })
    .await?
}

/// Syncs of a preallocated file: the lower bound of a durable store with one caller.
pub(crate) struct BareSync {
    file: File,
    region: Vec<u8>,
    position: usize,
    latency: Latency,
}

impl BareSync {
    /// Each sync covers `len` bytes, rounded up to whole pages. Blocks.
    pub(crate) fn create(dir: &Path, len: usize) -> Result<Self> {
        let path = dir.join("bare-sync");
        let region = vec![0x5a; len.next_multiple_of(PAGE)];
        let file = prewritten(&path, SYNCED_FILE.max(region.len()))
            .with_context(|| format!("prewriting {}", path.display()))?;
        Ok(Self { file, region, position: 0, latency: Latency::new()? })
    }

    /// Syncs up to 300 times, for about two seconds at most. Blocks.
    pub(crate) fn measure(mut self) -> Result<Self> {
        let begun = Instant::now();
        for _ in 0..300 {
            self.sync().context("syncing a prewritten file")?;
            if begun.elapsed() > Duration::from_secs(2) {
                break;
            }
        }
        Ok(self)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.position + self.region.len() > SYNCED_FILE {
            self.position = 0;
        }
        std::os::unix::fs::FileExt::write_all_at(&self.file, &self.region, self.position as u64)?;
        self.position += self.region.len();
        let begun = Instant::now();
        rustix::fs::fdatasync(&self.file)?;
        self.latency.record(begun.elapsed());
        Ok(())
    }

    pub(crate) fn p50_us(&self) -> f64 {
        self.latency.quantile_us(0.5)
    }
}

/// Disk usage while it was watched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Use {
    pub(crate) samples: u64,
    pub(crate) peak_bytes: u64,
    /// The highest (usage − allowance) / live bytes, while the live bytes were at least a hundredth
    /// of their maximum.
    pub(crate) peak_over_live: f64,
    /// The highest usage − (allowance + 1.5 × live bytes). Negative if it was always less.
    pub(crate) over_promise_bytes: i64,
}

/// Samples the blocks allocated in a directory on a thread of its own, until it is finished or
/// dropped.
pub(crate) struct DiskWatch {
    thread: JoinHandle<Result<()>>,
    seen: Arc<Mutex<Use>>,
    stop: Sender<()>,
}

impl DiskWatch {
    /// `live` is the number of live payload bytes. `allowance` is the usage allowed in addition.
    pub(crate) fn start(dir: PathBuf, live: Arc<AtomicU64>, allowance: u64) -> Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let seen = Arc::new(Mutex::new(Use::new()));
        let noted = Arc::clone(&seen);
        let thread = std::thread::Builder::new()
            .name("disk-watch".to_owned())
            .spawn(move || {
                let mut most_live = 0;
                loop {
                    let begun = Instant::now();
                    let before = live.load(Ordering::Relaxed);
                    let bytes = allocated(&dir)?;
                    // The crash log of a spool has a fixed size.
                    let log =
                        std::fs::metadata(dir.join("spool/crash-log")).map_or(0, |log| log.blocks() * 512);
                    let allowance = allowance.saturating_add(log);
                    // The sample may or may not include messages that were stored or removed
                    // meanwhile.
                    let live = before.max(live.load(Ordering::Relaxed));
                    most_live = live.max(most_live);
                    let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                    noted.add(bytes, live, most_live, allowance);
                    drop(noted);
                    let pause = LOOK_EVERY.max(begun.elapsed() * 20);
                    if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                        return Ok(());
                    }
                }
            })
            .context("starting the thread that watches the disk")?;
        Ok(Self { thread, seen, stop })
    }

    pub(crate) fn so_far(&self) -> Use {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the thread. Blocks for one sample.
    pub(crate) fn finish(self) -> Result<Use> {
        drop(self.stop);
        self.thread.join().map_err(|_| anyhow!("the thread that watches the disk panicked"))??;
        Ok(*self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Use {
    fn new() -> Self {
        Self { samples: 0, peak_bytes: 0, peak_over_live: 0.0, over_promise_bytes: i64::MIN }
    }

    fn add(&mut self, bytes: u64, live: u64, most_live: u64, allowance: u64) {
        self.samples += 1;
        self.peak_bytes = self.peak_bytes.max(bytes);
        let promised = live.saturating_add(live / 2).saturating_add(allowance);
        let over = i64::try_from(i128::from(bytes) - i128::from(promised)).unwrap_or(i64::MAX);
        self.over_promise_bytes = self.over_promise_bytes.max(over);
        if live > 0 && live >= most_live / 100 {
            let over_live = ratio(bytes.saturating_sub(allowance), live);
            self.peak_over_live = self.peak_over_live.max(over_live);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_disk_space_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        require(dir.path(), 0).unwrap();
        let err = require(dir.path(), 1 << 60).unwrap_err().to_string();
        assert!(err.contains(dir.path().to_str().unwrap()) && err.contains("1.0 EiB"), "{err}");
        assert!(require(&dir.path().join("missing"), 0).is_err());
    }

    #[tokio::test]
    async fn allocated_blocks_are_counted_at_every_depth() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        let before = allocated(dir.path()).unwrap();
        std::fs::write(deep.join("file"), vec![1; 1 << 20]).unwrap();
        File::open(deep.join("file")).unwrap().sync_all().unwrap();
        let grown = allocated(dir.path()).unwrap() - before;
        assert!((1 << 20..1 << 21).contains(&grown), "{grown}");
        drop_page_cache(dir.path()).await.unwrap();
        assert_eq!(std::fs::read(deep.join("file")).unwrap(), vec![1; 1 << 20]);
        assert!(allocated(&dir.path().join("missing")).unwrap() == 0);
    }

    #[test]
    fn a_bare_sync_is_timed() {
        let dir = tempfile::tempdir().unwrap();
        let sync = BareSync::create(dir.path(), 5_000).unwrap().measure().unwrap();
        assert!(sync.region.len() == 8_192 && sync.latency.count() > 0 && sync.p50_us() > 0.0);
    }

    #[test]
    fn the_promise_is_kept_or_not() {
        let mut seen = Use::new();
        seen.add(1_100, 500, 1_000, 100);
        // 1 100 − (1.5 × 500 + 100)
        assert_eq!((seen.over_promise_bytes, seen.peak_bytes), (250, 1_100));
        assert!((seen.peak_over_live - 2.0).abs() < 1e-9);
        seen.add(50, 0, 1_000, 100);
        seen.add(150, 9, 1_000, 100);
        assert_eq!((seen.over_promise_bytes, seen.samples), (250, 3));
        assert!((seen.peak_over_live - 2.0).abs() < 1e-9, "almost nothing was live");
        let mut kept = Use::new();
        kept.add(600, 500, 500, 100);
        assert_eq!(kept.over_promise_bytes, -250);
    }

    #[test]
    fn a_watch_samples_the_files_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), vec![1; 1 << 20]).unwrap();
        File::open(dir.path().join("file")).unwrap().sync_all().unwrap();
        let watch = DiskWatch::start(dir.path().to_owned(), Arc::new(AtomicU64::new(1 << 19)), 0).unwrap();
        let seen = watch.finish().unwrap();
        assert!(seen.samples >= 1 && seen.peak_bytes >= 1 << 20 && seen.peak_over_live >= 2.0, "{seen:?}");
    }
}
