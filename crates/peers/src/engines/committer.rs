//! Group commit for engines without one: jobs that wait at the same time are written together and
//! synced once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use tidespool_core::{Closed, SpoolCallerDeadlineExceeded};
use tokio::sync::{mpsc, oneshot};

use super::error::EngineError;
use super::spool::in_time;

/// The capacity of the queue. Further callers wait for space in it.
const QUEUE: usize = 4_096;
/// The most jobs of a batch, and the bytes after which no more join it.
const BATCH_MESSAGES: usize = 1_024;
const BATCH_BYTES: usize = 32 << 20;

/// A part of a batch.
pub(crate) trait Job: Send + 'static {
    /// The approximate size of the job.
    fn bytes(&self) -> usize;
}

/// Writes batches: an engine, on the thread of its committer.
pub(crate) trait Sink: Send + 'static {
    /// The jobs that it accepts.
    type Job: Job;

    /// Makes all of `batch` visible, in order. With `sync`, [`sync`](Self::sync) follows
    /// immediately.
    fn apply(&mut self, batch: &[Self::Job], sync: bool) -> Result<(), EngineError>;

    /// Makes everything applied so far durable.
    fn sync(&mut self) -> Result<(), EngineError>;
}

/// Why a job failed.
#[derive(Debug, Clone)]
enum Refusal {
    Late,
    Failed(EngineError),
}

impl From<Refusal> for anyhow::Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Late => SpoolCallerDeadlineExceeded.into(),
            Refusal::Failed(err) => err.into(),
        }
    }
}

struct Waiter {
    sync: bool,
    deadline: Option<Instant>,
    done: oneshot::Sender<Result<(), Refusal>>,
}

/// The queue, and the thread that processes it.
pub(crate) struct Committer<J> {
    queue: Option<mpsc::Sender<(J, Waiter)>>,
    /// Number of jobs in the queue that are not visible yet.
    pending: Arc<AtomicUsize>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<J: Job> Committer<J> {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// If no thread can be started.
    pub(crate) fn start(name: &'static str, sink: impl Sink<Job = J>) -> Result<Self> {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let pending = Arc::<AtomicUsize>::default();
        let thread = std::thread::Builder::new().name(format!("{name}-commit"));
        let counted = Arc::clone(&pending);
        let thread = thread.spawn(move || run(waiting, sink, &counted)).context("starting the committer")?;
        Ok(Self { queue: Some(queue), pending, thread: Mutex::new(Some(thread)) })
    }

    /// Returns whether every job in the queue is visible. A write that then bypasses the queue is
    /// ordered after all earlier jobs of its caller.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.load(Ordering::Acquire) == 0
    }

    /// Queues a job. Returns when it is visible, with `sync` when it is durable. A job whose
    /// `deadline` has passed when its batch begins fails. If the future is dropped, the job may
    /// still run, in order.
    pub(crate) async fn commit(&self, job: J, sync: bool, deadline: Option<Instant>) -> Result<()> {
        let queue = self.queue.as_ref().ok_or(Closed)?;
        let room = queue.reserve().await.map_err(|_| Closed)?;
        let (done, answer) = oneshot::channel();
        self.pending.fetch_add(1, Ordering::AcqRel);
        room.send((job, Waiter { sync, deadline, done }));
        match answer.await {
            Ok(result) => Ok(result?),
            // The thread runs while the queue is open, unless the engine panicked.
            Err(_) => Err(EngineError {
                engine: "the engine",
                doing: "committing",
                what: "its thread panicked".to_owned(),
            }
            .into()),
        }
    }

    /// Ends the thread when the queue is empty, and joins it.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.queue = None;
        let Some(thread) = self.thread.lock().take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow::anyhow!("the committer panicked"))
    }
}

impl<J> Drop for Committer<J> {
    /// The files of the engine are in use until the thread ends, which takes a short batch.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.lock().take() {
            drop(thread.join());
        }
    }
}

/// The committer thread. It runs until the queue is closed and empty.
fn run<S: Sink>(mut waiting: mpsc::Receiver<(S::Job, Waiter)>, mut sink: S, pending: &AtomicUsize) {
    let (mut jobs, mut waiters) = (Vec::new(), Vec::new());
    while let Some(first) = waiting.blocking_recv() {
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some((job, waiter)) = next.take() {
            bytes += job.bytes();
            jobs.push(job);
            waiters.push(waiter);
            if jobs.len() >= BATCH_MESSAGES || bytes >= BATCH_BYTES {
                break;
            }
            next = waiting.try_recv().ok();
        }
        let taken = jobs.len();
        refuse_the_late(&mut jobs, &mut waiters);
        commit(&mut sink, &jobs, &mut waiters, || {
            pending.fetch_sub(taken, Ordering::AcqRel);
        });
        jobs.clear();
    }
}

/// Fails jobs whose deadline has passed. After this point an error would leave a message behind.
fn refuse_the_late<J>(jobs: &mut Vec<J>, waiters: &mut Vec<Waiter>) {
    if waiters.iter().all(|waiter| waiter.deadline.is_none()) {
        return;
    }
    let both = std::mem::take(jobs).into_iter().zip(std::mem::take(waiters));
    for (job, waiter) in both {
        if in_time(waiter.deadline).is_err() {
            drop(waiter.done.send(Err(Refusal::Late)));
        } else {
            jobs.push(job);
            waiters.push(waiter);
        }
    }
}

