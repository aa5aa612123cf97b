//! `load` and `load-shared`: loads at random from a set that fits into memory.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use rand::seq::IndexedRandom as _;
use tidespool_core::SpoolId;
use tokio::task::coop::consume_budget;

use crate::callers::{self, Caller, Clock};
use crate::engine::{Engine, Needs};
use crate::payload::Messages;
use crate::plan::{Plan, Workload};
use crate::run::{Measured, Run};

/// The upper bounds of the set, which has at least one message.
const SET_MESSAGES: usize = 8_192;
const SET_BYTES: usize = 16 << 20;

type Set = Arc<[(SpoolId, usize)]>;

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    let shared = run.plan.workload == Workload::LoadShared;
    let done = run
        .with(&Needs::of(&run.plan), async |engine| {
            let mut messages = Messages::new(Arc::clone(&run.pool), run.plan.seed);
            let set = prepare(engine, &run.plan, &mut messages).await?;
            let clock = Clock::timed(run.plan.duration, &run.stop);
            let work = move |caller| load(caller, Arc::clone(&set), shared);
            callers::run(engine, &run.plan, &run.pool, clock, work).await
        })
        .await?;
    Ok(done.0.into())
}

async fn load(mut caller: Caller, set: Set, shared: bool) -> Result<(Caller, ())> {
    while caller.goes_on() {
        let Some(&(id, len)) = set.choose(&mut caller.messages.random) else {
            bail!("there is nothing to load")
        };
        let begun = Instant::now();
        if shared {
            caller.load_shared(id, len).await?;
        } else {
            caller.load(id, len).await?;
        }
        caller.record(begun, len)?;
        consume_budget().await;
    }
    Ok((caller, ()))
}

/// Stores the set.
async fn prepare(engine: &Engine, plan: &Plan, messages: &mut Messages) -> Result<Set> {
    let share =
        plan.memory_budget.map_or(usize::MAX, |budget| usize::try_from(budget / 8).unwrap_or(usize::MAX));
    let count = SET_MESSAGES.min(SET_BYTES.min(share) / plan.size.mean()).max(1);
    let mut set = Vec::with_capacity(count);
    for _ in 0..count {
        let (id, data) = messages.next();
        set.push((id, data.len()));
        engine.store(id, data, false).await?;
    }
    Ok(set.into())
}
