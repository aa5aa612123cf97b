use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidespool_core::{Spool as _, SpoolId};
use tidespool_testkit::payload;

use crate::child;
use crate::setup::{MIB, assert_holds, block_on, config, put_some};
use crate::unsafe_calls::{handle_alarms, handled, send_alarms};

/// A process handles a signal without `SA_RESTART` (a profiler's, a timer's). The signal interrupts
/// system calls, which return EINTR. The spool must not treat that as a disk error.
#[test]
fn signals_interrupt_nothing() {
    child::run("signals::signals_interrupt_nothing", |dir| {
        handle_alarms();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| send_alarms(&stop, Duration::from_micros(200)));
            block_on(use_spool(&dir.join("spool"), 256 << 10));
            // On tmpfs a signal aborts an allocation, so one of 64 MiB would never succeed.
            if let Ok(in_memory) = tempfile::tempdir_in("/dev/shm") {
                block_on(use_spool(&in_memory.path().join("spool"), 64 * MIB));
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(handled() > 1000, "{} signals", handled());
    });
}

async fn use_spool(path: &Path, segment_size: u64) {
    let capacity = 16 * segment_size;
    let config = config(path).segment_size(segment_size).journal_capacity(capacity);
    let mut stored = Vec::new();
    for round in 0..2 {
        let spool = tidespool::TieredSpool::open(config.clone()).await.unwrap();
        assert_eq!(spool.recovery().damage, [], "round {round}");
        assert_holds(&spool, &stored).await;
        for _ in 0..30 {
            stored.extend(put_some(&spool, true).await);
            stored.extend(put_some(&spool, false).await);
        }
        for _ in 0..8 {
            let id = SpoolId::new();
            spool.store(id, payload::shared(id, 1, 1_000_000), true, None).await.expect("store");
            stored.push((id, 1_000_000));
        }
        spool.cleanup().await.unwrap();
        spool.compact().await.unwrap();
        assert_holds(&spool, &stored).await;
        let seen = spool.stats();
        let errors = [
            seen.errors_journal_write,
            seen.errors_journal_sync,
            seen.errors_journal_read,
            seen.errors_sled,
            seen.errors_manifest,
            seen.corrupt,
        ];
        assert_eq!(errors, [0; 6], "round {round}");
        assert_eq!(spool.unhealthy_reason(), None);
        spool.shutdown().await.unwrap();
    }
}
