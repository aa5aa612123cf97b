//! The tasks that run during the calls: upkeep, enumerations, and a flood of replacements.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Result;
use chrono::{DateTime, Utc};
use futures_lite::future;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tidespool_core::{Closed, Spool, SpoolEntry};

use super::Subject;
use super::caller::{Caller, RoundState};
use super::history::{Entry, Outcome, Request, Source};
use super::plan::{Action, COLD, FLOODED, Flood, HOT, Step};
use crate::payload;

/// The records of the upkeep of a round.
#[derive(Default)]
pub(super) struct UpkeepLog {
    /// The entries that enumerations received.
    pub(super) entries: Vec<Entry>,
    /// The beginnings of the calls that made all data durable.
    pub(super) barriers: Vec<u64>,
    /// Enumerations that ran to their end.
    pub(super) enumerations: u64,
}

/// Makes one kind of upkeep call after the other until the stop.
pub(super) async fn upkeep(
    subject: Arc<dyn Subject>,
    state: Arc<RoundState>,
    spool: Arc<dyn Spool>,
    mut rng: SmallRng,
) -> UpkeepLog {
    let mut kept = UpkeepLog::default();
    let mut stop = state.stop.subscribe();
    let mut number = 0;
    while !*stop.borrow_and_update() {
        let kind = rng.random_range(0..100);
        number += 1;
        let began = state.clock.tick();
        let one = async {
            match kind {
                0..20 => spool.cleanup().await,
                20..35 => spool.compact().await,
                35..50 => spool.advise_low_memory().await.map(drop),
                50..70 => subject.reconfigure(rng.random()),
                _ => enumerate(&state, &spool, number, &mut rng, &mut kept).await,
            }
        };
        let stopped = async {
            let _ = stop.wait_for(|stop| *stop).await;
            // The upkeep call is dropped.
            Err(Closed.into())
        };
        match future::or(one, stopped).await {
            Ok(()) if (20..50).contains(&kind) => kept.barriers.push(began),
            Ok(()) => {}
            Err(_) if state.is_closing() => break,
            Err(err) => {
                let names = ["cleanup", "compact", "advise_low_memory", "reconfigure", "enumerate"];
                let kind = [20, 35, 50, 70].iter().filter(|bound| kind >= **bound).count();
                state.report(format!("{}: {err:#}", names[kind]));
                break;
            }
        }
        // At most 1 ms, so that the callers get CPU time, too.
        tokio::time::sleep(std::time::Duration::from_millis(rng.random_range(0..2))).await;
    }
    kept
}

/// Enumerates the spool. Each entry is a load, and each missing entry is a load of nothing, from
/// the beginning of the enumeration on.
async fn enumerate(
    state: &Arc<RoundState>,
    spool: &Arc<dyn Spool>,
    number: u64,
    rng: &mut SmallRng,
    kept: &mut UpkeepLog,
) -> Result<()> {
    let reader = Caller::new(state, spool, Source::Enumeration(number));
    let begun = reader.begin();
    let (sender, receiver) = async_channel::bounded(rng.random_range(1..=16));
    spool.enumerate(sender, DateTime::<Utc>::MAX_UTC)?;
    let mut left: BTreeSet<_> = state.ids.iter().copied().collect();
    let (is_slow, cut_after) = (rng.random_bool(0.3), rng.random_bool(0.15).then(|| rng.random_range(0..10)));
    let mut received = 0;
    while let Ok(entry) = receiver.recv().await {
        let (id, data) = match entry {
            SpoolEntry::Item { id, data } => (id, data),
            SpoolEntry::Corrupt { id, error } => {
                state.report(format!("message {id} was enumerated as damaged: {error}"));
                continue;
            }
        };
        if !left.remove(&id) {
            state.report(format!("message {id} was enumerated twice, or was never stored"));
        }
        match payload::read(id, &data) {
            Ok(seen) => kept.entries.push(reader.end(id, Request::Load, begun, Outcome::Saw(Some(seen)))),
            Err(err) => state.report(format!("enumerated: {err}")),
        }
        received += 1;
        if cut_after == Some(received) {
            return Ok(());
        }
        if is_slow {
            tokio::task::yield_now().await;
        }
    }
    // A shutdown ends the enumeration early.
    if !state.is_closing() {
        for id in left {
            kept.entries.push(reader.end(id, Request::Load, begun, Outcome::Saw(None)));
        }
        kept.enumerations += 1;
    }
    Ok(())
}

/// Replaces its own messages, one after the other, until the callers have made `calls` calls.
pub(super) async fn flood(
    state: Arc<RoundState>,
    spool: Arc<dyn Spool>,
    task: usize,
    flood: Flood,
    calls: u64,
) -> Vec<Entry> {
    let mut caller = Caller::new(&state, &spool, Source::Flood(task));
    let first = HOT + COLD + task * FLOODED;
    let mut rng = SmallRng::seed_from_u64(task as u64);
    for (number, slot) in (0..flood.stores).zip((first..first + FLOODED).cycle()) {
        let len = payload::HEADER_BYTES + rng.random_range(0..flood.len);
        // If stores wait for the disk, removals are the only data to flush.
        let action = match number / FLOODED as u64 % 4 {
            3 => Action::Remove { slot },
            _ => Action::Store { slot, len, forced: false, deadline: None },
        };
        if !caller.step(Step::plain(action)).await || state.calls.load(Ordering::SeqCst) >= calls {
            break;
        }
        if number % FLOODED as u64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    caller.entries
}

/// Loads and enumerates all messages while no other task runs.
pub(super) async fn final_check(
    state: Arc<RoundState>,
    spool: Arc<dyn Spool>,
    mut rng: SmallRng,
) -> UpkeepLog {
    let mut kept = UpkeepLog::default();
    let mut caller = Caller::new(&state, &spool, Source::FinalCheck);
    // After this call, all data is durable.
    let began = state.clock.tick();
    match spool.advise_low_memory().await {
        Ok(_) => kept.barriers.push(began),
        Err(err) => state.report(format!("advise_low_memory: {err:#}")),
    }
    for slot in 0..state.ids.len() {
        caller.step(Step::plain(Action::Load { slot })).await;
    }
    if let Err(err) = enumerate(&state, &spool, 0, &mut rng, &mut kept).await {
        state.report(format!("enumerate: {err:#}"));
    }
    kept.entries.append(&mut caller.entries);
    kept
}
