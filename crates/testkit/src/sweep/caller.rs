use std::time::{Duration, Instant};

use tidespool_core::{
    Corrupt, InDoubt, NotFound, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId,
    SpoolUnhealthyError,
};
use tokio::time::timeout;

use super::case::{Case, Open, Outcome};
use super::script::{Step, Waits};
use crate::payload;
use crate::wait::PATIENCE;

/// How long upkeep is waited for on a broken disk. It goes on beside the rest, and has to end when the disk works again.
const UPKEEP_WAIT: Duration = Duration::from_millis(200);

/// What became of a load.
pub(super) enum Loaded {
    Version(u64),
    Absent,
    /// The disk did not answer.
    Unknown(String),
}

impl Case {
    pub(super) async fn perform(&mut self, open: &Open, step: Step) -> Result<(), String> {
        match step {
            Step::Store(message, len, waits) => self.store(open, message, len, waits == Waits::Forced).await,
            Step::Together(first, count) => self.store_together(open, first, count).await,
            Step::Remove(message) => self.remove(open, message).await,
            Step::Flush => self.upkeep(open, "advise_low_memory").await,
            Step::Compact => self.upkeep(open, "compact").await,
            Step::Cleanup => self.upkeep(open, "cleanup").await,
            Step::LoadAll => self.load_all(open).await,
            Step::Enumerate => self.enumerate(open).await,
        }
    }

    /// On a disk that is broken, or may be, nobody waits for long.
    fn deadline(&self) -> Instant {
        Instant::now() + if self.is_sticky() { Duration::from_secs(1) } else { PATIENCE / 2 }
    }

    async fn store(&mut self, open: &Open, message: usize, len: usize, forced: bool) -> Result<(), String> {
        let (id, version) = (self.ids[message], self.next_version());
        let answer = ask(open, id, version, len, forced, self.deadline()).await?;
        if forced && answer.is_ok() {
            self.book.end_doubts();
        }
        self.note_store(id, version, forced, answer)?;
        self.check(open, id).await
    }

    async fn store_together(&mut self, open: &Open, first: usize, count: usize) -> Result<(), String> {
        let deadline = self.deadline();
        let mut asked = Vec::new();
        for message in first..first + count {
            let (id, version, open) = (self.ids[message], self.next_version(), open.clone());
            let asking =
                tokio::spawn(async move { ask(&open, id, version, 1000 + message, true, deadline).await });
            asked.push((id, version, asking));
        }
        let mut answers = Vec::new();
        for (id, version, asking) in asked {
            answers.push((id, version, asking.await.map_err(|error| format!("a store panicked: {error}"))??));
        }
        // They prove nothing about each other: all of them had begun.
        if answers.iter().any(|(.., answer)| answer.is_ok()) {
            self.book.end_doubts();
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
            self.book.stored(id, version, forced);
            return Ok(());
        };
        let root = error.root_cause();
        if self.is_struck() {
            self.noticed(Outcome::Recovered);
        }
        if root.is::<SpoolUnhealthyError>() {
            if self.is_struck() { Ok(()) } else { Err("the gate is shut on a disk that works".to_owned()) }
        } else if root.is::<SpoolCallerDeadlineExceeded>() || root.is::<SpoolBackpressureTimeout>() {
            if error.is::<InDoubt>() {
                self.book.doubted(id, version);
            }
            Ok(())
        } else {
            Err(format!("a store failed with an error of the wrong kind: {error:#}"))
        }
    }

    async fn remove(&mut self, open: &Open, message: usize) -> Result<(), String> {
        let id = self.ids[message];
        match timeout(self.subject.patience, open.spool.remove(id)).await {
            Ok(Ok(())) => self.book.removed(id),
            Ok(Err(error)) => return Err(format!("a remove failed: {error:#}")),
            Err(_) => return Err("a remove hangs".to_owned()),
        }
        self.check(open, id).await
    }

    async fn load_all(&mut self, open: &Open) -> Result<(), String> {
        for id in self.book.ids() {
            self.check(open, id).await?;
        }
        Ok(())
    }

    /// One message is what callers were told. Not told is fine while the disk is broken.
    async fn check(&mut self, open: &Open, id: SpoolId) -> Result<(), String> {
        let now = self.book.now(id);
        match load(open, id).await? {
            Loaded::Version(version) if now == Some(version) => {}
            Loaded::Absent if now.is_none() => {}
            Loaded::Version(version) => {
                self.violations
                    .push(format!("{id} is loaded as version {version}: callers were told {now:?}"));
            }
            Loaded::Absent => self.violations.push(format!("{id} is not found: callers were told {now:?}")),
            Loaded::Unknown(_) if self.is_struck() => self.noticed(Outcome::Recovered),
            Loaded::Unknown(error) => {
                self.violations.push(format!("a load failed on a disk that works: {error}"));
            }
        }
        Ok(())
    }

    /// Where the disk is broken it may wait; then whoever receives goes away, which must end it.
    async fn enumerate(&mut self, open: &Open) -> Result<(), String> {
        let (began, mut enumeration) = (Instant::now(), std::pin::pin!(super::look::enumerate(open)));
        let found = loop {
            match timeout(UPKEEP_WAIT, &mut enumeration).await {
                Ok(found) => break found?,
                Err(_) if self.is_broken() => return Ok(()),
                Err(_) if began.elapsed() > self.subject.patience => {
                    return Err("an enumeration hangs".to_owned());
                }
                Err(_) => {}
            }
        };
        self.violations
            .extend(self.book.differences(&found).into_iter().map(|what| format!("enumerated: {what}")));
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
            // `cleanup` files what is old, and syncs nothing else.
            Ok(()) if what != "cleanup" => self.book.settle(),
            Ok(()) => {}
            Err(_) if self.is_struck() => self.noticed(Outcome::Recovered),
            Err(error) => return Err(format!("{what} failed on a disk that works: {error:#}")),
        }
        Ok(())
    }
}

/// A store, and what it was answered with. `Err`: it does not end by its deadline.
pub(super) async fn ask(
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

/// A load, and what was found. `Err`: it hangs, or what it found is wrong.
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
