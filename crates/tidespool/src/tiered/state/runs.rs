//! A task whose runs are shared: all callers that arrive during a run share the next one.

use std::future::Future;
use std::pin::Pin;

use futures_util::future::{FutureExt as _, WeakShared};
use parking_lot::Mutex;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The runs of one task, one at a time.
///
/// Every waiting caller polls the run, so that an unpolled caller does not block the others. A run
/// is cancelled when the last of its callers is dropped.
#[derive(Debug)]
pub(in crate::tiered) struct Runs<T>(Mutex<RunState<T>>);

#[derive(Debug)]
struct RunState<T> {
    /// Number of calls so far.
    calls: u64,
    /// The run that began last, and the number of calls before it. The callers own the run.
    begun: Option<(u64, WeakShared<Boxed<T>>)>,
    /// The run that ended last.
    ended: Option<Ended<T>>,
}

#[derive(Debug)]
struct Ended<T> {
    /// Number of calls before it began.
    after: u64,
    result: T,
}

impl<T> Default for Runs<T> {
    fn default() -> Self {
        Self(Mutex::new(RunState { calls: 0, begun: None, ended: None }))
    }
}

impl<T: Clone> Runs<T> {
    /// Returns the result of a run that began after this call. Calls `run` to start one only if no
    /// such run has been started by another caller.
    pub(in crate::tiered) async fn share<F>(&self, run: impl Fn() -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        let number = {
            let mut state = self.0.lock();
            state.calls += 1;
            state.calls
        };
        loop {
            let (after, begun) = {
                let mut state = self.0.lock();
                if let Some(ended) = state.ended.as_ref().filter(|ended| ended.after >= number) {
                    return ended.result.clone();
                }
                let running = state.begun.as_ref().and_then(|(after, run)| Some((*after, run.upgrade()?)));
                running.unwrap_or_else(|| {
                    let begun = (Box::pin(run()) as Boxed<T>).shared();
                    let after = state.calls;
                    state.begun = begun.downgrade().map(|weak| (after, weak));
                    (after, begun)
                })
            };
            let result = begun.await;
            let mut state = self.0.lock();
            if state.begun.as_ref().is_some_and(|(begun, _)| *begun == after) {
                state.begun = None;
                state.ended = Some(Ended { after, result: result.clone() });
            }
            if after >= number {
                return result;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_lite::future;

    use super::*;

    /// Ten callers caused ten runs, one after the other.
    #[test]
    fn callers_that_arrive_during_a_run_share_the_next() {
        let (runs, begun) = (Runs::default(), AtomicU64::new(0));
        let (first_ends, ended) = async_channel::bounded::<()>(1);
        let run = || {
            let (nth, ended) = (begun.fetch_add(1, Ordering::Relaxed) + 1, ended.clone());
            async move {
                let _ = ended.recv().await;
                nth
            }
        };
        let mut first = pin!(runs.share(run));
        assert_eq!(future::block_on(future::poll_once(&mut first)), None);
        let mut others: Vec<_> = (0..9).map(|_| Box::pin(runs.share(run))).collect();
        for other in &mut others {
            assert_eq!(future::block_on(future::poll_once(other)), None);
        }
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        first_ends.try_send(()).unwrap();
        assert_eq!(future::block_on(first), 1);
        first_ends.try_send(()).unwrap();
        for other in others {
            assert_eq!(future::block_on(other), 2, "one run for all of them, begun after their calls");
        }
        first_ends.try_send(()).unwrap();
        assert_eq!(future::block_on(runs.share(run)), 3);
    }

    /// A caller of `compact` polled its future once and then ran a long branch of a `select!`. It
    /// owned the run, and blocked every other caller.
    #[test]
    fn an_unpolled_caller_does_not_block_the_others() {
        let runs = Runs::default();
        let (end, ended) = async_channel::bounded::<()>(2);
        let run = || {
            let ended = ended.clone();
            async move { ended.recv().await.is_ok() }
        };
        let mut unpolled = pin!(runs.share(run));
        assert_eq!(future::block_on(future::poll_once(&mut unpolled)), None);
        end.try_send(()).unwrap();
        end.try_send(()).unwrap();
        assert_eq!(future::block_on(future::poll_once(runs.share(run))), Some(true));
        assert!(future::block_on(unpolled));
    }

    /// The run of a single caller ends when that caller is dropped, and blocks no later caller.
    #[test]
    fn a_run_ends_with_its_last_caller() {
        let (runs, begun) = (Runs::default(), AtomicU64::new(0));
        for _ in 0..10 {
            let mut caller = Box::pin(runs.share(|| {
                begun.fetch_add(1, Ordering::Relaxed);
                future::pending::<()>()
            }));
            assert!(future::block_on(future::poll_once(&mut caller)).is_none());
        }
        assert_eq!(begun.load(Ordering::Relaxed), 10);
        assert_eq!(future::block_on(future::poll_once(runs.share(|| async {}))), Some(()));
    }
}
