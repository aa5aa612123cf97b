use std::time::{Duration, Instant};

use tidespool_core::{
    Corrupt, InDoubt, NotFound, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId,
    SpoolUnhealthyError,
};
use tokio::time::timeout;

use super::case::{Case, Open, Outcome};
use super::script::{Step, SyncMode};
use crate::oracle::{Answer, Begun, Survival, Value, shown};
use crate::payload::{self, Seen};
use crate::wait::PATIENCE;

/// How long to wait for upkeep on a broken disk. Then it continues in the background, and must end
/// when the disk works again.
const UPKEEP_WAIT: Duration = Duration::from_millis(200);

/// The result of a load.
pub(super) enum Loaded {
    Value(Value),
    /// The load failed: the disk did not return the message.
    Unknown(String),
}

impl Case {
    pub(super) async fn perform(&mut self, open: &Open, step: Step) -> Result<(), String> {
        match step {
            Step::Store(message, len, mode) => self.store(open, message, len, mode == SyncMode::Forced).await,
            Step::Together(first, count) => self.store_together(open, first, count).await,
            Step::Remove(message) => self.remove(open, message).await,
            Step::Flush => self.upkeep(open, "advise_low_memory").await,
            Step::Compact => self.upkeep(open, "compact").await,
            Step::Cleanup => self.upkeep(open, "cleanup").await,
            Step::LoadAll => self.load_all(open).await,
            Step::Enumerate => self.enumerate(open).await,
        }
    }

    /// The deadline of a store: short if the disk may be broken.
    fn deadline(&self) -> Instant {
        Instant::now() + if self.is_sticky() { Duration::from_secs(1) } else { PATIENCE / 2 }
    }

    async fn store(&mut self, open: &Open, message: usize, len: usize, forced: bool) -> Result<(), String> {
        let id = self.ids[message];
        let (version, begun) = self.begin_store(id, len, forced);
        let answer = store_timed(open, id, version, len, forced, self.deadline()).await?;
        self.note_store(&begun, forced, answer)?;
        self.check(open, id).await
    }

    async fn store_together(&mut self, open: &Open, first: usize, count: usize) -> Result<(), String> {
        let deadline = self.deadline();
        let mut stores = Vec::new();
        for message in first..first + count {
            let (id, len, open) = (self.ids[message], 1000 + message, open.clone());
            let (version, begun) = self.begin_store(id, len, true);
            let store =
                tokio::spawn(async move { store_timed(&open, id, version, len, true, deadline).await });
            stores.push((begun, store));
        }
        for (begun, store) in stores {
            let answer = store.await.map_err(|error| format!("a store panicked: {error}"))??;
            self.note_store(&begun, true, answer)?;
        }
        Ok(())
    }

    /// Records the beginning of a store. Returns the version to store.
    pub(super) fn begin_store(&mut self, id: SpoolId, len: usize, forced: bool) -> (u64, Begun) {
        self.version += 1;
        (self.version, self.expected.begin(id, Some(Seen::of(self.version, len)), forced))
    }

    pub(super) fn note_store(
        &mut self,
        begun: &Begun,
        forced: bool,
        answer: anyhow::Result<()>,
    ) -> Result<(), String> {
        let Err(error) = answer else {
            let survival = if forced { Survival::Durable } else { Survival::Volatile };
            self.expected.end(begun, Answer::Done(survival));
            return Ok(());
        };
        let root = error.root_cause();
        let is_late = root.is::<SpoolCallerDeadlineExceeded>() || root.is::<SpoolBackpressureTimeout>();
        let in_doubt = is_late && error.is::<InDoubt>();
        self.expected.end(begun, if in_doubt { Answer::InDoubt } else { Answer::Failed });
        if self.is_struck() {
            self.record_outcome(Outcome::Recovered);
        }
        if root.is::<SpoolUnhealthyError>() {
            if self.is_struck() { Ok(()) } else { Err("the gate is shut on a disk that works".to_owned()) }
        } else if is_late {
            Ok(())
        } else {
            Err(format!("a store failed with an unexpected error: {error:#}"))
        }
    }

    async fn remove(&mut self, open: &Open, message: usize) -> Result<(), String> {
        let id = self.ids[message];
        let begun = self.expected.begin(id, None, false);
        match timeout(self.subject.patience, open.spool.remove(id)).await {
            Ok(Ok(())) => self.expected.end(&begun, Answer::Done(Survival::Volatile)),
            Ok(Err(error)) => return Err(format!("a remove failed: {error:#}")),
            Err(_) => return Err("a remove hangs".to_owned()),
        }
        self.check(open, id).await
    }

