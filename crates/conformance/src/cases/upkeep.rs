//! Upkeep (`advise_low_memory`, `cleanup`, `compact`) moves messages and loses none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidespool_core::SpoolId;

use super::calls::{LENGTHS, advance, all_upkeep, assert_absent, assert_holds, assert_lists, put, put_as};
use crate::Subject;

/// Each of the three calls, alone and more than once.
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

/// Upkeep of an empty spool succeeds.
pub async fn upkeep_of_an_empty_spool_is_ok(subject: &mut Subject) {
    for _ in 0..2 {
        all_upkeep(subject.spool()).await;
    }
    assert_lists(subject.spool(), &[]).await;
}

/// Upkeep does not disturb concurrent stores, loads and removes.
pub async fn upkeep_beside_traffic_loses_nothing(subject: &mut Subject) {
    const MESSAGES: usize = 150;
    const ROUNDS: u64 = 8;
    let turns: Arc<[AtomicU64; 1]> = Arc::default();
    let upkeep = tokio::spawn({
        let (spool, turns) = (subject.shared(), turns.clone());
        async move {
            let mut rounds = 0;
            // Each message is replaced twice meanwhile, so that both sides run on a busy machine,
            // too.
            while rounds < ROUNDS || turns[0].load(Ordering::Relaxed) < 2 * MESSAGES as u64 {
                all_upkeep(spool.as_ref()).await;
                // Wait, so that the next round also runs during traffic.
                advance("the traffic", turns.as_ref(), 1).await;
                rounds += 1;
            }
        }
    });
    let spool = subject.spool();
    let mut stored: Vec<(SpoolId, u64, usize)> = (0..MESSAGES).map(|_| (SpoolId::new(), 0, 0)).collect();
    let mut turn = 0;
    while !upkeep.is_finished() {
        let (id, version, len) = &mut stored[turn % MESSAGES];
        if *version > 0 {
            // Check before the next version hides the effect of upkeep on this one.
            assert_holds(spool, *id, *version, *len).await;
        }
        *version += 1;
        *len = 100 + turn * 131 % 9000;
        put_as(spool, *id, *version, *len, turn % 10 == 0).await;
        let passing = SpoolId::new();
        put(spool, passing, 1, *len / 2).await;
        tokio::task::yield_now().await;
        assert_holds(spool, *id, *version, *len).await;
        spool.remove(passing).await.expect("remove");
        assert_absent(spool, passing).await;
        turn += 1;
        turns[0].fetch_add(1, Ordering::Relaxed);
    }
    upkeep.await.expect("upkeep");
    for &(id, version, len) in &stored {
        assert_holds(spool, id, version, len).await;
    }
    assert_lists(spool, &stored).await;
}

/// A healthy spool returns no reason, before and after work.
pub async fn a_healthy_spool_gives_no_reason(subject: &mut Subject) {
    let spool = subject.spool();
    assert_eq!(spool.unhealthy_reason(), None);
    put_as(spool, SpoolId::new(), 1, 5000, true).await;
    all_upkeep(spool).await;
    assert_eq!(spool.unhealthy_reason(), None);
}
