//! The spool's threads, and their orderly end.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use parking_lot::Mutex;
use tidespool_core::Closed;

use super::directory::Directory;
use super::mailbox::Stop;
use super::shared::Shared;
use super::threads::{Starter, Thread};
use crate::checkpoint::{Filer, Ledger, LedgerError, LedgerFile};
use crate::durable::Durable;
use crate::pressure::Relief;

/// Enumerations at a time. A server needs one, at its start.
const MAX_ENUMERATIONS: usize = 64;

/// Writes what a shutdown writes last: the disk may hang, and then it is this thread that does.
const LAST_WRITER: &str = "tidespool-ledger";

/// Time for what does not hang to come to its end, however short `shutdown_timeout` is.
const GRACE: Duration = Duration::from_secs(1);

/// Everything that runs, and what must outlive it.
pub(super) struct Crew {
    running: Mutex<Option<Running>>,
    enumerations: Mutex<Vec<Thread<()>>>,
    /// How the end went, for those who ask again. Held for the whole of it.
    ended: Mutex<Option<String>>,
    starter: Starter,
}

pub(super) struct Running {
    pub(super) committer: Thread<Committed>,
    /// Ends with the committer.
    pub(super) syncer: Thread<()>,
    pub(super) filer: Thread<Filer>,
    pub(super) others: Vec<Thread<()>>,
    /// The monitor looks at it through a weak pointer.
    pub(super) _relief: Arc<dyn Relief>,
    /// Its lock is held until everything else has ended.
    pub(super) directory: Arc<Directory>,
}

/// When each part of an end is over at the latest: one that hangs takes nothing of the time of those after it.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// The committer begins nothing any more.
    drained: Instant,
    /// The committer has ended.
    committed: Instant,
    /// All other threads have.
    joined: Instant,
    /// The last ledger is written, sled is closed, and its files are summed up.
    closed: Instant,
}

impl Times {
    /// `timeout` in all; where an eighth of it is less than twice [`GRACE`], so much longer.
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

/// How the committer ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Committed {
    /// Everything dirty is durable.
    pub(super) all: bool,
    /// Records up to this number are durable.
    pub(super) durable_seq: u64,
}

impl Crew {
    pub(super) fn new(running: Running, starter: Starter) -> Self {
        Self {
            running: Mutex::new(Some(running)),
            enumerations: Mutex::default(),
            ended: Mutex::default(),
            starter,
        }
    }

    /// Starts a thread for an enumeration.
    pub(super) fn enumerate(&self, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        // A shutdown that begins now waits for this, and then ends it.
        let running = self.running.lock();
        let Some(crew) = &*running else { return Err(io::Error::other(Closed)) };
        let mut enumerations = self.enumerations.lock();
        enumerations.retain(|thread| !thread.is_finished());
        if enumerations.len() >= MAX_ENUMERATIONS {
            let what = format!("{MAX_ENUMERATIONS} enumerations are running: wait for one to end");
            return Err(io::Error::new(io::ErrorKind::WouldBlock, what));
        }
        enumerations.push(self.starter.start("tidespool-enum", &crew.directory, run)?);
        Ok(())
    }

    /// Ends everything in order. Blocks. Whoever comes second waits for the first, and hears the same.
    pub(super) fn end(&self, shared: &Shared) -> Result<()> {
        let mut ended = self.ended.lock();
        let Some(crew) = self.running.lock().take() else {
            return ended.clone().map_or(Ok(()), |error| Err(anyhow!(error)));
        };
        let problems = self.end_running(shared, crew);
        shared.readers.end();
        shared.closing.end();
        if problems.is_empty() {
            return Ok(());
        }
        let error = format!("shutting down {}: {}", shared.config.load().path.display(), problems.join("; "));
        *ended = Some(error.clone());
        Err(anyhow!(error))
    }

