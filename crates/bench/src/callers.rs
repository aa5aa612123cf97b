//! The callers: tasks that each process one message at a time.
//!
//! After each message a caller consumes tokio's cooperative budget. A spool that answers from
//! memory never waits, so without it a caller would occupy its worker thread and most callers would
//! not run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tidespool_core::SpoolId;
use tokio::task::JoinSet;

use crate::engine::Engine;
use crate::interrupt::Stop;
use crate::latency::{Latency, Recorder, Timeline};
use crate::payload::{Messages, Payload, Pool};
use crate::plan::Plan;
use crate::proc::disk_write_bytes;
use crate::report::Second;

/// Which operations are recorded, and when the callers stop.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    pub(crate) warm_until: Instant,
    /// `None`: the callers stop when their work is done.
    end: Option<Instant>,
    /// Set when an operation is recorded. Until then the callers continue past the end. `None`:
    /// they stop at the end.
    has_recorded: Option<Arc<AtomicBool>>,
    stop: Stop,
}

impl Clock {
    /// Starts now. The warm-up is a tenth of `duration`, at most one second. If no operation was
    /// recorded at the end, the run continues until one is: a run without an operation has no
    /// figures.
    pub(crate) fn timed(duration: Duration, stop: &Stop) -> Self {
        let begun = Instant::now();
        Self {
            warm_until: begun + Self::warm_up(duration),
            end: Some(begun + duration),
            has_recorded: Some(Arc::default()),
            stop: stop.clone(),
        }
    }

    /// Returns the part of a [timed](Self::timed) run that is not recorded.
    pub(crate) fn warm_up(duration: Duration) -> Duration {
        Duration::from_secs(1).min(duration / 10)
    }

    /// Starts now, without a warm-up, for work that can be done only once.
    pub(crate) fn at_most(duration: Duration, stop: &Stop) -> Self {
        let begun = Instant::now();
        Self { warm_until: begun, end: Some(begun + duration), has_recorded: None, stop: stop.clone() }
    }

    /// Starts now and ends when the work is done.
    pub(crate) fn counted(stop: &Stop) -> Self {
        Self { warm_until: Instant::now(), end: None, has_recorded: None, stop: stop.clone() }
    }

    fn goes_on(&self, now: Instant) -> bool {
        let is_over = self.end.is_some_and(|end| now >= end);
        let is_enough = || self.has_recorded.as_ref().is_none_or(|recorded| recorded.load(Ordering::Relaxed));
        !(self.stop.is_set() || is_over && is_enough())
    }

    fn note_recorded(&self) {
        if let Some(recorded) = &self.has_recorded
            && !recorded.load(Ordering::Relaxed)
        {
            recorded.store(true, Ordering::Relaxed);
        }
    }
}

/// What the callers did after the warm-up.
#[derive(Debug)]
pub(crate) struct Done {
    /// From the end of the warm-up to the end of the last call.
    pub(crate) seconds: f64,
    /// Payload bytes of the recorded operations.
    pub(crate) bytes: u64,
    pub(crate) latency: Latency,
    pub(crate) series: Vec<Second>,
    /// The kernel's write count at the end of the warm-up.
    pub(crate) disk_write_bytes_before: u64,
}

/// One caller: the state of a task.
pub(crate) struct Caller {
    pub(crate) engine: Arc<Engine>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) messages: Messages,
    pub(crate) clock: Clock,
    recorder: Recorder,
    bytes: u64,
    /// When the last call of this caller ended.
    pub(crate) now: Instant,
}

/// Runs `work` for each caller of the plan. Returns the recorded figures and the result of each
/// caller.
///
/// # Errors
///
/// The first error of a caller. It stops the others and is returned after they have ended.
pub(crate) async fn run<T, F, Fut>(
    engine: &Arc<Engine>,
    plan: &Arc<Plan>,
    pool: &Arc<Pool>,
    clock: Clock,
    work: F,
) -> Result<(Done, Vec<T>)>
where
    T: Send + 'static,
    F: Fn(Caller) -> Fut,
    Fut: Future<Output = Result<(Caller, T)>> + Send + 'static,
{
    let begun = Instant::now();
    let timeline = Timeline::new(clock.warm_until);
    let mut callers = JoinSet::new();
    for number in 0..plan.concurrency {
        let caller = Caller {
            engine: Arc::clone(engine),
            plan: Arc::clone(plan),
            messages: Messages::new(Arc::clone(pool), plan.seed.wrapping_add(1 + number as u64)),
            clock: clock.clone(),
            recorder: Recorder::new(Arc::clone(&timeline))?,
            bytes: 0,
            now: begun,
        };
        let (stop, work) = (clock.stop.clone(), work(caller));
        callers.spawn(async move {
            let result = work.await.and_then(|(mut caller, more)| {
                caller.recorder.hand_over()?;
                Ok((caller.bytes, caller.now, more))
            });
            if result.is_err() {
                // Here and not when the task is joined: other callers may be blocked on the failed
                // spool.
                stop.set();
            }
            result
        });
    }
    // On a thread of its own: an engine that blocks the worker threads would delay a timer.
    let warm_until = clock.warm_until;
    let baseline = tokio::task::spawn_blocking(move || {
        std::thread::sleep(warm_until.saturating_duration_since(Instant::now()));
        disk_write_bytes()
    });
    let disk_write_bytes_before = baseline.await?;
    let (bytes, last, more) = join(callers, &clock).await?;
    Ok((
        Done {
            seconds: last.duration_since(clock.warm_until).as_secs_f64(),
            bytes,
            latency: timeline.total()?,
            series: timeline.series(),
            disk_write_bytes_before: disk_write_bytes_before?,
        },
        more,
    ))
}

