//! The running threads of the spool, and `shutdown`.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use parking_lot::Mutex;
use tidespool_core::Closed;
use tidespool_pressure::Relief;

use super::threads::{Starter, Thread, names};
use crate::checkpoint::{Checkpointer, Manifest, ManifestError, ManifestFile};
use crate::directory::Directory;
use crate::index::DiskIndex;
use crate::tiered::commit::Committed;
use crate::tiered::state::{Shared, Stop};

/// Maximum number of concurrent enumerations. A server needs one, at its start.
const MAX_ENUMERATIONS: usize = 64;

/// The context of the error if an enumeration can't start.
const STARTING: &str = "starting an enumeration";

/// Minimum time for threads that do not hang to end, however short `shutdown_timeout` is.
const GRACE: Duration = Duration::from_secs(1);

/// The running threads, and the values that must outlive them.
pub(in crate::tiered) struct Workers {
    running: Mutex<Option<Running>>,
    enumerations: Mutex<Vec<Thread<()>>>,
    /// The error of the shutdown, for later calls. Locked during the shutdown.
    ended: Mutex<Option<String>>,
    starter: Starter,
}

pub(in crate::tiered) struct Running {
    pub(in crate::tiered) committer: Thread<Committed>,
    /// Ends with the committer.
    pub(in crate::tiered) syncer: Thread<()>,
    /// Ends after the committer: while the committer hangs, the timer enforces the deadlines of
    /// waiting stores.
    pub(in crate::tiered) timer: Thread<()>,
    pub(in crate::tiered) checkpointer: Thread<Checkpointer>,
    pub(in crate::tiered) others: Vec<Thread<()>>,
    /// Keeps the relief alive: the monitor has only a weak pointer to it.
    pub(in crate::tiered) _relief: Arc<dyn Relief>,
    /// Holds the lock until everything else has ended.
    pub(in crate::tiered) directory: Arc<Directory>,
}

/// The deadline of each part of a shutdown. A part that hangs takes no time from later parts.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// When the committer begins nothing more.
    drained: Instant,
    /// When the committer has ended.
    committed: Instant,
    /// When all other threads have ended.
    joined: Instant,
    /// When the last manifest is written, the index is closed, and its files are fingerprinted.
    closed: Instant,
}

impl Times {
    /// The total is `timeout`. If an eighth of it is less than twice [`GRACE`], the total is longer
    /// by the difference.
    fn of(began: Instant, timeout: Duration) -> Self {
        let committed = began + timeout / 8 * 7;
        let part = (timeout / 16).max(GRACE);
        Self {
            drained: began + timeout / 4 * 3,
            committed,
            joined: committed + part,
            closed: committed + part * 2,
        }
    }
}

impl Workers {
    pub(in crate::tiered) fn new(running: Running, starter: Starter) -> Self {
        Self {
            running: Mutex::new(Some(running)),
            enumerations: Mutex::default(),
            ended: Mutex::default(),
            starter,
        }
    }

    /// Starts a thread for an enumeration.
    pub(in crate::tiered) fn enumerate(&self, run: impl FnOnce() + Send + 'static) -> Result<()> {
        // A shutdown that begins now waits for this lock, and then ends the enumeration.
        let running = self.running.lock();
        let Some(workers) = &*running else { return Err(Closed.into()) };
        let mut enumerations = self.enumerations.lock();
        enumerations.retain(|thread| !thread.is_finished());
        if enumerations.len() >= MAX_ENUMERATIONS {
            let what = format!("{MAX_ENUMERATIONS} enumerations are running: wait for one to end");
            return Err(io::Error::new(io::ErrorKind::WouldBlock, what)).context(STARTING);
        }
        enumerations.push(self.starter.start(names::ENUMERATE, &workers.directory, run).context(STARTING)?);
        Ok(())
    }

