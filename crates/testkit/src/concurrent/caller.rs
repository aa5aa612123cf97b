//! One caller: makes the calls of its plan and records what came of them.

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

use super::checker::Value;
use super::history::{Asked, Clock, Entry, Outcome, Who};
use super::plan::{Action, Fate, Step};
use crate::payload;

/// What all tasks of a round share.
pub(super) struct Stage {
    pub(super) ids: Vec<SpoolId>,
    pub(super) clock: Clock,
    /// The version of the next store. No two stores of a run have the same.
    pub(super) versions: Arc<AtomicU64>,
    /// Calls of callers that have ended.
    pub(super) calls: AtomicU64,
    /// The spool is shutting down, or is about to: calls may be refused.
    pub(super) is_closing: AtomicBool,
    /// Promises that were seen to be broken at once.
    pub(super) broken: Mutex<Vec<String>>,
    /// Set when every future is to be dropped.
    pub(super) stop: watch::Sender<bool>,
}

impl Stage {
    pub(super) fn report(&self, what: String) {
        self.broken.lock().push(what);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::SeqCst)
    }
}

/// A task that makes calls.
pub(super) struct Caller {
    pub(super) stage: Arc<Stage>,
    pub(super) spool: Arc<dyn Spool>,
    pub(super) who: Who,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) entries: Vec<Entry>,
}

impl Caller {
    pub(super) fn new(stage: &Arc<Stage>, spool: &Arc<dyn Spool>, who: Who) -> Self {
        let (stage, spool, stop) = (stage.clone(), spool.clone(), stage.stop.subscribe());
        Self { stage, spool, who, stop, entries: Vec::new() }
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
            self.stage.calls.fetch_add(1, Ordering::SeqCst);
        }
        self.entries
    }

    /// False where the spool is closed, or the round is to stop.
    pub(super) async fn step(&mut self, step: Step) -> bool {
        let first = self.call(step.action, step.fate);
        let goes_on = match step.beside {
            None => {
                let (entry, goes_on) = first.await;
                self.entries.extend(entry);
                goes_on
            }
            Some(beside) => {
                // The first one is polled first: it is under way when the second begins.
                let both = future::zip(first, self.call(beside, Fate::Awaited)).await;
                let ((one, goes_on), (other, also)) = both;
                self.entries.extend(one.into_iter().chain(other));
                goes_on && also
            }
        };
        goes_on && !*self.stop.borrow()
    }

    /// One call, if there is something to record, and whether the caller goes on.
    async fn call(&self, action: Action, fate: Fate) -> (Option<Entry>, bool) {
        match action {
            Action::Store { slot, len, forced, deadline } => {
                let deadline = deadline.map(|wait| Instant::now() + wait);
                self.store(self.stage.ids[slot], len, forced, deadline, fate).await
            }
            Action::Remove { slot } => self.remove(self.stage.ids[slot], fate).await,
            Action::Load { slot } => self.load(self.stage.ids[slot], fate).await,
        }
    }

    async fn store(
        &self,
        id: SpoolId,
        len: usize,
        forced: bool,
        deadline: Option<Instant>,
        fate: Fate,
    ) -> (Option<Entry>, bool) {
        let version = self.stage.versions.fetch_add(1, Ordering::Relaxed);
        let data = payload::shared(id, version, len);
        let version = (len >= payload::HEADER_BYTES).then_some(version);
        let asked = Asked::Store { seen: payload::Seen { version, len }, forced };
        let begun = self.begin();
        let answer = drive(self.spool.store(id, data, forced, deadline), fate, self.stop.clone()).await;
        let (outcome, goes_on) = match answer {
            Some(Ok(())) => (Outcome::Done, true),
            None => (Outcome::Dropped, true),
            Some(Err(err)) => {
                if !may_fail_so(&err, deadline.is_some(), self.stage.is_closing()) {
                    self.stage.report(format!("store of {id}: {err:#}"));
                }
                (Outcome::Failed, !err.root_cause().is::<Closed>())
            }
        };
        (Some(self.end(id, asked, begun, outcome)), goes_on)
    }

    async fn remove(&self, id: SpoolId, fate: Fate) -> (Option<Entry>, bool) {
        let begun = self.begin();
        let outcome = match drive(self.spool.remove(id), fate, self.stop.clone()).await {
            Some(Ok(())) => Outcome::Done,
            None => Outcome::Dropped,
            Some(Err(err)) => {
                if !(err.root_cause().is::<Closed>() && self.stage.is_closing()) {
                    self.stage.report(format!("remove of {id}: {err:#}"));
                }
                return (None, false);
            }
        };
        (Some(self.end(id, Asked::Remove, begun, outcome)), true)
    }

    async fn load(&self, id: SpoolId, fate: Fate) -> (Option<Entry>, bool) {
        let begun = self.begin();
        let Some(loaded) = drive(self.spool.load(id), fate, self.stop.clone()).await else {
            return (None, true);
        };
        let value = self.value_of(id, loaded);
        (value.map(|value| self.end(id, Asked::Load, begun, Outcome::Saw(value))), value.is_some())
    }

    /// What a load returned. `None`: the spool is closed, or a promise was broken at once.
    fn value_of(&self, id: SpoolId, loaded: Result<Vec<u8>>) -> Option<Value> {
        match loaded {
            Ok(data) => match payload::read(id, &data) {
                Ok(seen) => return Some(Some(seen)),
                Err(err) => self.stage.report(err.to_string()),
            },
            Err(err) if err.root_cause().is::<NotFound>() => return Some(None),
            Err(err) if err.root_cause().is::<Closed>() && self.stage.is_closing() => {}
            Err(err) => self.stage.report(format!("load of {id}: {err:#}")),
        }
        None
    }

    pub(super) fn begin(&self) -> (u64, Instant) {
        let at = Instant::now();
        (self.stage.clock.tick(), at)
    }

    /// To be called after the answer, or after the future was dropped.
    pub(super) fn end(&self, id: SpoolId, asked: Asked, begun: (u64, Instant), outcome: Outcome) -> Entry {
        let (ended, ended_at) = (self.stage.clock.tick(), Instant::now());
        let ((began, began_at), who) = (begun, self.who);
        Entry { who, id, asked, began, ended, began_at, ended_at, outcome }
    }
}

/// The errors of a store that promise that it had no effect.
fn may_fail_so(err: &Error, had_deadline: bool, is_closing: bool) -> bool {
    let root = err.root_cause();
    (root.is::<SpoolCallerDeadlineExceeded>() && had_deadline)
        || root.is::<SpoolBackpressureTimeout>()
        || root.is::<SpoolUnhealthyError>()
        || (root.is::<Closed>() && is_closing)
}

/// The result of `call`; `None` if it was dropped, by its fate or by the stop.
async fn drive<T>(call: impl Future<Output = T>, fate: Fate, mut stop: watch::Receiver<bool>) -> Option<T> {
    let whole = async {
        let mut call = std::pin::pin!(call);
        match fate {
            Fate::Awaited => Some(call.await),
            Fate::Timed(time) => tokio::time::timeout(time, call).await.ok(),
            Fate::Polled(polls) => {
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
        // An error is the end of the round, too.
        let _ = stop.wait_for(|stop| *stop).await;
        None
    };
    future::or(whole, stopped).await
}
