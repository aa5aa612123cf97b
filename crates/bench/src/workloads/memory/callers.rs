//! The callers: tasks with one call each at a time, and messages that follow from their number.
//!
//! They differ from the callers of the other workloads, which keep latencies: those tables would
//! count as memory of the spool.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::{RngExt as _, SeedableRng as _};
use tidespool::TieredSpool;
use tidespool_core::{NotFound, Spool as _, SpoolBackpressureTimeout, SpoolId, SpoolUnhealthyError};
use tokio::task::JoinSet;
use tokio::task::coop::consume_budget;

use crate::payload::{Payload, Random, random_bytes};
use crate::workloads::scale;

/// The pause after a rejected store.
const PAUSE: Duration = Duration::from_millis(20);

/// A store that is rejected for longer than this is an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// Number of positions in the random bytes at which a payload can begin.
const STARTS: usize = 1 << 20;

/// The payload bytes of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sizes {
    All(usize),
    /// Uniform from 0 to this.
    UpTo(usize),
}

impl Sizes {
    pub(super) const fn largest(self) -> usize {
        let (Self::All(largest) | Self::UpTo(largest)) = self;
        largest
    }

    pub(super) const fn mean(self) -> usize {
        match self {
            Self::All(len) => len,
            Self::UpTo(largest) => largest / 2,
        }
    }
}

/// The messages of a mix, by number.
#[derive(Debug)]
pub(super) struct Messages {
    bytes: Vec<u8>,
    sizes: Sizes,
    seed: u64,
    /// The first 8 bytes of the id of message 0.
    first: u64,
}

impl Messages {
    pub(super) fn new(sizes: Sizes, seed: u64) -> Self {
        let first = SpoolId::new().as_bytes().first_chunk().copied().unwrap_or_default();
        let bytes = random_bytes(STARTS + sizes.largest(), seed);
        Self { bytes, sizes, seed, first: u64::from_be_bytes(first) }
    }

    pub(super) fn id(&self, number: u64) -> SpoolId {
        scale::id(self.first, number)
    }

    pub(super) fn len(&self, number: u64) -> usize {
        match self.sizes {
            Sizes::All(len) => len,
            Sizes::UpTo(largest) => self.random(number).random_range(0..=largest),
        }
    }

    fn payload(&self, number: u64) -> Payload {
        let len = self.len(number);
        let start = self.random(!number).random_range(0..STARTS);
        Arc::new(Box::from(self.bytes.get(start..start + len).unwrap_or_default()))
    }

    fn random(&self, number: u64) -> Random {
        Random::seed_from_u64(self.seed ^ number)
    }
}

/// The calls to make.
#[derive(Debug, Clone)]
pub(super) enum Work {
    /// Store each of these messages.
    Store(Range<u64>),
    /// Load `count` messages at random among these numbers, of which only every `step`-th counts.
    Load { among: Range<u64>, step: u64, count: u64 },
    /// Remove every `step`-th of these messages.
    Remove { among: Range<u64>, step: u64 },
    /// From this number on, for this time: store a message, load it, load an earlier one, and
    /// remove the message that is `live` numbers older.
    Churn { from: u64, live: u64, time: Duration, synced: bool },
}

/// The tasks.
#[derive(Clone)]
pub(super) struct Callers {
    pub(super) spool: Arc<TieredSpool>,
    pub(super) messages: Arc<Messages>,
    pub(super) count: usize,
    /// Number of successful calls.
    pub(super) calls: Arc<AtomicU64>,
}

