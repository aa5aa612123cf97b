//! Work that callers share: callers that ask while it runs share the next run.

use std::future::Future;
use std::pin::Pin;

use futures_util::future::{FutureExt as _, WeakShared};
use parking_lot::Mutex;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Runs of one kind of work, one at a time.
///
/// Every caller that waits polls the run, so no caller depends on another one's being polled. A run
/// ends when the last of its callers goes away.
#[derive(Debug)]
pub(in crate::tiered) struct Runs<T>(Mutex<RunState<T>>);

#[derive(Debug)]
struct RunState<T> {
    /// Calls until now.
    asked: u64,
    /// The run that was begun last, after so many calls. The callers own it.
    begun: Option<(u64, WeakShared<Boxed<T>>)>,
    /// The run that ended last.
    ended: Option<Ended<T>>,
}

#[derive(Debug)]
struct Ended<T> {
    /// It began after so many calls.
    after: u64,
    result: T,
}

impl<T> Default for Runs<T> {
    fn default() -> Self {
        Self(Mutex::new(RunState { asked: 0, begun: None, ended: None }))
    }
}

impl<T: Clone> Runs<T> {
    /// The result of a run that began after this call. `run` is called only if no other caller's
    /// run will do.
    pub(in crate::tiered) async fn share<F>(&self, run: impl Fn() -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        let number = {
            let mut state = self.0.lock();
            state.asked += 1;
            state.asked
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
                    let after = state.asked;
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

    /// Each of ten callers had a run of its own, one after the other.
    #[test]
    fn who_asks_during_a_run_shares_the_next() {
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
            assert_eq!(future::block_on(other), 2, "one run for all of them, begun after they asked");
        }
        first_ends.try_send(()).unwrap();
        assert_eq!(future::block_on(runs.share(run)), 3);
    }

    /// A caller of `compact` polled it once and then did something else (`select!` with a long branch).
    /// It held the run, and every other caller waited for it.
    #[test]
    fn a_caller_that_is_not_polled_keeps_nobody_waiting() {
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

    /// The run of a caller that goes away ends with it, and holds up no other caller.
    #[test]
    fn a_run_that_nobody_waits_for_ends() {
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
