//! `overload`: offers unsynced stores at twice the rate that the disk sustains.
//!
//! For a sixth of the duration, callers store one message after the other. Their rate once dirty
//! data has reached its limit is the rate of the disk. Then stores become due on a fixed schedule
//! at twice that rate, whether earlier ones have completed or not. At most one store per caller
//! runs at a time; a store that is due while all callers are busy is turned away and counted. A
//! latency counts from when the store was due. Its mean is callers / rate (Little's law) whatever
//! the spool does, but the spool can keep it even. Therefore stalls are measured too: periods in
//! which no store completed while at least one waited.
//!
//! A message is removed only after so many later bytes that it must be on disk: an earlier removal
//! would save the disk the write.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use tidespool::StatsSnapshot;
use tidespool_core::{SpoolBackpressureTimeout, SpoolId, SpoolUnhealthyError};
use tokio::task::coop::consume_budget;

use crate::callers::{self, Caller, Clock};
use crate::disk;
use crate::engine::{Engine, Needs};
use crate::figures::{per, ratio, rounded};
use crate::latency::Latency;
use crate::report::Moment;
use crate::run::{Measured, Run};

/// The offered rate as a multiple of the rate of the disk.
const OVERLOAD: u64 = 2;

/// The length of a [`Moment`], and the most of them.
const MOMENT: Duration = Duration::from_millis(100);
const MAX_MOMENTS: u32 = 600;

/// The interval between samples of dirty bytes.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Timers have a resolution of one millisecond: a store due within it begins immediately.
const SOON: Duration = Duration::from_millis(1);

/// Stalls from this length are counted.
const LONG_STALL: Duration = Duration::from_millis(100);

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    if run.plan.force_sync {
        bail!("overload is about stores that are not synced: leave --force-sync out");
    }
    disk::require(&run.dir, run.plan.journal_capacity.saturating_mul(2))?;
    let (drain, done, overload) = run
        .with(&Needs::of(&run.plan), async |engine| {
            let stored = Arc::new(Stored::new(run, engine));
            let (begun, already) = fill(run, engine, &stored).await?;
            let drain = per(stored.count() - already, begun.elapsed().as_secs_f64());
            let overload = Arc::new(Overload::new(run, drain)?);
            let watch = tokio::spawn(Arc::clone(&overload).watch(Arc::clone(engine)));
            let clock = Clock::at_most(run.plan.duration, &run.stop);
            let work = |caller| push(caller, Arc::clone(&overload), Arc::clone(&stored));
            let done = callers::run(engine, &run.plan, &run.pool, clock, work).await;
            watch.abort();
            // The task was aborted: its result is that.
            let _ = watch.await;
            Ok((drain, done?.0, overload))
        })
        .await?;
    let mut measured = Measured::from(done);
    overload.report(drain, run, &mut measured);
    Ok(measured)
}

/// Stores until the rate is that of the disk. Returns when it reached that rate, and how many
/// messages were stored before.
async fn fill(run: &Run<'_>, engine: &Arc<Engine>, stored: &Arc<Stored>) -> Result<(Instant, u64)> {
    let duration = run.plan.duration / 6;
    let half = Arc::new(Mutex::new(None));
    let clock = Clock::at_most(duration, &run.stop);
    let middle = Instant::now() + duration / 2;
    let work = |mut caller: Caller| {
        let (stored, half) = (Arc::clone(stored), Arc::clone(&half));
        async move {
            while caller.goes_on() {
                let (id, data) = caller.messages.next();
                let (begun, len) = (Instant::now(), data.len());
                caller.store(id, data, false).await?;
                caller.record(begun, len)?;
                if caller.now >= middle {
                    half.lock().get_or_insert_with(|| (caller.now, stored.count()));
                }
                stored.add(&caller, id, len).await?;
                consume_budget().await;
            }
            Ok((caller, ()))
        }
    };
    callers::run(engine, &run.plan, &run.pool, clock, work).await?;
    let half = half.lock().take();
    half.context("nothing was stored in the time in which the disk is measured: give a longer --duration")
}

/// Runs one caller, which takes the stores that are due.
async fn push(mut caller: Caller, overload: Arc<Overload>, stored: Arc<Stored>) -> Result<(Caller, ())> {
    while caller.goes_on() {
        let due = overload.next(Instant::now());
        if due.saturating_duration_since(Instant::now()) > SOON {
            caller.sleep_until(due).await;
            if !caller.goes_on() {
                break;
            }
        }
        let (id, data) = caller.messages.next();
        let (len, begun) = (data.len(), due.min(Instant::now()));
        overload.flow.lock().begin(Instant::now());
        match caller.engine.store(id, data, false).await {
            Ok(()) => {
                caller.record(begun, len)?;
                overload.done(caller.now, caller.now - begun);
                stored.add(&caller, id, len).await?;
            }
            Err(err) => {
                caller.now = Instant::now();
                overload.flow.lock().outstanding -= 1;
                overload.refused(err)?;
            }
        }
        consume_budget().await;
    }
    Ok((caller, ()))
}

