use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidespool::TieredSpool;
use tidespool_core::{Locked, Spool as _};

use crate::child;
use crate::setup::{assert_holds, block_on, config, open, put_some};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Number of threads that a spool has started. sled's own threads stay for the next opening.
fn spool_threads() -> usize {
    let names = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = names.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    names.filter(|name| name.starts_with("tide-")).count()
}

/// Sets the limit on threads; `None` is the maximum.
fn set_limit(limit: Option<usize>) {
    let maximum = getrlimit(Resource::Nproc).maximum;
    let limit = limit.map(|limit| u64::try_from(limit).unwrap());
    setrlimit(Resource::Nproc, Rlimit { current: limit.or(maximum), maximum }).unwrap();
}

/// At the limit on threads (`RLIMIT_NPROC`, or `pids.max` of a control group), `open` hung for
/// 60 s, because sled waited for threads that it could not start. Every later attempt failed: the
/// process itself held the lock of the directory.
///
/// Whichever thread cannot be started, `open` must fail at once with an error that names the limit,
/// join all threads and release the lock, and the next opening must work.
#[test]
fn an_opening_at_the_thread_limit_fails_cleanly_and_can_be_repeated() {
    child::run_unprivileged(
        "threads::an_opening_at_the_thread_limit_fails_cleanly_and_can_be_repeated",
        |dir| {
            block_on(async {
                let path = dir.join("spool");
                // sled starts its threads once per process, so the first opening is a case of its
                // own.
                let needs = fail_until_it_opens(&path, &[]).await;
                assert!(needs > 10, "the limit was never reached: {needs}");
                let spool = open(&path).await;
                let mut stored = put_some(&spool, true).await;
                spool.compact().await.unwrap();
                stored.extend(put_some(&spool, true).await);
                spool.shutdown().await.unwrap();
                fail_until_it_opens(&path, &stored).await;
            });
        },
    );
}

/// Opens with space for 0, 1, 2 ... more threads, until that works. Returns the number.
async fn fail_until_it_opens(path: &std::path::Path, stored: &[(tidespool_core::SpoolId, usize)]) -> usize {
    for more in 0.. {
        set_limit(Some(threads() + more));
        let opened = TieredSpool::open(config(path)).await;
        set_limit(None);
        let error = match opened {
            Err(error) => error,
            Ok(spool) => {
                assert_holds(&spool, stored).await;
                spool.shutdown().await.unwrap();
                return more;
            }
        };
        let text = error.to_string();
        assert!(text.contains("thread") && text.contains("RLIMIT_NPROC"), "{more}: {text}");
        assert!(!error.root_cause().is::<Locked>(), "{more}: {text}");
        assert_eq!(spool_threads(), 0, "{more}: {text}");
        if !stored.is_empty() {
            let spool = open(path).await;
            assert_holds(&spool, stored).await;
            spool.shutdown().await.unwrap();
        }
    }
    unreachable!()
}

/// The limit is reached while the spool runs. It continues, and shuts down normally.
#[test]
fn a_running_spool_needs_no_more_threads() {
    child::run_unprivileged("threads::a_running_spool_needs_no_more_threads", |dir| {
        block_on(async {
            let path = dir.join("spool");
            let spool = open(&path).await;
            let mut stored = put_some(&spool, true).await;
            set_limit(Some(threads()));
            for _ in 0..60 {
                stored.extend(put_some(&spool, false).await);
            }
            spool.compact().await.unwrap();
            assert_holds(&spool, &stored).await;
            let (sender, receiver) = async_channel::bounded(1);
            let refused = spool.enumerate(sender, chrono::Utc::now()).unwrap_err();
            assert!(refused.to_string().contains("RLIMIT_NPROC"), "{refused:#}");
            assert!(receiver.recv().await.is_err());
            assert_eq!(spool.unhealthy_reason(), None);
            // The last manifest is written by its own thread, if one can be started.
            spool.shutdown().await.unwrap();
            set_limit(None);
            let spool = open(&path).await;
            assert_eq!(spool.recovery().damage, []);
            assert_holds(&spool, &stored).await;
            spool.shutdown().await.unwrap();
        });
    });
}
