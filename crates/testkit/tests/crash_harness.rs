//! The `kill -9` harness on a simple spool: one file per message, passed to the operating system
//! before the acknowledgement. Without a fault it passes; each fault must be detected.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tidespool_core::{NotFound, Spool, SpoolCallerDeadlineExceeded, SpoolEntry, SpoolId};
use tidespool_testkit::crash::{Moment, Report, Stock, Verdict, Victim, judge, take_stock, work};
use tidespool_testkit::oracle::{DurabilityLevel, Promise, Violation};

/// Environment variables of the child: the directory and the fault.
const CHILD_DIR: &str = "TIDESPOOL_HARNESS_DIR";
const CHILD_FAULT: &str = "TIDESPOOL_HARNESS_FAULT";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The store returns first, and the file is written 20 ms later.
    AnswersFirst,
    /// The message is written in place, in two parts.
    WritesInPlace,
    /// Files of removed messages are not removed.
    RemovesInMemoryOnly,
    /// A store that fails has already written the message.
    FailsTooLate,
}

const FAULTS: [Fault; 5] =
    [Fault::None, Fault::AnswersFirst, Fault::WritesInPlace, Fault::RemovesInMemoryOnly, Fault::FailsTooLate];

struct FolderSpool {
    dir: PathBuf,
    fault: Fault,
    removed: std::sync::Mutex<std::collections::BTreeSet<SpoolId>>,
}

impl FolderSpool {
    fn open(dir: &Path, fault: Fault) -> Self {
        Self { dir: dir.to_owned(), fault, removed: std::sync::Mutex::default() }
    }

    fn path(&self, id: SpoolId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    fn write(&self, id: SpoolId, data: &[u8]) -> Result<()> {
        if self.fault == Fault::WritesInPlace {
            let half = data.len() / 2;
            std::fs::write(self.path(id), &data[..half])?;
            std::thread::sleep(Duration::from_millis(1));
            std::fs::write(self.path(id), data)?;
            return Ok(());
        }
        let young = self.dir.join(format!("{id}.young"));
        std::fs::write(&young, data)?;
        std::fs::rename(young, self.path(id))?;
        Ok(())
    }
}

#[async_trait]
impl Spool for FolderSpool {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        match std::fs::read(self.path(id)) {
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Err(NotFound { id }.into()),
            result => Ok(result?),
        }
    }

    async fn remove(&self, id: SpoolId) -> Result<()> {
        if self.fault == Fault::RemovesInMemoryOnly {
            self.removed.lock().unwrap().insert(id);
            return Ok(());
        }
        match std::fs::remove_file(self.path(id)) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(err.into()),
            _ => Ok(()),
        }
    }

    async fn store(
        &self,
        id: SpoolId,
        data: Arc<Box<[u8]>>,
        _force_sync: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        if self.fault == Fault::FailsTooLate {
            self.write(id, &data)?;
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(SpoolCallerDeadlineExceeded.into());
        }
        if self.fault == Fault::AnswersFirst {
            let (dir, fault) = (self.dir.clone(), self.fault);
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                drop(Self::open(&dir, fault).write(id, &data));
            });
            return Ok(());
        }
        self.write(id, &data)
    }

    fn enumerate(&self, sender: Sender<SpoolEntry>, _start_time: DateTime<Utc>) -> Result<()> {
        let mut entries = Vec::new();
        for file in std::fs::read_dir(&self.dir)? {
            let file = file?;
            if let Ok(id) = file.file_name().to_string_lossy().parse::<SpoolId>() {
                entries.push(SpoolEntry::Item { id, data: std::fs::read(file.path())? });
            }
        }
        tokio::spawn(async move {
            for entry in entries {
                if sender.send(entry).await.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    async fn cleanup(&self) -> Result<()> {
        Ok(())
    }

    async fn shutdown(&self) -> Result<()> {
        Ok(())
    }

    async fn advise_low_memory(&self) -> Result<isize> {
        Ok(0)
    }
}

/// Not a test: the process that is killed.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let fault = std::env::var(CHILD_FAULT).unwrap();
    let fault = FAULTS.into_iter().find(|known| format!("{known:?}") == fault).unwrap();
    let report = Arc::new(Report::on_stdout().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work(Arc::new(FolderSpool::open(Path::new(&dir), fault)), 7, 1, report));
}

fn kill_one(fault: Fault, moment: Moment) -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command.env(CHILD_DIR, dir.path()).env(CHILD_FAULT, format!("{fault:?}"));
    let victim = Victim::start(command).unwrap();
    let log = victim.kill_at(moment).unwrap();
    let promise = Promise {
        level: DurabilityLevel::Kill,
        dirty_expire: Duration::from_millis(1),
        slack: Duration::from_millis(20),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let after = runtime.block_on(take_stock(&FolderSpool::open(dir.path(), Fault::None), &log)).unwrap();
    judge(promise, &Stock::new(), &log, &after)
}

#[test]
fn a_correct_spool_passes() {
    let verdict = kill_one(Fault::None, Moment::AfterDone(500));
    assert_eq!(verdict.violations, [], "{:?}", verdict.coverage);
    assert!(verdict.coverage.had_to_survive > 20, "{:?}", verdict.coverage);
    assert!(verdict.coverage.came_back > 20, "{:?}", verdict.coverage);
}

/// Runs up to ten kills until the fault is detected. A single run may not show it: messages without
/// a result at the kill may be present or absent. On a slow machine a removal counts as young for
/// longer, so each run is longer than the one before.
fn assert_detected(fault: Fault, is_it: impl Fn(&Violation) -> bool) {
    let moments = (1..=10).map(|n| Moment::AfterOpened(Duration::from_millis(250 * n)));
    let detected = moments.into_iter().any(|moment| kill_one(fault, moment).violations.iter().any(&is_it));
    assert!(detected, "{fault:?} was not detected in ten kills");
}

#[test]
fn an_acknowledgement_before_the_write_is_detected() {
    assert_detected(Fault::AnswersFirst, |violation| matches!(violation, Violation::DurableLost(..)));
}

#[test]
fn a_torn_message_is_detected() {
    assert_detected(Fault::WritesInPlace, |violation| matches!(violation, Violation::WrongBytes(..)));
}

#[test]
fn an_undone_removal_is_detected() {
    assert_detected(Fault::RemovesInMemoryOnly, |violation| matches!(violation, Violation::Resurrected(..)));
}

#[test]
fn a_failed_store_that_was_written_is_detected() {
    assert_detected(Fault::FailsTooLate, |violation| matches!(violation, Violation::LeftBehind(..)));
}