/// The stored messages, oldest first.
struct Stored {
    messages: Mutex<(VecDeque<(SpoolId, usize)>, usize)>,
    count: AtomicU64,
    /// The upper bound of live payload bytes.
    bound: usize,
}

impl Stored {
    fn new(run: &Run<'_>, engine: &Engine) -> Self {
        let dirty_limit = match engine {
            Engine::Tidespool(spool) => spool.stats().gauges.dirty_limit,
            _ => 0,
        };
        // Dirty data is written oldest first, so the oldest of this many bytes are on disk.
        let bound = run.plan.live_bytes.max(3 * dirty_limit);
        let bound = usize::try_from(bound).unwrap_or(usize::MAX);
        Self { messages: Mutex::default(), count: AtomicU64::new(0), bound }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    async fn add(&self, caller: &Caller, id: SpoolId, len: usize) -> Result<()> {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.messages.lock().0.push_back((id, len));
        self.messages.lock().1 += len;
        while let Some(id) = self.oldest_if_too_many() {
            caller.remove(id).await?;
        }
        Ok(())
    }

    fn oldest_if_too_many(&self) -> Option<SpoolId> {
        let mut messages = self.messages.lock();
        if messages.1 <= self.bound {
            return None;
        }
        let (id, len) = messages.0.pop_front()?;
        messages.1 -= len;
        Some(id)
    }
}

/// The schedule of the stores, and their results.
struct Overload {
    begun: Instant,
    /// The time between two stores.
    pause_ns: u64,
    /// The number of the next store on the schedule.
    next: AtomicU64,
    turned_away: AtomicU64,
    refused_unhealthy: AtomicU64,
    refused_backpressure: AtomicU64,
    flow: Mutex<Flow>,
    step: Duration,
    moments: Vec<Mutex<Latency>>,
    looks: Mutex<Looks>,
}

/// Stalls: periods without a completed store while at least one waited.
struct Flow {
    outstanding: usize,
    /// When a store last completed, or when the first one began after an idle period.
    last: Instant,
    longest: Duration,
    long: u64,
}

/// Samples of dirty bytes.
struct Looks {
    moments: Vec<f64>,
    sum: f64,
    max: f64,
    looks: u64,
    unhealthy: u64,
    /// When the number of commits last changed, that number, and the longest time without a change.
    commits: (Instant, u64),
    quiet: Duration,
    sync_max_us: u64,
}

impl Overload {
    fn new(run: &Run<'_>, drain_per_s: f64) -> Result<Self> {
        let step = MOMENT.max(run.plan.duration / MAX_MOMENTS);
        let count = usize::try_from(run.plan.duration.as_nanos().div_ceil(step.as_nanos()))?;
        let begun = Instant::now();
        Ok(Self {
            begun,
            pause_ns: pause_ns(drain_per_s),
            next: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            refused_unhealthy: AtomicU64::new(0),
            refused_backpressure: AtomicU64::new(0),
            flow: Mutex::new(Flow { outstanding: 0, last: begun, longest: Duration::ZERO, long: 0 }),
            step,
            moments: (0..=count).map(|_| Latency::new().map(Mutex::new)).collect::<Result<_>>()?,
            looks: Mutex::new(Looks::new(count + 1, begun)),
        })
    }

    /// Returns when the next store is due. Stores that became due while no caller was free are
    /// turned away.
    fn next(&self, now: Instant) -> Instant {
        let first =
            u64::try_from(now.duration_since(self.begun).as_nanos()).unwrap_or(u64::MAX) / self.pause_ns;
        let taken =
            self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| Some(next.max(first) + 1));
        let next = taken.unwrap_or_else(|next| next);
        self.turned_away.fetch_add(first.saturating_sub(next), Ordering::Relaxed);
        self.begun + Duration::from_nanos(next.max(first) * self.pause_ns)
    }

    fn place(&self, now: Instant) -> usize {
        let place = now.duration_since(self.begun).as_nanos() / self.step.as_nanos();
        usize::try_from(place).unwrap_or(usize::MAX).min(self.moments.len().saturating_sub(1))
    }

