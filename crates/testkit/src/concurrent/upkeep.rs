//! What goes on beside the callers: upkeep, enumerations, and a flood of replacements.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Result;
use chrono::{DateTime, Utc};
use futures_lite::future;
use tidespool_core::{Closed, Spool, SpoolEntry};

use super::Subject;
use super::caller::{Caller, Stage};
use super::history::{Asked, Entry, Outcome, Who};
use super::plan::{Action, COLD, FLOODED, Flood, HOT, Step};
use crate::payload;
use crate::rng::Rng;

/// What the upkeep of a round leaves behind.
#[derive(Default)]
pub(super) struct Kept {
    /// What enumerations saw.
    pub(super) entries: Vec<Entry>,
    /// The beginnings of the calls that made everything durable.
    pub(super) barriers: Vec<u64>,
    /// Enumerations that ran to their end.
    pub(super) enumerations: u64,
}

/// Calls one kind of upkeep after the other until the stop.
pub(super) async fn upkeep(
    subject: Arc<dyn Subject>,
    stage: Arc<Stage>,
    spool: Arc<dyn Spool>,
    mut rng: Rng,
) -> Kept {
    let mut kept = Kept::default();
    let mut stop = stage.stop.subscribe();
    let mut number = 0;
    while !*stop.borrow_and_update() {
        let kind = rng.below(100);
        number += 1;
        let began = stage.clock.tick();
        let one = async {
            match kind {
                0..20 => spool.cleanup().await,
                20..35 => spool.compact().await,
                35..50 => spool.advise_low_memory().await.map(drop),
                50..70 => subject.reconfigure(rng.number()),
                _ => enumerate(&stage, &spool, number, &mut rng, &mut kept).await,
            }
        };
        let stopped = async {
            let _ = stop.wait_for(|stop| *stop).await;
            // It is dropped.
            Err(Closed.into())
        };
        match future::or(one, stopped).await {
            Ok(()) if (20..50).contains(&kind) => kept.barriers.push(began),
            Ok(()) => {}
            Err(_) if stage.is_closing() => break,
            Err(err) => {
                let names = ["cleanup", "compact", "advise_low_memory", "reconfigure", "enumerate"];
                let kind = [20, 35, 50, 70].iter().filter(|bound| kind >= **bound).count();
                stage.report(format!("{}: {err:#}", names[kind]));
                break;
            }
        }
        // One millisecond is no wait for anything: the callers have the machine, too.
        tokio::time::sleep(std::time::Duration::from_millis(rng.below(2))).await;
    }
    kept
}

/// Each entry is a load, and so is the lack of one, from the beginning of the enumeration on.
async fn enumerate(
    stage: &Arc<Stage>,
    spool: &Arc<dyn Spool>,
    number: u64,
    rng: &mut Rng,
    kept: &mut Kept,
) -> Result<()> {
    let reader = Caller::new(stage, spool, Who::Enumeration(number));
    let begun = reader.begin();
    let (sender, receiver) = async_channel::bounded(1 + usize::try_from(rng.below(16)).unwrap_or(0));
    spool.enumerate(sender, DateTime::<Utc>::MAX_UTC)?;
    let mut left: BTreeSet<_> = stage.ids.iter().copied().collect();
    let (is_slow, cut_after) = (rng.chance(30), rng.chance(15).then(|| rng.below(10)));
    let mut received = 0;
    while let Ok(entry) = receiver.recv().await {
        let (id, data) = match entry {
            SpoolEntry::Item { id, data } => (id, data),
            SpoolEntry::Corrupt { id, error } => {
                stage.report(format!("message {id} was enumerated as damaged: {error}"));
                continue;
            }
        };
        if !left.remove(&id) {
            stage.report(format!("message {id} was enumerated twice, or was never stored"));
        }
        match payload::read(id, &data) {
            Ok(seen) => kept.entries.push(reader.end(id, Asked::Load, begun, Outcome::Saw(Some(seen)))),
            Err(err) => stage.report(format!("enumerated: {err}")),
        }
        received += 1;
        if cut_after == Some(received) {
            return Ok(());
        }
        if is_slow {
            tokio::task::yield_now().await;
        }
    }
    // A shutdown ends it early.
    if !stage.is_closing() {
        for id in left {
            kept.entries.push(reader.end(id, Asked::Load, begun, Outcome::Saw(None)));
        }
        kept.enumerations += 1;
    }
    Ok(())
}

/// Replaces messages of its own, one after the other, until the callers have made `calls` calls.
pub(super) async fn flood(
    stage: Arc<Stage>,
    spool: Arc<dyn Spool>,
    task: usize,
    flood: Flood,
    calls: u64,
) -> Vec<Entry> {
    let mut caller = Caller::new(&stage, &spool, Who::Flood(task));
    let first = HOT + COLD + task * FLOODED;
    let mut rng = Rng::new(task as u64);
    for (number, slot) in (0..flood.stores).zip((first..first + FLOODED).cycle()) {
        let len = payload::HEADER_BYTES + usize::try_from(rng.below(flood.len)).unwrap_or(0);
        // Where stores wait for the disk, removals are all that is flushed.
        let action = match number / FLOODED as u64 % 4 {
            3 => Action::Remove { slot },
            _ => Action::Store { slot, len, forced: false, deadline: None },
        };
        if !caller.step(Step::plain(action)).await || stage.calls.load(Ordering::SeqCst) >= calls {
            break;
        }
        if number % FLOODED as u64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    caller.entries
}

/// Loads and enumerates everything, when nothing else goes on.
pub(super) async fn look(stage: Arc<Stage>, spool: Arc<dyn Spool>, mut rng: Rng) -> Kept {
    let mut kept = Kept::default();
    let mut caller = Caller::new(&stage, &spool, Who::Look);
    // Everything that was on its way to the disk is there after this.
    let began = stage.clock.tick();
    match spool.advise_low_memory().await {
        Ok(_) => kept.barriers.push(began),
        Err(err) => stage.report(format!("advise_low_memory: {err:#}")),
    }
    for slot in 0..stage.ids.len() {
        caller.step(Step::plain(Action::Load { slot })).await;
    }
    if let Err(err) = enumerate(&stage, &spool, 0, &mut rng, &mut kept).await {
        stage.report(format!("enumerate: {err:#}"));
    }
    kept.entries.append(&mut caller.entries);
    kept
}
