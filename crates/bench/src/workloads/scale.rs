//! `scale`: measures the cost of an operation as the number of live messages grows.
//!
//! The main figures of the report are those of the stores that fill the spool. `extra` has the
//! curve: for each number of live messages the cost of an unsynced store, of a load from memory and
//! of a removal, each measured alone, and the memory for each message.
//!
//! The ids are consecutive, so no list of them adds to the memory of the process.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};
use tidespool_core::SpoolId;
use tokio::task::coop::consume_budget;

use super::drain_young::young;
use crate::callers::{self, Caller, Clock, Done};
use crate::engine::{Engine, Needs};
use crate::figures::{ratio, rounded};
use crate::plan::Size;
use crate::proc::{disk_write_bytes, rss_bytes};
use crate::run::{Measured, Run, Written};
use crate::{disk, progress, set};

const MESSAGES: u64 = 10_000_000;

/// The numbers of live messages at which costs are measured. The last one is that of the plan.
const LEVELS: [u64; 3] = [10_000, 100_000, 1_000_000];

/// Operations of each kind measured at a level; at most half of the level.
const PROBES: u64 = 20_000;

/// Messages stored between two flushes.
const FILL_AT_ONCE: u64 = 200_000;

/// Memory budget for each message, enough for the index of the engine.
const MEMORY_FOR_EACH: u64 = 320;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Store,
    Load,
    Remove,
}

/// The state of a spool that is being filled.
struct Filling<'a, 'b> {
    run: &'a Run<'b>,
    engine: &'a Arc<Engine>,
    len: usize,
    /// The first 8 bytes of an id, before the number of the message is added.
    first: u64,
    /// The numbers of the live messages.
    live: Range<u64>,
    extra: BTreeMap<String, f64>,
    /// Resident bytes and live messages at the previous level.
    before: (u64, u64),
}

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    let Size::Bytes(len) = run.plan.size else {
        bail!("scale needs messages of one size: give --size BYTES")
    };
    let count = run.plan.messages.unwrap_or(MESSAGES);
    disk::require(&run.dir, count.saturating_mul(len as u64 + 512))?;
    let levels: Vec<u64> = LEVELS.into_iter().filter(|level| *level < count).chain([count]).collect();
    let needs = young(run, count);
    let budget = (512 << 20) + count.saturating_mul(MEMORY_FOR_EACH);
    let needs = Needs { memory_budget: Some(needs.memory_budget.unwrap_or(budget)), ..needs };

    let before = disk_write_bytes()?;
    let (fills, extra) =
        run.with(&needs, async |engine| fill_by_levels(run, engine, len, &levels).await).await?;
    let mut fills = fills.into_iter().map(Measured::from);
    let Some(mut all) = fills.next() else { bail!("interrupted before the first message") };
    for fill in fills {
        all.append(fill)?;
    }
    all.written = Written::Since(before);
    all.extra = extra;
    Ok(all)
}

async fn fill_by_levels(
    run: &Run<'_>,
    engine: &Arc<Engine>,
    len: usize,
    levels: &[u64],
) -> Result<(Vec<Done>, BTreeMap<String, f64>)> {
    let first = SpoolId::new().as_bytes().first_chunk().copied().unwrap_or_default();
    let mut filling = Filling {
        run,
        engine,
        len,
        first: u64::from_be_bytes(first),
        live: 0..0,
        extra: BTreeMap::new(),
        before: (rss_bytes()?, 0),
    };
    let mut fills = Vec::with_capacity(levels.len());
    for &level in levels {
        if run.stop.is_set() {
            break;
        }
        while filling.count() < level && !run.stop.is_set() {
            fills.push(filling.store(FILL_AT_ONCE.min(level - filling.count())).await?);
            // Without these pauses the backlog would make the spool unhealthy.
            engine.advise_low_memory().await?;
        }
        set::settle(run, engine).await?;
        filling.measure(level).await?;
    }
    filling.growth(levels);
    Ok((fills, filling.extra))
}

impl Filling<'_, '_> {
    fn count(&self) -> u64 {
        self.live.end - self.live.start
    }

    async fn store(&mut self, count: u64) -> Result<Done> {
        let new = self.live.end..self.live.end + count;
        self.live.end = new.end;
        self.each(new, Step::Store).await
    }

