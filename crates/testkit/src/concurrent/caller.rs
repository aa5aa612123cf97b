//! One caller: makes the calls of its plan and records the results.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Error, Result};
use futures_lite::future;
use parking_lot::Mutex;
use tidespool_core::{
    Closed, NotFound, Spool, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId,
    SpoolUnhealthyError,
};
use tokio::sync::watch;

use super::history::{Clock, Entry, Outcome, Request, Source};
use super::plan::{Action, Cancel, Step};
use crate::oracle::Value;
use crate::payload;

/// The state that all tasks of a round share.
pub(super) struct RoundState {
    pub(super) ids: Vec<SpoolId>,
    pub(super) clock: Clock,
    /// The version of the next store, unique in the run.
    pub(super) versions: Arc<AtomicU64>,
    /// The number of completed calls of callers.
    pub(super) calls: AtomicU64,
    /// The spool is shutting down or is about to: calls may be rejected.
    pub(super) is_closing: AtomicBool,
    /// Broken promises that were detected immediately.
    pub(super) broken: Mutex<Vec<String>>,
    /// True when every future must be dropped.
    pub(super) stop: watch::Sender<bool>,
}

impl RoundState {
    pub(super) fn report(&self, what: String) {
        self.broken.lock().push(what);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::SeqCst)
    }
}

/// A task that makes calls.
pub(super) struct Caller {
    pub(super) state: Arc<RoundState>,
    pub(super) spool: Arc<dyn Spool>,
    pub(super) source: Source,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) entries: Vec<Entry>,
}

impl Caller {
    pub(super) fn new(state: &Arc<RoundState>, spool: &Arc<dyn Spool>, source: Source) -> Self {
        let (state, spool, stop) = (state.clone(), spool.clone(), state.stop.subscribe());
        Self { state, spool, source, stop, entries: Vec::new() }
    }

    /// Makes the calls, until the last one, the stop or the shutdown.
    pub(super) async fn run(mut self, steps: Vec<Step>) -> Vec<Entry> {
        for step in steps {
            for _ in 0..step.yields {
                tokio::task::yield_now().await;
            }
            if !self.step(step).await {
                break;
            }
            self.state.calls.fetch_add(1, Ordering::SeqCst);
        }
        self.entries
    }

    /// Makes one step. Returns false if the spool is closed, or the round must stop.
    pub(super) async fn step(&mut self, step: Step) -> bool {
        let first = self.call(step.action, step.cancel);
        let continues = match step.beside {
            None => {
                let (entry, continues) = first.await;
                self.entries.extend(entry);
                continues
            }
            Some(beside) => {
                // The first call is polled first, so it is in progress when the second begins.
                let both = future::zip(first, self.call(beside, Cancel::Never)).await;
                let ((one, continues), (other, also)) = both;
                self.entries.extend(one.into_iter().chain(other));
                continues && also
            }
        };
        continues && !*self.stop.borrow()
    }

    /// Makes one call. Returns its record, if any, and whether the caller continues.
    async fn call(&self, action: Action, cancel: Cancel) -> (Option<Entry>, bool) {
        match action {
            Action::Store { slot, len, forced, deadline } => {
                let deadline = deadline.map(|wait| Instant::now() + wait);
                self.store(self.state.ids[slot], len, forced, deadline, cancel).await
            }
            Action::Remove { slot } => self.remove(self.state.ids[slot], cancel).await,
            Action::Load { slot } => self.load(self.state.ids[slot], cancel).await,
        }
    }

    async fn store(
        &self,
        id: SpoolId,
        len: usize,
        forced: bool,
        deadline: Option<Instant>,
        cancel: Cancel,
    ) -> (Option<Entry>, bool) {
        let version = self.state.versions.fetch_add(1, Ordering::Relaxed);
        let data = payload::shared(id, version, len);
        let request = Request::Store { seen: payload::Seen::of(version, len), forced };
        let begun = self.begin();
        let answer = drive(self.spool.store(id, data, forced, deadline), cancel, self.stop.clone()).await;
        let (outcome, continues) = match answer {
            Some(Ok(())) => (Outcome::Done, true),
            None => (Outcome::Dropped, true),
            Some(Err(err)) => {
                if !is_expected_failure(&err, deadline.is_some(), self.state.is_closing()) {
                    self.state.report(format!("store of {id}: {err:#}"));
                }
                (Outcome::Failed, !err.root_cause().is::<Closed>())
            }
        };
        (Some(self.end(id, request, begun, outcome)), continues)
    }