    fn end_running(&self, shared: &Shared, crew: Running) -> Vec<String> {
        let mut problems = Vec::new();
        let times = Times::of(Instant::now(), shared.config.load().shutdown_timeout);
        shared.close();
        shared.closing.close();
        let monitor = shared.monitor.get();
        monitor.inspect(|monitor| monitor.stop());
        shared.mailbox.stop(Stop::Drained(times.drained));
        let committed = note_end(crew.committer, times.committed, &mut problems);
        if committed.is_none_or(|committed| !committed.all) {
            let bytes = shared.budget.dirty();
            let what =
                format!("{bytes} dirty bytes could not be written within shutdown_timeout and are lost");
            problems.push(what);
        }
        // Whom the committer may need is told only now; and all are told before one of them is waited for.
        shared.filing.stop();
        shared.segments.pool().stop();
        shared.readers.close();
        shared.keeper.close();
        let filer = note_end(crew.filer, times.joined, &mut problems);
        // Of what was neither counted nor whole, the next opening shall not take anybody's word.
        let is_whole = shared.durable.is_open() && shared.stats.errors().corrupt == 0;
        let ledger = committed.zip(filer).map(|(committed, filer)| {
            let is_known = is_whole && filer.recount.is_done() && !filer.ledger.filing;
            let durable_seq = committed.durable_seq.max(filer.ledger.durable_seq);
            let ledger = Ledger { durable_seq, ..filer.ledger };
            let (file, directory) = (filer.ledger_file, &crew.directory);
            let write = move || file.write(&ledger).map(|()| (file, ledger));
            (self.starter.start(LAST_WRITER, directory, write), is_known)
        });
        // One that hangs does not end before the committer does, and could not be told to.
        let syncer = committed.map(|_| crew.syncer);
        let enumerations = std::mem::take(&mut *self.enumerations.lock());
        for thread in syncer.into_iter().chain(crew.others).chain(enumerations) {
            note_end(thread, times.joined, &mut problems);
        }
        if monitor.is_some_and(|monitor| !monitor.join_by(times.joined)) {
            problems.push("the memory-pressure monitor hangs in asking the spool for memory".to_owned());
        }
        let ledger = ledger.and_then(|(ledger, is_known)| {
            note_ledger(ledger, times.closed, &mut problems).filter(|_| is_known)
        });
        match (shared.durable.close(times.closed), ledger) {
            (Err(error), _) => problems.push(error.to_string()),
            // Nobody is left who changes sled: those who hang may only be reading.
            (Ok(()), Some((file, ledger))) if !shared.durable.closing_failed() => {
                let durable = shared.durable.clone();
                let sum_up = move || leave_fingerprint(&durable, &file, ledger, times.closed);
                let fingerprint = self.starter.start(LAST_WRITER, &crew.directory, sum_up);
                note_ledger(fingerprint, times.closed, &mut problems);
            }
            (Ok(()), _) => {}
        }
        problems
    }

    /// Tells everything to end at once, without waiting: what a crash would do.
    pub(super) fn abandon(shared: &Shared) {
        shared.close();
        shared.closing.close();
        shared.monitor.get().inspect(|monitor| monitor.stop());
        shared.mailbox.stop(Stop::Abandon);
        shared.filing.stop();
        shared.segments.pool().stop();
        shared.readers.close();
        shared.readers.end();
        shared.closing.end();
        shared.keeper.close();
    }
}

/// Notes in the ledger what sled's files are, now that it is closed: if they still are at the next opening, nothing in them has to be counted. Not
/// where it would take longer than until `by`.
fn leave_fingerprint(
    durable: &Durable,
    file: &LedgerFile,
    ledger: Ledger,
    by: Instant,
) -> Result<(), LedgerError> {
    match durable.fingerprint(by) {
        Ok(Some(files)) => file.write(&Ledger { files: Some(files), ..ledger }),
        Ok(None) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, "sled's files could not be read: they are counted at the next start");
            Ok(())
        }
    }
}

/// What the thread returned, if it has ended as it should.
fn note_end<T>(thread: Thread<T>, by: Instant, problems: &mut Vec<String>) -> Option<T> {
    let name = thread.name();
    match thread.join_by(by) {
        Some(Ok(returned)) => return Some(returned),
        Some(Err(_)) => problems.push(format!("{name} had panicked")),
        None => problems.push(format!("{name} hangs: the directory stays locked until it returns")),
    }
    None
}

/// The same of a thread that writes the ledger.
fn note_ledger<T>(
    started: io::Result<Thread<Result<T, LedgerError>>>,
    by: Instant,
    problems: &mut Vec<String>,
) -> Option<T> {
    let written = match started {
        Ok(thread) => {
            note_end(thread, by, problems).map(|written| written.map_err(|error| error.to_string()))
        }
        Err(error) => Some(Err(format!("starting {LAST_WRITER}: {error}"))),
    };
    match written {
        Some(Ok(written)) => return Some(written),
        Some(Err(error)) => problems.push(error),
        None => {}
    }
    problems.push(
        "the ledger is not up to date: the next opening reads more, and loses nothing by it".to_owned(),
    );
    None
}
