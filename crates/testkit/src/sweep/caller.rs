use std::time::{Duration, Instant};

use tidespool_core::{
    Corrupt, InDoubt, NotFound, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId,
    SpoolUnhealthyError,
};
use tokio::time::timeout;

use super::case::{Case, Open, Outcome};
use super::script::{Step, SyncMode};
use crate::payload;
use crate::wait::PATIENCE;

/// How long to wait for upkeep on a broken disk. Then it continues in the background, and must end
/// when the disk works again.
const UPKEEP_WAIT: Duration = Duration::from_millis(200);

/// The result of a load.
pub(super) enum Loaded {
    Version(u64),
    Absent,
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
        let (id, version) = (self.ids[message], self.next_version());
        let answer = store_timed(open, id, version, len, forced, self.deadline()).await?;
        if forced && answer.is_ok() {
            self.expected.resolve_doubts();
        }
        self.note_store(id, version, forced, answer)?;
        self.check(open, id).await
    }

    async fn store_together(&mut self, open: &Open, first: usize, count: usize) -> Result<(), String> {
        let deadline = self.deadline();
        let mut stores = Vec::new();
        for message in first..first + count {
            let (id, version, open) = (self.ids[message], self.next_version(), open.clone());
            let store =
                tokio::spawn(
                    async move { store_timed(&open, id, version, 1000 + message, true, deadline).await },
                );
            stores.push((id, version, store));
        }
        let mut answers = Vec::new();
        for (id, version, store) in stores {
            answers.push((id, version, store.await.map_err(|error| format!("a store panicked: {error}"))??));
        }
        // These stores prove nothing about each other, because all of them had begun.
        if answers.iter().any(|(.., answer)| answer.is_ok()) {
            self.expected.resolve_doubts();
        }
        for (id, version, answer) in answers {
            self.note_store(id, version, true, answer)?;
        }
        Ok(())
    }

    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    pub(super) fn note_store(
        &mut self,
        id: SpoolId,
        version: u64,
        forced: bool,
        answer: anyhow::Result<()>,
    ) -> Result<(), String> {
        let Err(error) = answer else {
            self.expected.stored(id, version, forced);
            return Ok(());
        };
        let root = error.root_cause();
        if self.is_struck() {
            self.record_outcome(Outcome::Recovered);
        }
        if root.is::<SpoolUnhealthyError>() {
            if self.is_struck() { Ok(()) } else { Err("the gate is shut on a disk that works".to_owned()) }
        } else if root.is::<SpoolCallerDeadlineExceeded>() || root.is::<SpoolBackpressureTimeout>() {
            if error.is::<InDoubt>() {
                self.expected.doubted(id, version);
            }
            Ok(())
        } else {
            Err(format!("a store failed with an unexpected error: {error:#}"))
        }
    }

    async fn remove(&mut self, open: &Open, message: usize) -> Result<(), String> {
        let id = self.ids[message];
        match timeout(self.subject.patience, open.spool.remove(id)).await {
            Ok(Ok(())) => self.expected.removed(id),
            Ok(Err(error)) => return Err(format!("a remove failed: {error:#}")),
            Err(_) => return Err("a remove hangs".to_owned()),
        }
        self.check(open, id).await
    }

    async fn load_all(&mut self, open: &Open) -> Result<(), String> {
        for id in self.expected.ids() {
            self.check(open, id).await?;
        }
        Ok(())
    }

    /// Checks that a load returns the visible version. It may fail while the disk is broken.
    async fn check(&mut self, open: &Open, id: SpoolId) -> Result<(), String> {
        let visible = self.expected.visible(id);
        match load(open, id).await? {
            Loaded::Version(version) if visible == Some(version) => {}
            Loaded::Absent if visible.is_none() => {}
            Loaded::Version(version) => {
                self.violations
                    .push(format!("{id} is loaded as version {version}: callers should get {visible:?}"));
            }
            Loaded::Absent => {
                self.violations.push(format!("{id} is not found: callers should get {visible:?}"));
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
            Ok(seen) => Ok(Loaded::Version(seen.version.unwrap_or(0))),
            Err(wrong) => Err(wrong.to_string()),
        },
        Err(error) if error.root_cause().is::<NotFound>() => Ok(Loaded::Absent),
        Err(error) if error.root_cause().is::<Corrupt>() => Err(format!("{id} is damaged: {error:#}")),
        Err(error) => Ok(Loaded::Unknown(format!("{error:#}"))),
    }
}