    async fn load_all(&mut self, open: &Open) -> Result<(), String> {
        for id in self.expected.ids().collect::<Vec<_>>() {
            self.check(open, id).await?;
        }
        Ok(())
    }

    /// Checks that a load returns the visible value. It may fail while the disk is broken.
    async fn check(&mut self, open: &Open, id: SpoolId) -> Result<(), String> {
        let visible = self.expected.visible(id);
        match load(open, id).await? {
            Loaded::Value(value) if value == visible => {}
            Loaded::Value(value) => {
                let is = if value.is_none() { "not found".to_owned() } else { shown(value) };
                self.violations.push(format!("{id} is {is}: callers should get {}", shown(visible)));
            }
            Loaded::Unknown(_) if self.is_struck() => self.record_outcome(Outcome::Recovered),
            Loaded::Unknown(error) => {
                self.violations.push(format!("a load failed on a disk that works: {error}"));
            }
        }
        Ok(())
    }

    /// Checks an enumeration. On a broken disk it may end early. Or it may wait: then the receiver
    /// is dropped, which must end it. While the index is rebuilt it may end early, and is repeated.
    async fn enumerate(&mut self, open: &Open) -> Result<(), String> {
        let began = Instant::now();
        let mut enumeration = Box::pin(super::contents::enumerate(open));
        let found = loop {
            match timeout(UPKEEP_WAIT, &mut enumeration).await {
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Some(found))) => break found,
                _ if self.is_broken() => return Ok(()),
                _ if began.elapsed() > self.subject.patience => {
                    return Err("an enumeration does not complete".to_owned());
                }
                Ok(Ok(None)) => enumeration = Box::pin(super::contents::enumerate(open)),
                Err(_) => {}
            }
        };
        self.violations
            .extend(self.expected.differences(&found).into_iter().map(|what| format!("enumerated: {what}")));
        Ok(())
    }

    async fn upkeep(&mut self, open: &Open, what: &'static str) -> Result<(), String> {
        let spool = open.spool.clone();
        let mut upkeep = tokio::spawn(async move {
            match what {
                "compact" => spool.compact().await,
                "cleanup" => spool.cleanup().await,
                _ => spool.advise_low_memory().await.map(drop),
            }
        });
        let began = Instant::now();
        let done = loop {
            let wait = timeout(UPKEEP_WAIT, &mut upkeep).await;
            match wait {
                Ok(done) => break done.map_err(|error| format!("{what} panicked: {error}"))?,
                Err(_) if self.is_broken() => {
                    self.pending.push((what, upkeep));
                    return Ok(());
                }
                Err(_) if began.elapsed() > self.subject.patience => return Err(format!("{what} hangs")),
                Err(_) => {}
            }
        };
        match done {
            // `cleanup` checkpoints old messages, and syncs nothing else.
            Ok(()) if what != "cleanup" => self.expected.mark_durable(),
            Ok(()) => {}
            Err(_) if self.is_struck() => self.record_outcome(Outcome::Recovered),
            Err(error) => return Err(format!("{what} failed on a disk that works: {error:#}")),
        }
        Ok(())
    }
}

/// Stores a message and returns the result. `Err`: the store does not end by its deadline.
pub(super) async fn store_timed(
    open: &Open,
    id: SpoolId,
    version: u64,
    len: usize,
    forced: bool,
    deadline: Instant,
) -> Result<anyhow::Result<()>, String> {
    let store = open.spool.store(id, payload::shared(id, version, len), forced, Some(deadline));
    let patience = deadline.saturating_duration_since(Instant::now()) + PATIENCE;
    timeout(patience, store).await.map_err(|_| "a store does not end by its deadline".to_owned())
}

/// Loads a message. `Err`: the load hangs, or the message is wrong.
pub(super) async fn load(open: &Open, id: SpoolId) -> Result<Loaded, String> {
    let loaded = timeout(PATIENCE, open.spool.load(id)).await.map_err(|_| "a load hangs".to_owned())?;
    match loaded {
        Ok(data) => match payload::read(id, &data) {
            Ok(seen) => Ok(Loaded::Value(Some(seen))),
            Err(wrong) => Err(wrong.to_string()),
        },
        Err(error) if error.root_cause().is::<NotFound>() => Ok(Loaded::Value(None)),
        Err(error) if error.root_cause().is::<Corrupt>() => Err(format!("{id} is damaged: {error:#}")),
        Err(error) => Ok(Loaded::Unknown(format!("{error:#}"))),
    }
}