    /// Returns the result of the shutdown, if it is over.
    pub(in crate::tiered) fn ended(&self) -> Option<Result<()>> {
        let ended = self.ended.try_lock()?;
        if self.running.lock().is_some() {
            return None;
        }
        Some(ended.clone().map_or(Ok(()), |error| Err(anyhow!(error))))
    }

    /// Shuts the spool down. Blocks. A concurrent call waits for the first one and returns the same
    /// result.
    pub(in crate::tiered) fn end(&self, shared: &Shared) -> Result<()> {
        let mut ended = self.ended.lock();
        let Some(workers) = self.running.lock().take() else {
            return ended.clone().map_or(Ok(()), |error| Err(anyhow!(error)));
        };
        let problems = self.end_running(shared, workers);
        self.starter.release(names::LAST_WRITER);
        shared.readers.end();
        shared.closing.end();
        if problems.is_empty() {
            return Ok(());
        }
        let error = format!("shutting down {}: {}", shared.config.load().path.display(), problems.join("; "));
        *ended = Some(error.clone());
        Err(anyhow!(error))
    }

    fn end_running(&self, shared: &Shared, workers: Running) -> Vec<String> {
        let mut problems = Vec::new();
        let times = Times::of(Instant::now(), shared.config.load().shutdown_timeout);
        shared.close();
        shared.closing.close();
        shared.probe.close();
        shared.budget.close();
        let monitor = shared.monitor.get();
        monitor.inspect(|monitor| monitor.leave());
        // The verifier only reads, and no caller needs it now. The dirty messages need the disk.
        shared.verification.stop();
        shared.commit_queue.stop(Stop::Drained(times.drained));
        let committed = note_end(workers.committer, times.committed, &mut problems);
        shared.protection.freeze();
        if committed.is_none_or(|committed| !committed.all) {
            let bytes = shared.budget.dirty();
            let what = match shared.protection.is_active() {
                true => "are in the crash log: open the spool again before the machine stops",
                false => "are lost",
            };
            problems
                .push(format!("{bytes} dirty bytes could not be written within shutdown_timeout and {what}"));
        }
        // The committer may need these threads, so they are stopped after it. All are signalled
        // before any of them is joined.
        if committed.is_some() {
            // No store waits for the disk now. If the committer hangs, the timer must go on.
            shared.timer.close();
        }
        shared.checkpoint_requests.stop();
        shared.segments.pool().stop();
        shared.readers.close();
        shared.balancer.close();
        let checkpointer = note_end(workers.checkpointer, times.joined, &mut problems);
        let manifest = committed.zip(checkpointer).map(|(committed, mut checkpointer)| {
            checkpointer.manifest.durable_seq = committed.durable_seq.max(checkpointer.manifest.durable_seq);
            let write = move || {
                checkpointer.restore_at_the_end();
                checkpointer
                    .manifest_file
                    .write(&checkpointer.manifest)
                    .map(|()| (checkpointer.manifest_file, checkpointer.manifest))
            };
            self.starter.start(names::LAST_WRITER, &workers.directory, write)
        });
        // The syncer and the timer end only after the committer. If it hangs, they can't be joined.
        let with_committer = committed.map(|_| [workers.syncer, workers.timer]);
        let enumerations = std::mem::take(&mut *self.enumerations.lock());
        for thread in with_committer.into_iter().flatten().chain(workers.others).chain(enumerations) {
            note_end(thread, times.joined, &mut problems);
        }
        if monitor.is_some_and(|monitor| !monitor.leave_by(times.joined)) {
            problems.push("the memory-pressure monitor hangs in freeing the spool's memory".to_owned());
        }
        let manifest = manifest.and_then(|manifest| note_manifest(manifest, times.closed, &mut problems));
        note_lost_files(shared, &mut problems);
        match (shared.disk_index.close(times.closed), manifest) {
            (Err(error), _) => problems.push(error.to_string()),
            // No thread can change the index now: a thread that hangs may only be reading.
            (Ok(true), Some((file, manifest))) => {
                let disk_index = shared.disk_index.clone();
                let sum_up = move || note_index(&disk_index, &file, manifest, times.closed);
                let fingerprint = self.starter.start(names::LAST_WRITER, &workers.directory, sum_up);
                note_manifest(fingerprint, times.closed, &mut problems);
            }
            (Ok(_), _) => {}
        }
        problems
    }