/// Commits one batch. Jobs without a sync complete before it. The caller of a job may have been
/// dropped.
fn commit<S: Sink>(sink: &mut S, jobs: &[S::Job], waiters: &mut Vec<Waiter>, visible: impl FnOnce()) {
    let sync = waiters.iter().any(|waiter| waiter.sync);
    let applied = if jobs.is_empty() { Ok(()) } else { sink.apply(jobs, sync) };
    visible();
    let applied = applied.map_err(Refusal::Failed);
    let failed = applied.is_err();
    for waiter in waiters.extract_if(.., |waiter| failed || !waiter.sync) {
        drop(waiter.done.send(applied.clone()));
    }
    if waiters.is_empty() {
        return;
    }
    let synced = sink.sync().map_err(Refusal::Failed);
    for waiter in waiters.drain(..) {
        drop(waiter.done.send(synced.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;
    use std::time::Duration;

    use super::*;

    struct Number(u32);

    impl Job for Number {
        fn bytes(&self) -> usize {
            1
        }
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Seen {
        Applied(Vec<u32>),
        Synced,
    }

    /// Reports its calls. Each sync waits for a value from the test: `true` succeeds, `false`
    /// fails.
    struct Controlled {
        seen: std_mpsc::Sender<Seen>,
        let_through: std_mpsc::Receiver<bool>,
    }

    impl Sink for Controlled {
        type Job = Number;

        fn apply(&mut self, batch: &[Number], _sync: bool) -> Result<(), EngineError> {
            self.seen.send(Seen::Applied(batch.iter().map(|job| job.0).collect())).unwrap();
            Ok(())
        }

        fn sync(&mut self) -> Result<(), EngineError> {
            self.seen.send(Seen::Synced).unwrap();
            if self.let_through.recv().unwrap() {
                return Ok(());
            }
            Err(EngineError { engine: "test", doing: "syncing", what: "no space".to_owned() })
        }
    }

    fn controlled() -> (Arc<Committer<Number>>, std_mpsc::Receiver<Seen>, std_mpsc::Sender<bool>) {
        let (seen_sender, seen) = std_mpsc::channel();
        let (gate, let_through) = std_mpsc::channel();
        let committer = Committer::start("test", Controlled { seen: seen_sender, let_through }).unwrap();
        (Arc::new(committer), seen, gate)
    }

    fn spawn(
        committer: &Arc<Committer<Number>>,
        job: u32,
        sync: bool,
        deadline: Option<Instant>,
    ) -> tokio::task::JoinHandle<Result<()>> {
        let committer = Arc::clone(committer);
        tokio::spawn(async move { committer.commit(Number(job), sync, deadline).await })
    }

    async fn until_pending(committer: &Committer<Number>, jobs: usize) {
        while committer.pending.load(Ordering::Acquire) != jobs {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn jobs_that_wait_together_are_synced_once_and_in_order() {
        let (committer, seen, gate) = controlled();
        let first = spawn(&committer, 0, true, None);
        assert_eq!(seen.recv().unwrap(), Seen::Applied(vec![0]));
        assert_eq!(seen.recv().unwrap(), Seen::Synced);
        // These jobs arrive during the sync of the first one.
        let mut others = Vec::new();
        for job in 1..=5 {
            others.push(spawn(&committer, job, job != 3, None));
            until_pending(&committer, usize::try_from(job).unwrap()).await;
        }
        assert!(!committer.is_idle());
        gate.send(true).unwrap();
        first.await.unwrap().unwrap();
        assert_eq!(seen.recv().unwrap(), Seen::Applied(vec![1, 2, 3, 4, 5]));
        assert_eq!(seen.recv().unwrap(), Seen::Synced);
        // The job without a sync completes before it; all are visible.
        others.remove(2).await.unwrap().unwrap();
        assert!(committer.is_idle());
        assert!(others.iter().all(|other| !other.is_finished()));
        gate.send(true).unwrap();
        for other in others {
            other.await.unwrap().unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_deadline_that_passes_in_the_queue_leaves_nothing_behind() {
        let (committer, seen, gate) = controlled();
        let first = spawn(&committer, 0, true, None);
        assert_eq!(seen.recv().unwrap(), Seen::Applied(vec![0]));
        let late = spawn(&committer, 1, true, Some(Instant::now()));
        until_pending(&committer, 1).await;
        let timely = spawn(&committer, 2, false, Some(Instant::now() + Duration::from_secs(300)));
        until_pending(&committer, 2).await;
        gate.send(true).unwrap();
        first.await.unwrap().unwrap();
        let err = late.await.unwrap().unwrap_err();
        assert!(err.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{err:#}");
        timely.await.unwrap().unwrap();
        assert_eq!(seen.recv().unwrap(), Seen::Synced);
        assert_eq!(seen.recv().unwrap(), Seen::Applied(vec![2]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failed_sync_is_returned_to_its_callers() {
        let (committer, seen, gate) = controlled();
        gate.send(false).unwrap();
        let err = committer.commit(Number(1), true, None).await.unwrap_err();
        assert_eq!(err.to_string(), "test failed at syncing: no space");
        assert!(err.root_cause().is::<EngineError>());
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [Seen::Applied(vec![1]), Seen::Synced]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn jobs_in_the_queue_at_the_end_complete() {
        let (committer, seen, gate) = controlled();
        let first = spawn(&committer, 0, true, None);
        assert_eq!(seen.recv().unwrap(), Seen::Applied(vec![0]));
        let dropped = spawn(&committer, 1, false, None);
        until_pending(&committer, 1).await;
        dropped.abort();
        gate.send(true).unwrap();
        first.await.unwrap().unwrap();
        drop(dropped.await);
        Arc::into_inner(committer).unwrap().stop().unwrap();
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [Seen::Synced, Seen::Applied(vec![1])]);
    }
}
