//! The sweep has to be able to fail: each of these spools and disks breaks one promise, and is caught.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tidespool::TieredSpool;
use tidespool::storage::{FileState, OpenMode, Storage, StorageFile};
use tidespool_core::{Spool, SpoolEntry, SpoolId};
use tidespool_testkit::faults::{Call, Strike};
use tidespool_testkit::sweep::{Kind, Point, Ran, Subject, count, run_one};

/// How a file is synced.
type Sync = fn(&dyn StorageFile, &Path) -> io::Result<()>;

/// A disk with another way to sync.
#[derive(Debug)]
struct Syncing(Arc<dyn Storage>, Sync);

impl Syncing {
    fn subject(sync: Sync) -> Subject {
        Subject { disk: Arc::new(move |disk| Arc::new(Self(disk.storage(), sync))), ..Subject::default() }
    }
}

impl Storage for Syncing {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(SyncingFile(self.0.open(path, mode)?, path.into(), self.1)))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.0.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }
}

#[derive(Debug)]
struct SyncingFile(Arc<dyn StorageFile>, Box<Path>, Sync);

#[deny(clippy::missing_trait_methods)]
impl StorageFile for SyncingFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn is_empty(&self) -> io::Result<bool> {
        self.0.is_empty()
    }

    fn state(&self) -> io::Result<FileState> {
        self.0.state()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.descriptor()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        self.0.read_vectored_at(bufs, offset)
    }

    fn read_in_memory_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        self.0.read_in_memory_at(bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.0.write_vectored_at(bufs, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }

    fn forget_cached(&self) {
        self.0.forget_cached();
    }

    fn sync_data(&self) -> io::Result<()> {
        (self.2)(&*self.0, &self.1)
    }
}

/// A spool that keeps some of its promises.
struct Broken {
    spool: Arc<TieredSpool>,
    breaks: Breaks,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Breaks {
    /// Of the synced stores it makes only those of messages that are larger than this.
    SmallOnesAreDropped(usize),
    TheGateStaysOpen,
}

impl Broken {
    fn subject(breaks: Breaks) -> Subject {
        Subject { spool: Arc::new(move |spool| Arc::new(Self { spool, breaks })), ..Subject::default() }
    }
}

#[async_trait]
impl Spool for Broken {
    async fn load(&self, id: SpoolId) -> anyhow::Result<Vec<u8>> {
        self.spool.load(id).await
    }

    async fn remove(&self, id: SpoolId) -> anyhow::Result<()> {
        self.spool.remove(id).await
    }

    async fn store(
        &self,
        id: SpoolId,
        data: Arc<Box<[u8]>>,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> anyhow::Result<()> {
        match self.breaks {
            Breaks::SmallOnesAreDropped(len) if force_sync && data.len() <= len => Ok(()),
            _ => self.spool.store(id, data, force_sync, deadline).await,
        }
    }

    fn enumerate(
        &self,
        sender: async_channel::Sender<SpoolEntry>,
        start_time: DateTime<Utc>,
    ) -> anyhow::Result<()> {
        self.spool.enumerate(sender, start_time)
    }

    async fn cleanup(&self) -> anyhow::Result<()> {
        self.spool.cleanup().await
    }

    async fn shutdown(&self) -> anyhow::Result<()> {
        self.spool.shutdown().await
    }

    async fn advise_low_memory(&self) -> anyhow::Result<isize> {
        self.spool.advise_low_memory().await
    }

    async fn compact(&self) -> anyhow::Result<()> {
        self.spool.compact().await
    }

    fn unhealthy_reason(&self) -> Option<&'static str> {
        match self.breaks {
            Breaks::TheGateStaysOpen => None,
            Breaks::SmallOnesAreDropped(_) => self.spool.unhealthy_reason(),
        }
    }
}

/// What is waited for here never comes. Everything else must come within this time, also on a busy
/// machine.
const SHORT: Duration = Duration::from_secs(15);

fn assert_caught(ran: &Ran, by: &str) {
    let caught = ran.violations.iter().any(|violation| violation.contains(by));
    assert!(caught, "not caught by {by:?}: {ran:?}");
}

/// The first run of this kind whose fault strikes the journal's own `call`.
async fn run_that_strikes(subject: &Subject, kind: Kind, call: Call) -> Ran {
    for number in 1.. {
        let ran = run_one(subject, Point { number, kind }).await;
        let Some(Strike { name, thread, call: struck, .. }) = &ran.struck else { break };
        let is_journals = name.ends_with(".seg") && thread == "tidespool-commit";
        if is_journals && *struck == call {
            return ran;
        }
    }
    panic!("no {call:?} of the journal was struck");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_fault_all_is_well() {
    let ran = count(&Subject::default()).await;
    assert_eq!(ran.violations, [""; 0]);
    assert!(ran.calls > 300 && ran.writes > 80, "{ran:?}");
}

/// Acknowledged before the sync: the power cut takes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_lies_about_its_syncs_is_caught() {
    let lying = Syncing::subject(|file, path| match path.extension() {
        Some(extension) if extension == "seg" => Ok(()),
        _ => file.sync_data(),
    });
    assert_caught(&count(&lying).await, "recovery reports damage");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_is_tried_again_and_called_good_is_caught() {
    let retrying = Syncing::subject(|file, _| file.sync_data().or_else(|_| file.sync_data()));
    let retrying = Subject { patience: SHORT, ..retrying };
    let ran = run_that_strikes(&retrying, Kind::EioOnce, Call::Sync).await;
    assert_caught(&ran, "synced again after a failed sync");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_acknowledges_and_drops_is_caught() {
    let dropping = Broken::subject(Breaks::SmallOnesAreDropped(500));
    assert_caught(&count(&dropping).await, "is not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_stays_open_is_caught() {
    let open = Broken::subject(Breaks::TheGateStaysOpen);
    let open = Subject { patience: SHORT, ..open };
    let ran = run_that_strikes(&open, Kind::Torn, Call::Write).await;
    assert_caught(&ran, "the gate stayed open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_panics_is_caught() {
    let panicking = Syncing::subject(|file, _| {
        let thread = std::thread::current();
        assert_ne!(thread.name(), Some("tidespool-filer"), "as the test wants it");
        file.sync_data()
    });
    assert_caught(&count(&panicking).await, "a thread panicked");
}