impl Callers {
    /// Runs `work` with all callers. Returns the first unused number.
    pub(super) async fn run(&self, work: Work) -> Result<u64> {
        let next = Arc::new(AtomicU64::new(match &work {
            Work::Store(numbers) => numbers.start,
            Work::Load { .. } | Work::Remove { .. } => 0,
            Work::Churn { from, .. } => *from,
        }));
        let until = Instant::now();
        let mut tasks = JoinSet::new();
        for caller in 0..self.count {
            let (callers, work, next) = (self.clone(), work.clone(), Arc::clone(&next));
            tasks.spawn(async move {
                let mut random = Random::seed_from_u64(callers.messages.seed.wrapping_add(caller as u64));
                while callers.step(&work, next.fetch_add(1, Ordering::Relaxed), until, &mut random).await? {
                    callers.calls.fetch_add(1, Ordering::Relaxed);
                    consume_budget().await;
                }
                anyhow::Ok(())
            });
        }
        // Dropping the set ends the other tasks.
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(next.load(Ordering::Relaxed))
    }

    /// Makes the calls of one turn. Returns `false` if the work is done.
    async fn step(&self, work: &Work, turn: u64, begun: Instant, random: &mut Random) -> Result<bool> {
        match work {
            Work::Store(numbers) => {
                if turn >= numbers.end {
                    return Ok(false);
                }
                self.store(turn, false).await?;
            }
            Work::Load { among, step, count } => {
                if turn >= *count {
                    return Ok(false);
                }
                let places = (among.end - among.start) / step;
                self.load(among.start + step * random.random_range(0..places)).await?;
            }
            Work::Remove { among, step } => {
                let number = among.start + turn * step;
                if number >= among.end {
                    return Ok(false);
                }
                self.remove(number).await?;
            }
            Work::Churn { from, live, time, synced } => {
                if begun.elapsed() >= *time {
                    return Ok(false);
                }
                self.store(turn, *synced && turn.is_multiple_of(2)).await?;
                self.load(turn).await?;
                let before = random.random_range(0..*live / 2);
                self.load_if_there(turn.saturating_sub(before).max(*from)).await?;
                if let Some(old) = turn.checked_sub(*live).filter(|old| old >= from) {
                    self.remove(old).await?;
                }
            }
        }
        Ok(true)
    }

    /// Stores a message, and retries while the spool rejects it.
    async fn store(&self, number: u64, synced: bool) -> Result<()> {
        let (id, begun) = (self.messages.id(number), Instant::now());
        let data = self.messages.payload(number);
        loop {
            let Err(error) = self.spool.store(id, Arc::clone(&data), synced, None).await else {
                return Ok(());
            };
            let cause = error.root_cause();
            if !(cause.is::<SpoolUnhealthyError>() || cause.is::<SpoolBackpressureTimeout>())
                || begun.elapsed() > PATIENCE
            {
                return Err(error)
                    .with_context(|| format!("the bench stopped: store of message {id} failed"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn load(&self, number: u64) -> Result<()> {
        let id = self.messages.id(number);
        let loaded = self.spool.load(id).await;
        let loaded = loaded.with_context(|| format!("the bench stopped: load of message {id} failed"))?;
        let stored = self.messages.len(number);
        if loaded.len() != stored {
            bail!("message {id} was stored with {stored} bytes and loaded with {}", loaded.len());
        }
        Ok(())
    }

    /// Loads a message that another caller may not have stored yet.
    async fn load_if_there(&self, number: u64) -> Result<()> {
        match self.load(number).await {
            Err(error) if error.root_cause().is::<NotFound>() => Ok(()),
            loaded => loaded,
        }
    }

    async fn remove(&self, number: u64) -> Result<()> {
        let id = self.messages.id(number);
        self.spool
            .remove(id)
            .await
            .with_context(|| format!("the bench stopped: remove of message {id} failed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_follows_from_its_number_and_all_differ() {
        let messages = Messages::new(Sizes::UpTo(1 << 20), 1);
        let mut sum = 0;
        for number in 0..1_000 {
            assert_eq!(messages.payload(number).len(), messages.len(number));
            sum += messages.len(number);
        }
        assert_eq!(messages.payload(7), messages.payload(7));
        assert!((450 << 10..574 << 10).contains(&(sum / 1_000)), "the mean is {}", sum / 1_000);
        let same = Messages::new(Sizes::All(64), 1);
        assert_ne!(same.payload(1), same.payload(2));
        assert!(same.id(1) < same.id(2));
    }
}
