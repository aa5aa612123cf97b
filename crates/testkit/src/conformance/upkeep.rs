//! Upkeep moves messages about. It loses none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tidespool_core::SpoolId;

use super::Subject;
use super::calls::{LENGTHS, all_upkeep, assert_holds, assert_lists, put, put_as};

/// advise_low_memory, cleanup and compact, each alone and more than once.
pub async fn upkeep_keeps_every_message(subject: &mut Subject) {
    let spool = subject.spool();
    let mut stored = Vec::new();
    for round in 0..3 {
        for len in LENGTHS {
            let id = SpoolId::new();
            put_as(spool, id, 1, len, round == 1).await;
            stored.push((id, 1, len));
        }
        for _ in 0..2 {
            match round {
                0 => drop(spool.advise_low_memory().await.expect("advise_low_memory")),
                1 => spool.cleanup().await.expect("cleanup"),
                _ => spool.compact().await.expect("compact"),
            }
            for &(id, version, len) in &stored {
                assert_holds(spool, id, version, len).await;
            }
        }
    }
    assert_lists(spool, &stored).await;
}

/// On an empty spool there is nothing to do, and that is no error.
pub async fn upkeep_of_an_empty_spool_is_ok(subject: &mut Subject) {
    for _ in 0..2 {
        all_upkeep(subject.spool()).await;
    }
    assert_lists(subject.spool(), &[]).await;
}

/// Upkeep runs beside stores, loads and removes without harm to any of them.
pub async fn upkeep_beside_traffic_loses_nothing(subject: &mut Subject) {
    let done = Arc::new(AtomicBool::new(false));
    let upkeep = tokio::spawn({
        let (spool, done) = (subject.shared(), done.clone());
        async move {
            while !done.load(Ordering::Relaxed) {
                all_upkeep(spool.as_ref()).await;
            }
        }
    });
    let spool = subject.spool();
    let mut stored = Vec::new();
    for n in 0..150 {
        let (short, long) = (SpoolId::new(), SpoolId::new());
        put(spool, short, 1, 50 + n).await;
        put_as(spool, long, 1, 3000 + n * 10, n % 10 == 0).await;
        put(spool, long, 2, 3000 + n * 7).await;
        assert_holds(spool, short, 1, 50 + n).await;
        assert_holds(spool, long, 2, 3000 + n * 7).await;
        spool.remove(short).await.expect("remove");
        stored.push((long, 2, 3000 + n * 7));
    }
    done.store(true, Ordering::Relaxed);
    upkeep.await.expect("upkeep");
    for &(id, version, len) in &stored {
        assert_holds(spool, id, version, len).await;
    }
    assert_lists(spool, &stored).await;
}

/// A spool that nothing is wrong with gives no reason, before and after work.
pub async fn a_healthy_spool_gives_no_reason(subject: &mut Subject) {
    let spool = subject.spool();
    assert_eq!(spool.unhealthy_reason(), None);
    put_as(spool, SpoolId::new(), 1, 5000, true).await;
    all_upkeep(spool).await;
    assert_eq!(spool.unhealthy_reason(), None);
}
