//! What the callers do, and for how long.
//!
//! Each caller is a task with one message under way at a time. After each message it takes part in tokio's
//! cooperative budget: a spool that answers from memory never waits, and would otherwise keep a worker thread to
//! itself while most callers never ran.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use tidespool_core::SpoolId;
use tokio::task::JoinSet;
use tokio::task::coop::consume_budget;

use super::engine::Engine;
use super::measure::{Latency, disk_write_bytes};

/// Bounds on the live messages of `store`; each caller has at least one.
const STORE_LIVE_MESSAGES: usize = 8_192;
const STORE_LIVE_BYTES: usize = 64 << 20;

/// Bounds on the messages that `load` reads; at least one.
const LOAD_SET_MESSAGES: usize = 8_192;
const LOAD_SET_BYTES: usize = 16 << 20;

/// Bounds on the payloads, which are made before the clock starts; at least one.
const POOL_MESSAGES: usize = 16;
const POOL_BYTES: usize = 16 << 20;

/// The workloads by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// Stores new messages; at most 8192 messages and 64 MiB stay live (one for each caller at least), the oldest are removed, uncounted.
    Store,
    /// Stores, loads and removes each message; an operation is a message, its latency the three calls together.
    Lifecycle,
    /// Loads at random from a set stored before: at most 8192 messages and 16 MiB, and an eighth of --memory-budget.
    Load,
}

/// One run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) workload: Workload,
    pub(super) size: usize,
    pub(super) concurrency: usize,
    pub(super) force_sync: bool,
    pub(super) duration: Duration,
    pub(super) memory_budget: Option<u64>,
}

/// What the callers did after the warm-up.
#[derive(Debug)]
pub(super) struct Measured {
    /// From the end of the warm-up to the end of the last call.
    pub(super) seconds: f64,
    pub(super) latency: Latency,
    /// The kernel's count at the end of the warm-up.
    pub(super) disk_write_bytes_before: u64,
}

type Payload = Arc<Box<[u8]>>;

/// When to record and when to end.
#[derive(Debug, Clone)]
struct Clock {
    warm_until: Instant,
    end: Instant,
    /// Set by an interrupt, and by a caller that failed.
    stop: Arc<AtomicBool>,
}

/// One task.
struct Caller {
    engine: Arc<Engine>,
    plan: Plan,
    clock: Clock,
    payloads: Arc<[Payload]>,
    random: Random,
    latency: Latency,
    /// When its last call ended.
    now: Instant,
}

/// What one task did.
struct Tally {
    latency: Latency,
    last: Instant,
}

/// Runs the plan's callers until its time is over or `stop` is set.
pub(super) async fn run(engine: &Arc<Engine>, plan: Plan, stop: &Arc<AtomicBool>) -> Result<Measured> {
    let payloads = payloads(plan.size);
    let prepared = match plan.workload {
        Workload::Load => prepare(engine, &plan, &payloads).await.context("storing what will be loaded")?,
        Workload::Store | Workload::Lifecycle => Arc::default(),
    };
    let begun = Instant::now();
    let warm_up = Duration::from_secs(1).min(plan.duration / 10);
    let clock = Clock { warm_until: begun + warm_up, end: begun + plan.duration, stop: Arc::clone(stop) };

    let mut callers = JoinSet::new();
    for _ in 0..plan.concurrency {
        let caller = Caller {
            engine: Arc::clone(engine),
            plan,
            clock: clock.clone(),
            payloads: Arc::clone(&payloads),
            random: Random::new(),
            latency: Latency::new()?,
            now: begun,
        };
        callers.spawn(caller.run(Arc::clone(&prepared)));
    }
    tokio::time::sleep_until(clock.warm_until.into()).await;
    let disk_write_bytes_before = disk_write_bytes();
    let (latency, last) = join(callers, &clock).await?;
    let seconds = last.duration_since(clock.warm_until).as_secs_f64();
    Ok(Measured { seconds, latency, disk_write_bytes_before: disk_write_bytes_before? })
}

/// Waits for all callers; the first error stops the others and is returned after them.
async fn join(mut callers: JoinSet<Result<Tally>>, clock: &Clock) -> Result<(Latency, Instant)> {
    let mut latency = Latency::new()?;
    let mut last = clock.warm_until;
    let mut failure = None;
    while let Some(ended) = callers.join_next().await {
        match ended.map_err(Into::into).and_then(|tally| tally) {
            Ok(tally) => {
                latency.add(&tally.latency)?;
                last = last.max(tally.last);
            }
            Err(err) => {
                clock.stop.store(true, Ordering::Relaxed);
                failure.get_or_insert(err);
            }
        }
    }
    failure.map_or(Ok((latency, last)), Err)
}