    async fn remove(&self, id: SpoolId, cancel: Cancel) -> (Option<Entry>, bool) {
        let begun = self.begin();
        let outcome = match drive(self.spool.remove(id), cancel, self.stop.clone()).await {
            Some(Ok(())) => Outcome::Done,
            None => Outcome::Dropped,
            Some(Err(err)) => {
                if !(err.root_cause().is::<Closed>() && self.state.is_closing()) {
                    self.state.report(format!("remove of {id}: {err:#}"));
                }
                return (None, false);
            }
        };
        (Some(self.end(id, Request::Remove, begun, outcome)), true)
    }

    async fn load(&self, id: SpoolId, cancel: Cancel) -> (Option<Entry>, bool) {
        let begun = self.begin();
        let Some(loaded) = drive(self.spool.load(id), cancel, self.stop.clone()).await else {
            return (None, true);
        };
        let value = self.value_of(id, loaded);
        (value.map(|value| self.end(id, Request::Load, begun, Outcome::Saw(value))), value.is_some())
    }

    /// Converts the result of a load. `None`: the spool is closed, or a promise is broken.
    fn value_of(&self, id: SpoolId, loaded: Result<Vec<u8>>) -> Option<Value> {
        match loaded {
            Ok(data) => match payload::read(id, &data) {
                Ok(seen) => return Some(Some(seen)),
                Err(err) => self.state.report(err.to_string()),
            },
            Err(err) if err.root_cause().is::<NotFound>() => return Some(None),
            Err(err) if err.root_cause().is::<Closed>() && self.state.is_closing() => {}
            Err(err) => self.state.report(format!("load of {id}: {err:#}")),
        }
        None
    }

    pub(super) fn begin(&self) -> (u64, Instant) {
        let at = Instant::now();
        (self.state.clock.tick(), at)
    }

    /// Records the end of a call: after its result, or after the future was dropped.
    pub(super) fn end(
        &self,
        id: SpoolId,
        request: Request,
        begun: (u64, Instant),
        outcome: Outcome,
    ) -> Entry {
        let (ended, ended_at) = (self.state.clock.tick(), Instant::now());
        let ((began, began_at), source) = (begun, self.source);
        Entry { source, id, request, began, ended, began_at, ended_at, outcome }
    }
}

/// Returns whether a store may fail with this error, which promises that it had no effect.
fn is_expected_failure(err: &Error, had_deadline: bool, is_closing: bool) -> bool {
    let root = err.root_cause();
    (root.is::<SpoolCallerDeadlineExceeded>() && had_deadline)
        || root.is::<SpoolBackpressureTimeout>()
        || root.is::<SpoolUnhealthyError>()
        || (root.is::<Closed>() && is_closing)
}

/// Awaits `call`. Returns `None` if it was dropped, because of `cancel` or the stop.
async fn drive<T>(
    call: impl Future<Output = T>,
    cancel: Cancel,
    mut stop: watch::Receiver<bool>,
) -> Option<T> {
    let whole = async {
        let mut call = std::pin::pin!(call);
        match cancel {
            Cancel::Never => Some(call.await),
            Cancel::AfterTime(time) => tokio::time::timeout(time, call).await.ok(),
            Cancel::AfterPolls(polls) => {
                for _ in 0..polls {
                    if let Some(done) = future::poll_once(&mut call).await {
                        return Some(done);
                    }
                    tokio::task::yield_now().await;
                }
                None
            }
        }
    };
    let stopped = async {
        // An error means the end of the round, too.
        let _ = stop.wait_for(|stop| *stop).await;
        None
    };
    future::or(whole, stopped).await
}
