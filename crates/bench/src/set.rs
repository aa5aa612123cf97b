//! Sets of messages: storing a set, and loading or removing each of its messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tidespool_core::SpoolId;
use tokio::task::coop::consume_budget;

use crate::callers::{self, Caller, Clock, Done};
use crate::engine::Engine;
use crate::plan::Plan;
use crate::progress;
use crate::run::Run;
use crate::{disk, proc};

/// The least number of callers that fill a set when filling is not measured.
const FILLERS: usize = 64;

/// The longest that [`settle`] waits.
const SETTLED_AFTER: Duration = Duration::from_secs(120);

/// Bytes of headers, keys and the like for each message, in the check of free disk space.
const OVERHEAD: u64 = 256;

/// A stored message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) id: SpoolId,
    /// Payload bytes.
    pub(crate) len: u32,
}

/// How much to store.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Amount {
    Messages(u64),
    /// Payload bytes, at least this many.
    Bytes(u64),
}

impl Amount {
    fn total(self) -> u64 {
        match self {
            Self::Messages(total) | Self::Bytes(total) => total,
        }
    }

    fn of(self, len: usize) -> u64 {
        match self {
            Self::Messages(_) => 1,
            Self::Bytes(_) => len as u64,
        }
    }
}

/// What to do with each message of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Load,
    Remove,
}

/// Stores a set and shows the progress on a terminal. The callers are those of the plan, at least
/// [`FILLERS`]. The disk must have twice the space of the set.
///
/// Returns the messages oldest first. After an interrupt they are fewer than `count`.
pub(crate) async fn fill(run: &Run<'_>, engine: &Arc<Engine>, count: u64) -> Result<Vec<Stored>> {
    let mean = run.plan.size.mean() as u64;
    disk::require(&run.dir, count.saturating_mul(mean + OVERHEAD).saturating_mul(2))?;
    let plan = Arc::new(Plan { concurrency: run.plan.concurrency.max(FILLERS), ..(*run.plan).clone() });
    let live = Arc::default();
    let (_, stored) = store(run, engine, &plan, Amount::Messages(count), &live).await?;
    Ok(stored)
}

/// Stores a set as a measured part, with the callers of the plan. Adds the payload bytes to `live`.
pub(crate) async fn store(
    run: &Run<'_>,
    engine: &Arc<Engine>,
    plan: &Arc<Plan>,
    amount: Amount,
    live: &Arc<AtomicU64>,
) -> Result<(Done, Vec<Stored>)> {
    let claimed = Arc::new(AtomicU64::new(0));
    let work = |caller| store_some(caller, amount, Arc::clone(&claimed), Arc::clone(live));
    let storing = callers::run(engine, plan, &run.pool, Clock::counted(&run.stop), work);
    let (done, parts) = progress::shown("storing", &claimed, amount.total(), storing).await?;
    let mut stored = Vec::with_capacity(parts.iter().map(Vec::len).sum());
    for part in parts {
        stored.extend(part);
    }
    // The ids are in the order of time.
    stored.sort_unstable_by_key(|message| message.id);
    Ok((done, stored))
}

async fn store_some(
    mut caller: Caller,
    amount: Amount,
    claimed: Arc<AtomicU64>,
    live: Arc<AtomicU64>,
) -> Result<(Caller, Vec<Stored>)> {
    let mut stored = Vec::new();
    while caller.goes_on() {
        let (id, data) = caller.messages.next();
        let len = data.len();
        if claimed.fetch_add(amount.of(len), Ordering::Relaxed) >= amount.total() {
            break;
        }
        let begun = Instant::now();
        caller.store(id, data, caller.plan.force_sync).await?;
        caller.record(begun, len)?;
        live.fetch_add(len as u64, Ordering::Relaxed);
        stored.push(Stored { id, len: u32::try_from(len).unwrap_or(u32::MAX) });
        consume_budget().await;
    }
    Ok((caller, stored))
}

/// Loads or removes each message of a set once, in order, with the callers of the plan. If the plan
/// has a `drain_rate`, it limits their rate. Removals subtract the payload bytes from `live`.
pub(crate) async fn go_through(
    run: &Run<'_>,
    engine: &Arc<Engine>,
    set: Vec<Stored>,
    step: Step,
    clock: Clock,
    live: &Arc<AtomicU64>,
) -> Result<Done> {
    let total = set.len() as u64;
    let next = Arc::new(AtomicUsize::new(0));
    let gone = Arc::new(AtomicU64::new(0));
    let set: Arc<[Stored]> = set.into();
    let start = Instant::now();
    let work = |mut caller: Caller| {
        let (set, next, gone, live) =
            (Arc::clone(&set), Arc::clone(&next), Arc::clone(&gone), Arc::clone(live));
        async move {
            while caller.goes_on() {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                let Some(message) = set.get(nth) else { break };
                if let Some(rate) = caller.plan.drain_rate {
                    caller.sleep_until(start + Duration::from_secs(nth as u64) / rate).await;
                }
                let len = message.len as usize;
                let begun = Instant::now();
                match step {
                    Step::Load => caller.load(message.id, len).await?,
                    Step::Remove => caller.remove(message.id).await?,
                }
                caller.record(begun, len)?;
                gone.fetch_add(1, Ordering::Relaxed);
                if step == Step::Remove {
                    live.fetch_sub(len as u64, Ordering::Relaxed);
                }
                consume_budget().await;
            }
            Ok((caller, ()))
        }
    };
    let what = if step == Step::Load { "loading" } else { "removing" };
    let going = callers::run(engine, &run.plan, &run.pool, clock, work);
    Ok(progress::shown(what, &gone, total, going).await?.0)
}

/// Waits until everything is durable, if the engine reports it, and until no more is written for a
/// while: then background work that follows immediately is done. Work that the engine starts later
/// is not covered.
pub(crate) async fn settle(run: &Run<'_>, engine: &Engine) -> Result<()> {
    let begun = Instant::now();
    let mut written = proc::disk_write_bytes()?;
    let mut quiet_since = begun;
    while !run.stop.is_set() && begun.elapsed() < SETTLED_AFTER {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = proc::disk_write_bytes()?;
        if now != written || engine.is_durable() == Some(false) {
            written = now;
            quiet_since = Instant::now();
        } else if quiet_since.elapsed() >= run.quiet {
            break;
        }
    }
    Ok(())
}