impl Caller {
    async fn run(mut self, prepared: Arc<[SpoolId]>) -> Result<Tally> {
        let result = match self.plan.workload {
            Workload::Store => self.store().await,
            Workload::Lifecycle => self.lifecycle().await,
            Workload::Load => self.load(&prepared).await,
        };
        if result.is_err() {
            // At once, not when this task is joined: the others may be waiting for a spool that has failed.
            self.clock.stop.store(true, Ordering::Relaxed);
        }
        result.map(|()| Tally { latency: self.latency, last: self.now })
    }

    async fn store(&mut self) -> Result<()> {
        let bound = live_for_each_caller(&self.plan);
        let mut live = VecDeque::with_capacity(bound + 1);
        while self.goes_on() {
            let (id, data) = self.next_message();
            let begun = Instant::now();
            self.engine.store(id, data, self.plan.force_sync).await.with_context(|| failed("store", id))?;
            self.record(begun);
            live.push_back(id);
            if live.len() > bound
                && let Some(oldest) = live.pop_front()
            {
                self.engine.remove(oldest).await.with_context(|| failed("remove", oldest))?;
            }
            consume_budget().await;
        }
        Ok(())
    }

    async fn lifecycle(&mut self) -> Result<()> {
        while self.goes_on() {
            let (id, data) = self.next_message();
            let begun = Instant::now();
            self.engine.store(id, data, self.plan.force_sync).await.with_context(|| failed("store", id))?;
            let loaded = self.engine.load(id).await.with_context(|| failed("load", id))?;
            self.engine.remove(id).await.with_context(|| failed("remove", id))?;
            self.record(begun);
            self.check(id, &loaded)?;
            consume_budget().await;
        }
        Ok(())
    }

    async fn load(&mut self, prepared: &[SpoolId]) -> Result<()> {
        while self.goes_on() {
            let Some(&id) = self.random.choose(prepared) else { bail!("there is nothing to load") };
            let begun = Instant::now();
            let loaded = self.engine.load(id).await.with_context(|| failed("load", id))?;
            self.record(begun);
            self.check(id, &loaded)?;
            consume_budget().await;
        }
        Ok(())
    }

    fn goes_on(&self) -> bool {
        self.now < self.clock.end && !self.clock.stop.load(Ordering::Relaxed)
    }

    /// What began in the warm-up does not count; what ends after the end does, and `seconds` with it.
    fn record(&mut self, begun: Instant) {
        self.now = Instant::now();
        if begun >= self.clock.warm_until {
            self.latency.record(self.now - begun);
        }
    }

    /// A message in a buffer of its own, as a server has it: shared bytes would make any spool look small. Made before the clock starts.
    fn next_message(&mut self) -> (SpoolId, Payload) {
        let data = self.random.choose(&self.payloads).map(|payload| Box::from(&payload[..]));
        (SpoolId::new(), Arc::new(data.unwrap_or_default()))
    }

    /// A cheap look: comparing every byte would be a part of what is measured. The tests do that.
    fn check(&self, id: SpoolId, loaded: &[u8]) -> Result<()> {
        if loaded.len() != self.plan.size {
            bail!("message {id} was stored with {} bytes and loaded with {}", self.plan.size, loaded.len());
        }
        Ok(())
    }
}

fn failed(what: &str, id: SpoolId) -> String {
    format!("the bench stopped: {what} of message {id} failed")
}

/// Each caller removes its own oldest, so that no two have to agree on which it is.
fn live_for_each_caller(plan: &Plan) -> usize {
    STORE_LIVE_MESSAGES.min(STORE_LIVE_BYTES / plan.size).div_euclid(plan.concurrency).max(1)
}

/// Stores the messages that `load` reads.
async fn prepare(engine: &Engine, plan: &Plan, payloads: &[Payload]) -> Result<Arc<[SpoolId]>> {
    let share =
        plan.memory_budget.map_or(usize::MAX, |budget| usize::try_from(budget / 8).unwrap_or(usize::MAX));
    let count = LOAD_SET_MESSAGES.min(LOAD_SET_BYTES.min(share) / plan.size).max(1);
    let mut ids = Vec::with_capacity(count);
    for payload in payloads.iter().cycle().take(count) {
        let id = SpoolId::new();
        engine.store(id, Arc::new(Box::from(&payload[..])), false).await?;
        ids.push(id);
    }
    Ok(ids.into())
}

/// Different payloads that no file system or device can compress.
fn payloads(size: usize) -> Arc<[Payload]> {
    let mut random = Random::new();
    let count = POOL_MESSAGES.min(POOL_BYTES / size).max(1);
    (0..count).map(|_| Arc::new(random.bytes(size).into_boxed_slice())).collect()
}

/// xorshift64*: good enough to defeat compression and to spread loads, and it costs next to nothing.
struct Random(u64);

impl Random {
    fn new() -> Self {
        // The standard library's own source of random keys; zero would stay zero.
        Self(RandomState::new().hash_one(0_u8) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let place = (u128::from(self.next()) * items.len() as u128) >> 64;
        items.get(usize::try_from(place).unwrap_or(0))
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

#[cfg(test)]
mod tests;