type Ended<T> = Result<(u64, Instant, T)>;

async fn join<T: 'static>(mut callers: JoinSet<Ended<T>>, clock: &Clock) -> Result<(u64, Instant, Vec<T>)> {
    let (mut bytes, mut last, mut all) = (0, clock.warm_until, Vec::new());
    let mut failure = None;
    while let Some(ended) = callers.join_next().await {
        match ended.map_err(Into::into).and_then(|ended| ended) {
            Ok((some, now, more)) => {
                bytes += some;
                last = last.max(now);
                all.push(more);
            }
            Err(err) => {
                clock.stop.set();
                failure.get_or_insert(err);
            }
        }
    }
    failure.map_or(Ok((bytes, last, all)), Err)
}

impl Caller {
    pub(crate) fn goes_on(&self) -> bool {
        self.clock.goes_on(self.now)
    }

    /// Records an operation that began at `begun` and ends now, unless it began in the warm-up. An
    /// operation that ends after the end of the run counts, and extends `seconds`.
    pub(crate) fn record(&mut self, begun: Instant, bytes: usize) -> Result<()> {
        self.now = Instant::now();
        self.record_took(begun, self.now - begun, bytes)
    }

    /// Records an operation of several calls. The first began at `begun`; `took` is their total
    /// time.
    pub(crate) fn record_took(&mut self, begun: Instant, took: Duration, bytes: usize) -> Result<()> {
        if self.is_warm(begun) {
            self.recorder.record(self.now, took)?;
            self.clock.note_recorded();
            self.bytes += bytes as u64;
        }
        Ok(())
    }

    /// Returns whether an operation that begins at `begun` is recorded.
    pub(crate) fn is_warm(&self, begun: Instant) -> bool {
        begun >= self.clock.warm_until
    }

    /// Sleeps until `when`, between two calls.
    pub(crate) async fn sleep_until(&mut self, when: Instant) {
        tokio::time::sleep_until(when.into()).await;
        self.now = Instant::now();
    }

    pub(crate) async fn store(&self, id: SpoolId, data: Payload, force_sync: bool) -> Result<()> {
        store(&self.engine, id, data, force_sync).await
    }

    pub(crate) async fn load(&self, id: SpoolId, len: usize) -> Result<()> {
        load(&self.engine, id, len).await
    }

    pub(crate) async fn load_shared(&self, id: SpoolId, len: usize) -> Result<()> {
        let loaded = self.engine.load_shared(id).await.with_context(|| failed("load", id))?;
        check(id, len, loaded.len())
    }

    pub(crate) async fn remove(&self, id: SpoolId) -> Result<()> {
        remove(&self.engine, id).await
    }
}

pub(crate) async fn store(engine: &Engine, id: SpoolId, data: Payload, force_sync: bool) -> Result<()> {
    engine.store(id, data, force_sync).await.with_context(|| {
        let why = engine.unhealthy_reason();
        failed("store", id) + &why.map_or_else(String::new, |why| format!(" (unhealthy: {why})"))
    })
}

pub(crate) async fn load(engine: &Engine, id: SpoolId, len: usize) -> Result<()> {
    let loaded = engine.load(id).await.with_context(|| failed("load", id))?;
    check(id, len, loaded.len())
}

pub(crate) async fn remove(engine: &Engine, id: SpoolId) -> Result<()> {
    engine.remove(id).await.with_context(|| failed("remove", id))
}

/// Compares the lengths only: comparing the bytes would distort the measurement. The conformance
/// tests compare them.
fn check(id: SpoolId, stored: usize, loaded: usize) -> Result<()> {
    if loaded != stored {
        bail!("message {id} was stored with {stored} bytes and loaded with {loaded}");
    }
    Ok(())
}

fn failed(what: &str, id: SpoolId) -> String {
    format!("the bench stopped: {what} of message {id} failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: on a busy machine a short run had no operation after its warm-up, and no
    /// figures.
    #[test]
    fn a_timed_run_continues_until_an_operation_is_recorded() {
        let (duration, stop) = (Duration::from_millis(200), Stop::default());
        let clock = Clock::timed(duration, &stop);
        let end = clock.warm_until - Clock::warm_up(duration) + duration;
        assert!(clock.goes_on(end - Duration::from_millis(1)) && clock.goes_on(end));
        clock.clone().note_recorded();
        assert!(clock.goes_on(end - Duration::from_millis(1)) && !clock.goes_on(end));

        let clock = Clock::timed(duration, &stop);
        stop.set();
        assert!(!clock.goes_on(end), "an interrupt ends it all the same");
    }

    #[test]
    fn a_run_through_a_set_ends_in_time() {
        let clock = Clock::at_most(Duration::from_secs(1), &Stop::default());
        let end = clock.warm_until + Duration::from_secs(1);
        assert!(clock.goes_on(clock.warm_until) && !clock.goes_on(end));
        assert!(Clock::counted(&Stop::default()).goes_on(end));
    }
}
