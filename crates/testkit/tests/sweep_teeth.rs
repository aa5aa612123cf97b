//! Tests of the sweep: each of these spools and disks breaks one promise, and the sweep must detect
//! it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tidespool::storage::{FileState, OpenMode, Space, Storage, StorageFile};
use tidespool_core::{Spool, SpoolEntry, SpoolId};
use tidespool_testkit::TwoSpools;
use tidespool_testkit::faults::{Call, Strike};
use tidespool_testkit::sweep::{Kind, Point, Ran, Subject, count, run_one};

/// Syncs a file.
type Sync = fn(&dyn StorageFile, &Path) -> io::Result<()>;

/// A disk with a different sync.
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

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.0.space(path)
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

/// A spool that breaks one promise.
struct Broken {
    spool: Arc<TwoSpools>,
    breaks: Breaks,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Breaks {
    /// Synced stores of messages up to this size are dropped.
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

/// A patience for waits that never succeed. All other waits must end within it, also on a busy
/// machine.
const SHORT: Duration = Duration::from_secs(15);

fn assert_detected(ran: &Ran, by: &str) {
    let detected = ran.violations.iter().any(|violation| violation.contains(by));
    assert!(detected, "not detected by {by:?}: {ran:?}");
}

/// Returns the first run of this kind whose fault struck `call` of the journal by the committer
/// thread.
async fn run_that_strikes(subject: &Subject, kind: Kind, call: Call) -> Ran {
    for number in 1.. {
        let ran = run_one(subject, Point { number, kind }).await;
        let Some(Strike { name, thread, call: struck, .. }) = &ran.struck else { break };
        let is_journals = name.ends_with(".seg") && thread == "tide-commit";
        if is_journals && *struck == call {
            return ran;
        }
    }
    panic!("no {call:?} of the journal was struck");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_a_fault_has_no_violation() {
    let ran = count(&Subject::default()).await;
    assert_eq!(ran.violations, [""; 0]);
    assert!(ran.calls > 300 && ran.writes > 80, "{ran:?}");
}

/// Messages are acknowledged without a sync, so the power cut reverts them.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_skips_syncs_is_detected() {
    let lying = Syncing::subject(|file, path| match path.extension() {
        Some(extension) if extension == "seg" => Ok(()),
        _ => file.sync_data(),
    });
    assert_detected(&count(&lying).await, "recovery reports damage");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_is_retried_after_a_failure_is_detected() {
    let retrying = Syncing::subject(|file, _| file.sync_data().or_else(|_| file.sync_data()));
    let retrying = Subject { patience: SHORT, ..retrying };
    let ran = run_that_strikes(&retrying, Kind::EioOnce, Call::Sync).await;
    assert_detected(&ran, "synced again after a failed sync");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_acknowledges_and_drops_is_detected() {
    let dropping = Broken::subject(Breaks::SmallOnesAreDropped(500));
    let ran = count(&dropping).await;
    assert_detected(&ran, "is not found");
    assert_detected(&ran, "after a restart: I1: durable message");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_stays_open_is_detected() {
    let open = Broken::subject(Breaks::TheGateStaysOpen);
    let open = Subject { patience: SHORT, ..open };
    let ran = run_that_strikes(&open, Kind::Torn, Call::Write).await;
    assert_detected(&ran, "the gate stayed open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_panics_is_detected() {
    let panicking = Syncing::subject(|file, _| {
        let thread = std::thread::current();
        assert_ne!(thread.name(), Some("tide-checkpoint"), "the panic that the sweep must detect");
        file.sync_data()
    });
    assert_detected(&count(&panicking).await, "a thread panicked");
}