    /// Ends everything at once, without waiting. The effect is that of a crash.
    pub(in crate::tiered) fn abandon(shared: &Shared) {
        shared.close();
        shared.closing.close();
        shared.probe.close();
        shared.budget.close();
        shared.monitor.get().inspect(|monitor| monitor.leave());
        shared.protection.freeze();
        shared.commit_queue.stop(Stop::Abandon);
        shared.checkpoint_requests.stop();
        shared.verification.stop();
        shared.segments.pool().stop();
        shared.readers.close();
        shared.readers.end();
        shared.closing.end();
        shared.balancer.close();
        shared.timer.close();
    }
}

/// Writes the fingerprint of the closed index's files to the manifest. If it still matches at the
/// next opening, the index is kept. Writes nothing if the fingerprint is not complete at `by`.
fn note_index(
    disk_index: &DiskIndex,
    file: &ManifestFile,
    manifest: Manifest,
    by: Instant,
) -> Result<(), ManifestError> {
    match disk_index.sum_up(by) {
        Ok(Some(index)) => file.write(&Manifest { index: Some(index), ..manifest }),
        Ok(None) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, "the index's files could not be read: the next opening rebuilds the index");
            Ok(())
        }
    }
}

/// Joins a thread. Returns its result, or `None` and a problem if it panicked or hangs.
fn note_end<T>(thread: Thread<T>, by: Instant, problems: &mut Vec<String>) -> Option<T> {
    let name = thread.name();
    match thread.join_by(by) {
        Some(Ok(returned)) => return Some(returned),
        Some(Err(_)) => problems.push(format!("{name} had panicked")),
        None => problems.push(format!("{name} hangs: the directory stays locked until it returns")),
    }
    None
}

/// Adds a problem for each lost file: its contents could not be kept.
fn note_lost_files(shared: &Shared, problems: &mut Vec<String>) {
    if shared.presence.is_away() {
        let dir = shared.config.load().path.display().to_string();
        problems.push(format!("the dirty messages and the last writes could not be kept in {dir}"));
    }
    let lost = shared.presence.describe_lost();
    problems.extend(lost.into_iter().map(|lost| format!("a file of the spool is lost: {lost}")));
}

/// Joins a thread that writes the manifest, as [`note_end`] does.
fn note_manifest<T>(
    started: io::Result<Thread<Result<T, ManifestError>>>,
    by: Instant,
    problems: &mut Vec<String>,
) -> Option<T> {
    let written = match started {
        Ok(thread) => {
            note_end(thread, by, problems).map(|written| written.map_err(|error| error.to_string()))
        }
        Err(error) => Some(Err(format!("starting {}: {error}", names::LAST_WRITER))),
    };
    match written {
        Some(Ok(written)) => return Some(written),
        Some(Err(error)) => problems.push(error),
        None => {}
    }
    problems
        .push("the manifest is not up to date: the next opening reads more, but loses nothing".to_owned());
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Tidespool};

    /// A call that checked for a shutdown before it and started its thread after it got an error
    /// whose root cause was not `Closed`.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_enumeration_that_starts_after_the_shutdown_fails_with_closed() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path().join("spool")).segment_size(256 << 10).journal_capacity(4 << 20);
        let store = Tidespool::open(config).await.unwrap();
        store.shutdown().await.unwrap();
        let error = store.open.workers.enumerate(|| ()).unwrap_err();
        assert!(error.root_cause().is::<Closed>(), "{error:#}");
    }
}