    fn done(&self, now: Instant, took: Duration) {
        self.flow.lock().end(now);
        if let Some(moment) = self.moments.get(self.place(now)) {
            moment.lock().record(took);
        }
    }

    /// Counts a rejection that is expected under overload; returns any other error.
    fn refused(&self, err: anyhow::Error) -> Result<()> {
        let cause = err.root_cause();
        let counter = if cause.is::<SpoolUnhealthyError>() {
            &self.refused_unhealthy
        } else if cause.is::<SpoolBackpressureTimeout>() {
            &self.refused_backpressure
        } else {
            return Err(err.context("the bench stopped: a store failed"));
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Samples dirty bytes until the task is aborted.
    async fn watch(self: Arc<Self>, engine: Arc<Engine>) {
        let Engine::Tidespool(spool) = &*engine else { return };
        loop {
            self.look(&spool.stats());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn look(&self, stats: &StatsSnapshot) {
        let now = Instant::now();
        let fraction = ratio(stats.gauges.dirty_bytes, stats.gauges.dirty_limit);
        let mut looks = self.looks.lock();
        if let Some(moment) = looks.moments.get_mut(self.place(now)) {
            *moment = moment.max(fraction);
        }
        looks.sum += fraction;
        looks.max = looks.max.max(fraction);
        looks.looks += 1;
        looks.unhealthy += u64::from(stats.gauges.unhealthy.is_some());
        if looks.commits.1 != stats.commit.count {
            looks.commits = (now, stats.commit.count);
        }
        looks.quiet = looks.quiet.max(now - looks.commits.0);
        looks.sync_max_us = stats.sync.max_us;
    }

    fn report(&self, drain_per_s: f64, run: &Run<'_>, measured: &mut Measured) {
        let (flow, looks) = (self.flow.lock(), self.looks.lock());
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        measured.extra("drain_per_s", drain_per_s);
        measured.extra("drain_mb_per_s", drain_per_s * ratio(run.plan.size.mean() as u64, 1) / 1e6);
        measured.extra_count("offered", count(&self.next));
        measured.extra_count("turned_away", count(&self.turned_away));
        measured.extra_count("refused_unhealthy", count(&self.refused_unhealthy));
        measured.extra_count("refused_backpressure", count(&self.refused_backpressure));
        measured.extra("longest_stall_ms", flow.longest.as_secs_f64() * 1e3);
        measured.extra_count("stalls_over_100ms", flow.long);
        if looks.looks > 0 {
            measured.extra("dirty_fraction_mean", looks.sum / ratio(looks.looks, 1));
            measured.extra("dirty_fraction_max", looks.max);
            measured.extra("longest_without_commit_ms", looks.quiet.as_secs_f64() * 1e3);
            measured.extra("sync_max_ms", ratio(looks.sync_max_us, 1_000));
            measured.extra("unhealthy_share", ratio(looks.unhealthy, looks.looks));
        }
        let moment = |(nth, (latency, fraction)): (usize, (&Mutex<Latency>, &f64))| {
            let latency = latency.lock();
            Moment {
                at_ms: u64::try_from(self.step.as_millis()).unwrap_or(u64::MAX).saturating_mul(nth as u64),
                p50_us: rounded(latency.quantile_us(0.5)),
                p99_us: rounded(latency.quantile_us(0.99)),
                max_us: rounded(latency.max_us()),
                ops: latency.count(),
                dirty_fraction: rounded(*fraction),
            }
        };
        measured.moments = self.moments.iter().zip(&looks.moments).enumerate().map(moment).collect();
    }
}

impl Looks {
    fn new(moments: usize, begun: Instant) -> Self {
        Self {
            moments: vec![0.0; moments],
            sum: 0.0,
            max: 0.0,
            looks: 0,
            unhealthy: 0,
            commits: (begun, 0),
            quiet: Duration::ZERO,
            sync_max_us: 0,
        }
    }
}

/// Returns the time between two stores at [`OVERLOAD`] times the rate of the disk.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is not negative")]
fn pause_ns(drain_per_s: f64) -> u64 {
    ((1e9 / (drain_per_s * ratio(OVERLOAD, 1))) as u64).max(1)
}

impl Flow {
    fn begin(&mut self, now: Instant) {
        if self.outstanding == 0 {
            self.last = now;
        }
        self.outstanding += 1;
    }

    fn end(&mut self, now: Instant) {
        self.outstanding -= 1;
        // Callers may take the lock in another order than they read the clock.
        let stall = now.saturating_duration_since(self.last);
        self.longest = self.longest.max(stall);
        self.long += u64::from(stall > LONG_STALL);
        self.last = self.last.max(now);
    }
}