    /// Applies `step` once to each message of `numbers`.
    async fn each(&self, numbers: Range<u64>, step: Step) -> Result<Done> {
        let next = Arc::new(AtomicU64::new(numbers.start));
        let (first, len) = (self.first, self.len);
        let work = |mut caller: Caller| {
            let next = Arc::clone(&next);
            async move {
                while caller.goes_on() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        break;
                    }
                    one(&mut caller, id(first, number), len, step).await?;
                    consume_budget().await;
                }
                Ok((caller, ()))
            }
        };
        let run = self.run;
        let working = callers::run(self.engine, &run.plan, &run.pool, Clock::counted(&run.stop), work);
        let what = if step == Step::Store { "storing" } else { "measuring" };
        Ok(progress::shown(what, &next, numbers.end, working).await?.0)
    }

    async fn measure(&mut self, level: u64) -> Result<()> {
        self.measure_memory(level).await?;
        let probes = PROBES.min(level / 2).max(1);
        let stored = self.store(probes).await?;
        self.note("store", level, &stored);
        // The newest messages are in memory.
        let loaded = self.each(self.live.end - probes..self.live.end, Step::Load).await?;
        self.note("load", level, &loaded);
        let oldest = self.live.start..self.live.start + probes;
        self.live.start = oldest.end;
        let removed = self.each(oldest, Step::Remove).await?;
        self.note("remove", level, &removed);
        Ok(())
    }

    /// Records the resident memory for each message since the previous level, without clean copies.
    async fn measure_memory(&mut self, level: u64) -> Result<()> {
        self.engine.advise_low_memory().await?;
        let resident = rss_bytes()?;
        let (before, live_before) = self.before;
        self.before = (resident, level);
        let grown = ratio(resident.saturating_sub(before), level.saturating_sub(live_before));
        self.extra.insert(format!("resident_bytes_per_message_at_{level}"), rounded(grown));
        self.extra.insert(format!("resident_bytes_at_{level}"), ratio(resident, 1));
        if let Engine::Tidespool(spool) = &**self.engine {
            let gauges = spool.stats().gauges;
            let each = ratio(gauges.index_bytes, gauges.index_entries);
            self.extra.insert(format!("index_bytes_per_message_at_{level}"), rounded(each));
        }
        Ok(())
    }

    fn note(&mut self, what: &str, level: u64, done: &Done) {
        for (name, us) in [
            ("p50", done.latency.quantile_us(0.5)),
            ("p99", done.latency.quantile_us(0.99)),
            ("mean", done.latency.mean_us()),
        ] {
            self.extra.insert(format!("{what}_{name}_us_at_{level}"), rounded(us));
        }
    }

    /// Records the p50 at the last level as a multiple of that at the first.
    fn growth(&mut self, levels: &[u64]) {
        let (Some(first), Some(last)) = (levels.first(), levels.last()) else { return };
        for what in ["store", "load", "remove"] {
            let at = |level: &u64| self.extra.get(&format!("{what}_p50_us_at_{level}")).copied();
            if let (Some(first), Some(last)) = (at(first), at(last))
                && first > 0.0
            {
                self.extra.insert(format!("{what}_p50_growth"), rounded(last / first));
            }
        }
    }
}

async fn one(caller: &mut Caller, id: SpoolId, len: usize, step: Step) -> Result<()> {
    let data = if step == Step::Store { Some(caller.messages.next().1) } else { None };
    let begun = Instant::now();
    match (step, data) {
        (Step::Store, Some(data)) => caller.store(id, data, false).await?,
        (Step::Load, _) => caller.load(id, len).await?,
        _ => caller.remove(id).await?,
    }
    caller.record(begun, len)
}

/// Returns a UUID of version 6 whose time is `number` × 100 ns after that of the first id.
pub(super) fn id(first: u64, number: u64) -> SpoolId {
    // The version is between the upper 48 bits and the lower 12 bits of the time.
    let time = ((first >> 16) << 12 | (first & 0x0fff)) + number;
    let time = ((time >> 12) << 16) | 0x6000 | (time & 0x0fff);
    let mut bytes = [0x80; 16];
    for (byte, of_time) in bytes.iter_mut().zip(time.to_be_bytes()) {
        *byte = of_time;
    }
    SpoolId::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn ids_are_in_the_order_of_time() {
        let minted = SpoolId::new();
        let first = u64::from_be_bytes(*minted.as_bytes().first_chunk().unwrap());
        assert_eq!(id(first, 0).created(), minted.created());
        let mut before = id(first, 0);
        for number in 1..10_000 {
            let next = id(first, number);
            assert!(before < next);
            before = next;
        }
        let later = id(first, 10_000_000).created().unwrap() - minted.created().unwrap();
        assert_eq!(later, TimeDelta::seconds(1));
    }
}
