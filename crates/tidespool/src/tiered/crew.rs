//! The spool's threads, and their orderly end.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, anyhow};
use parking_lot::Mutex;
use tidespool_core::Closed;

use super::directory::Directory;
use super::mailbox::Stop;
use super::shared::Shared;
use super::threads::{Starter, Thread};
use crate::checkpoint::{Filer, Ledger, LedgerError, LedgerFile};
use crate::pressure::Relief;

/// Enumerations at a time. A server needs one, at its start.
const MAX_ENUMERATIONS: usize = 64;

/// Everything that runs, and what must outlive it.
pub(super) struct Crew {
    running: Mutex<Option<Running>>,
    enumerations: Mutex<Vec<Thread<()>>>,
    /// How the end went, for those who ask again.
    ended: Mutex<Option<String>>,
    starter: Starter,
}

struct Running {
    committer: Thread<Committed>,
    filer: Thread<Filer>,
    others: Vec<Thread<()>>,
    /// The monitor looks at it through a weak pointer.
    _relief: Arc<dyn Relief>,
    /// Its lock is held until everything else has ended.
    directory: Arc<Directory>,
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
    pub(super) fn new(
        committer: Thread<Committed>,
        filer: Thread<Filer>,
        others: Vec<Thread<()>>,
        relief: Arc<dyn Relief>,
        directory: Arc<Directory>,
        starter: Starter,
    ) -> Self {
        let running = Running { committer, filer, others, _relief: relief, directory };
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
        let mut running = self.running.lock();
        let Some(crew) = running.take() else {
            return self.ended.lock().clone().map_or(Ok(()), |error| Err(anyhow!(error)));
        };
        let result = self.end_running(shared, crew);
        *self.ended.lock() = result.as_ref().err().map(|error| format!("{error:#}"));
        result
    }

    fn end_running(&self, shared: &Shared, crew: Running) -> Result<()> {
        let mut problems = Vec::new();
        let timeout = shared.config.load().shutdown_timeout;
        let by = Instant::now() + timeout;
        shared.close();
        shared.closing.close();
        let monitor = shared.monitor.get();
        monitor.inspect(|monitor| monitor.stop());
        // The last quarter of the time is for the threads to end.
        shared.mailbox.stop(Stop::Drained(by - timeout / 4));
        let committed = note_end(crew.committer.join_by(by), "writing the journal", &mut problems);
        if committed.is_none_or(|committed| !committed.all) {
            let bytes = shared.budget.dirty();
            let what =
                format!("{bytes} dirty bytes could not be written within shutdown_timeout and are lost");
            problems.push(what);
        }
        for thread in self.enumerations.lock().drain(..) {
            note_end(thread.join_by(by), "an enumeration", &mut problems);
        }
        shared.filing.stop();
        shared.segments.pool().stop();
        shared.readers.close();
        shared.keeper.close();
        let filer = note_end(crew.filer.join_by(by), "a checkpoint", &mut problems);
        let mut closed = None;
        if let (Some(committed), Some(filer)) = (committed, filer) {
            let ledger = Ledger {
                durable_seq: committed.durable_seq.max(filer.ledger.durable_seq),
                ..filer.ledger.clone()
            };
            if let Err(error) = filer.ledger_file.write(&ledger) {
                problems.push(error.to_string());
            }
            // Of what was neither counted nor whole, the next opening shall not take anybody's word.
            let is_whole = shared.durable.is_open() && shared.stats.errors().corrupt == 0;
            if filer.recount.is_done() && !ledger.filing && is_whole {
                closed = Some((filer.ledger_file, ledger));
            }
        }
        for thread in crew.others {
            note_end(thread.join_by(by), "reading or preparing segments", &mut problems);
        }
        if monitor.is_some_and(|monitor| !monitor.join_by(by)) {
            problems.push("the memory-pressure monitor hangs in asking the spool for memory".to_owned());
        }
        if let Err(error) = shared.durable.close() {
            problems.push(error.to_string());
        }
        if let Some((file, ledger)) = closed
            && problems.is_empty()
            && let Err(error) = leave_fingerprint(shared, &file, ledger, by)
        {
            problems.push(error.to_string());
        }
        drop(crew.directory);
        match problems.is_empty() {
            true => Ok(()),
            false => {
                Err(anyhow!("shutting down {}: {}", shared.config.load().path.display(), problems.join("; ")))
            }
        }
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
        shared.keeper.close();
    }
}

/// Notes in the ledger what sled's files are, now that it is closed: if they still are at the next opening, nothing in them has to be counted. Not
/// where it would take longer than until `by`.
fn leave_fingerprint(
    shared: &Shared,
    file: &LedgerFile,
    ledger: Ledger,
    by: Instant,
) -> Result<(), LedgerError> {
    if shared.durable.closing_failed() {
        return Ok(());
    }
    match shared.durable.fingerprint(by) {
        Ok(Some(files)) => file.write(&Ledger { files: Some(files), ..ledger }),
        Ok(None) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, "sled's files could not be read: they are counted at the next start");
            Ok(())
        }
    }
}

/// What the thread returned, if it has ended as it should.
fn note_end<T>(ended: Option<std::thread::Result<T>>, at: &str, problems: &mut Vec<String>) -> Option<T> {
    match ended {
        Some(Ok(returned)) => return Some(returned),
        Some(Err(_)) => problems.push("a thread had panicked".to_owned()),
        None => problems.push(format!("a thread hangs in {at}: the directory stays locked until it returns")),
    }
    None
}
