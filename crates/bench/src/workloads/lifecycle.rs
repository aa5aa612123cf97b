//! `lifecycle`: stores, loads and removes messages, immediately or after their lifetime.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::coop::consume_budget;
use tokio::task::yield_now;

use crate::callers::{self, Caller, Clock};
use crate::engine::Needs;
use crate::latency::Latency;
use crate::live::{Life, Live, LiveSet};
use crate::plan::Lifetime;
use crate::run::{Measured, Run};

/// Figures of a caller besides those of its calls.
#[derive(Debug)]
struct Beside {
    waited: Duration,
    peak_live_bytes: u64,
    removals: Latency,
}

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    let (done, beside) = run
        .with(&Needs::of(&run.plan), async |engine| {
            let clock = Clock::timed(run.plan.duration, &run.stop);
            match run.plan.lifetime {
                None => callers::run(engine, &run.plan, &run.pool, clock, at_once).await,
                Some(lifetime) => {
                    let work = move |caller| with_lifetimes(caller, lifetime);
                    callers::run(engine, &run.plan, &run.pool, clock, work).await
                }
            }
        })
        .await?;
    let mut measured = Measured::from(done);
    measured.extra_bytes_per_message()?;
    let beside: Vec<Beside> = beside.into_iter().flatten().collect();
    if !beside.is_empty() {
        let waited: Duration = beside.iter().map(|caller| caller.waited).sum();
        // On a slow machine the run takes longer than planned.
        let took = Clock::warm_up(run.plan.duration).as_secs_f64() + measured.seconds;
        let callers = f64::from(u32::try_from(run.plan.concurrency).unwrap_or(u32::MAX));
        measured.extra("waited_for_room_share", waited.as_secs_f64() / (took * callers));
        measured.extra_count("live_bytes_peak", beside.iter().map(|caller| caller.peak_live_bytes).sum());
        let mut removals = Latency::new()?;
        for caller in &beside {
            removals.add(&caller.removals)?;
        }
        for (name, quantile) in [("remove_p50_us", 0.5), ("remove_p99_us", 0.99)] {
            measured.extra(name, removals.quantile_us(quantile));
        }
    }
    Ok(measured)
}

async fn at_once(mut caller: Caller) -> Result<(Caller, Option<Beside>)> {
    while caller.goes_on() {
        let (id, data) = caller.messages.next();
        let len = data.len();
        let begun = Instant::now();
        caller.store(id, data, caller.plan.force_sync).await?;
        caller.load(id, len).await?;
        caller.remove(id).await?;
        caller.record(begun, len)?;
        consume_budget().await;
    }
    Ok((caller, None))
}

async fn with_lifetimes(mut caller: Caller, lifetime: Lifetime) -> Result<(Caller, Option<Beside>)> {
    let mut live = LiveSet::new(&caller.plan);
    let mut removals = Latency::new()?;
    let mut waited = Duration::ZERO;
    while caller.goes_on() {
        while let Some(ended) = live.due(Instant::now()) {
            end(&mut caller, ended, &mut removals).await?;
        }
        if let Some(until) = live.full_until() {
            let since = caller.now;
            caller.sleep_until(until).await;
            waited += caller.now - since;
            continue;
        }
        begin(&mut caller, &mut live, lifetime).await?;
        // Not `consume_budget`: it yields only every hundred turns, and no message of another
        // caller could end meanwhile.
        yield_now().await;
    }
    // Not recorded: these lifetimes have not ended. Removal saves the shutdown from writing the
    // messages.
    while let Some(rest) = live.rest() {
        caller.remove(rest.id).await?;
        consume_budget().await;
    }
    Ok((caller, Some(Beside { waited, peak_live_bytes: live.peak_bytes(), removals })))
}

async fn begin(caller: &mut Caller, live: &mut LiveSet, lifetime: Lifetime) -> Result<()> {
    let (id, data) = caller.messages.next();
    let len = data.len();
    let begun = Instant::now();
    caller.store(id, data, caller.plan.force_sync).await?;
    caller.load(id, len).await?;
    caller.now = Instant::now();
    let life = Life::draw(lifetime, &mut caller.messages.random);
    live.add(id, None, len, caller.now - begun, life, caller.now);
    Ok(())
}

/// Removes a message and records its life.
async fn end(caller: &mut Caller, ended: Live, removals: &mut Latency) -> Result<()> {
    let begun = Instant::now();
    caller.remove(ended.id).await?;
    caller.now = Instant::now();
    let removal = caller.now - begun;
    if caller.is_warm(begun) {
        removals.record(removal);
    }
    caller.record_took(begun, ended.took + removal, ended.len)
}
