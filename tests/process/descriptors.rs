use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidespool::TieredSpool;
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::{payload, wait};

use crate::child;
use crate::setup::{assert_holds, block_on, config, open, put_some};

fn set_limit(limit: Option<u64>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit.or(maximum), maximum }).unwrap();
}

/// The lowest descriptor that this process does not use. As the limit, it prevents any opening.
fn next_descriptor() -> u64 {
    use std::os::fd::AsRawFd as _;
    let probe = std::fs::File::open("/dev/null").unwrap();
    u64::try_from(probe.as_raw_fd()).unwrap()
}

/// The limit on open files is lowered under a running spool, or other parts of the process use up
/// the descriptors. Segments, checkpoints and the probe fail with EMFILE. Nothing is lost or
/// reported as damaged, the gate or the error of a store shows it, and everything works after the
/// limit is raised.
#[test]
fn a_spool_recovers_when_files_can_be_opened_again() {
    child::run("descriptors::a_spool_recovers_when_files_can_be_opened_again", |dir| {
        block_on(async {
            let path = dir.join("spool");
            let config = config(&path).store_deadline(Duration::from_millis(300));
            let spool = TieredSpool::open(config.clone()).await.unwrap();
            let mut stored = put_some(&spool, true).await;
            set_limit(Some(next_descriptor()));
            // Stores until the prepared segments are used up and the fault shows.
            let mut refused = None;
            for _ in 0..2000 {
                let id = SpoolId::new();
                match spool.store(id, payload::shared(id, 1, 20_000), true, None).await {
                    Ok(()) => stored.push((id, 20_000)),
                    Err(error) => {
                        refused = Some(error);
                        break;
                    }
                }
            }
            assert!(refused.is_some(), "no store failed without descriptors");
            assert!(spool.stats().errors_journal_write > 0, "no error was counted");
            assert_holds(&spool, &stored).await;
            for (id, _) in stored.drain(..2) {
                spool.remove(id).await.unwrap();
            }
            set_limit(None);
            wait::until("the gate opens", || spool.unhealthy_reason().is_none()).await;
            wait::bounded("a store", async {
                loop {
                    let id = SpoolId::new();
                    if spool.store(id, payload::shared(id, 1, 5_000), true, None).await.is_ok() {
                        break stored.push((id, 5_000));
                    }
                }
            })
            .await;
            spool.compact().await.unwrap();
            assert_holds(&spool, &stored).await;
            assert_eq!(spool.stats().corrupt, 0);
            spool.shutdown().await.unwrap();
            let spool = open(&path).await;
            assert_eq!((spool.recovery().damage.as_slice(), spool.recovery().lost), (&[][..], 0));
            assert_holds(&spool, &stored).await;
            spool.shutdown().await.unwrap();
        });
    });
}

/// An opening that cannot open a file, whichever it is, fails with the limit as the reason. It is
/// never reported as damage, and the next opening finds everything.
#[test]
fn an_opening_without_descriptors_reports_no_damage() {
    child::run("descriptors::an_opening_without_descriptors_reports_no_damage", |dir| {
        block_on(async {
            let path = dir.join("spool");
            let spool = open(&path).await;
            let mut stored = Vec::new();
            for _ in 0..30 {
                stored.extend(put_some(&spool, true).await);
            }
            spool.shutdown().await.unwrap();
            for more in 0.. {
                set_limit(Some(next_descriptor() + more));
                let opened = TieredSpool::open(config(&path)).await;
                set_limit(None);
                let error = match opened {
                    Err(error) => error,
                    Ok(spool) => {
                        assert_eq!(spool.recovery().damage, []);
                        assert_holds(&spool, &stored).await;
                        spool.shutdown().await.unwrap();
                        assert!(more > 3, "the limit was never reached");
                        break;
                    }
                };
                let text = error.to_string();
                assert!(text.contains("Too many open files"), "{more}: {text}");
                assert!(!text.contains("damage"), "{more}: {text}");
                let spool = open(&path).await;
                assert_eq!(spool.recovery().damage, [], "{more}");
                assert_holds(&spool, &stored).await;
                spool.shutdown().await.unwrap();
            }
        });
    });
}
