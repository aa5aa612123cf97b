//! `unpaired`: messages of one spool without a partner in another one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use tidespool::{SpoolNameError, Tidespool, TieredSpool};
use tidespool_core::{Closed, Spool, SpoolId};
use tidespool_testkit::{ids, payload};

use crate::broken::HOUR;
use crate::scan::ids as ids_of;
use crate::setup::Tiered;

struct Mail {
    store: Arc<Tidespool>,
    data: TieredSpool,
    meta: TieredSpool,
}

impl Mail {
    async fn open(tiered: &Tiered) -> Self {
        let store = Arc::new(Tidespool::open(tiered.config.clone()).await.expect("open"));
        let (data, meta) = (store.spool("data").expect("data"), store.spool("meta").expect("meta"));
        Self { store, data, meta }
    }

    async fn unpaired(&self, before: DateTime<Utc>) -> BTreeSet<SpoolId> {
        ids_of(self.store.unpaired("data", "meta", before).expect("unpaired"), |id| id).await
    }
}

async fn put(spool: &TieredSpool, id: SpoolId, force_sync: bool) {
    spool.store(id, payload::shared(id, 1, 200), force_sync, None).await.expect("store");
}

/// In each tier, with partners in each tier.
#[tokio::test(flavor = "multi_thread")]
async fn only_old_messages_without_a_partner_are_returned() {
    let tiered = Tiered::new(|config| config.checkpoint_after(HOUR).dirty_expire(HOUR));
    let mail = Mail::open(&tiered).await;
    let (old, cutoff) = (Utc::now() - TimeDelta::hours(3), Utc::now() - TimeDelta::hours(1));
    let mut expected = BTreeSet::new();
    let mut number = 0;
    let mut next = || {
        number += 1;
        [ids::v1, ids::v6, ids::v7][usize::try_from(number).unwrap() % 3](old, number)
    };
    for round in 0..3 {
        let is_synced = round < 2;
        for _ in 0..300 {
            let (paired, alone) = (next(), next());
            put(&mail.data, paired, is_synced).await;
            put(&mail.meta, paired, is_synced).await;
            put(&mail.data, alone, is_synced).await;
            expected.insert(alone);
        }
        // The partner was removed, and the message itself.
        let (left, gone, envelope) = (next(), next(), next());
        for id in [left, gone] {
            put(&mail.data, id, true).await;
        }
        put(&mail.meta, left, true).await;
        put(&mail.meta, envelope, true).await;
        if round == 0 {
            mail.data.compact().await.expect("compact");
        }
        mail.meta.remove(left).await.expect("remove");
        mail.data.remove(gone).await.expect("remove");
        expected.insert(left);
        assert!(mail.unpaired(cutoff).await == expected, "round {round}");
    }
    // Too young, or of unknown age.
    put(&mail.data, SpoolId::new(), true).await;
    put(&mail.data, ids::v4(1), true).await;
    assert!(mail.unpaired(cutoff).await == expected);
    assert_eq!(mail.unpaired(Utc::now() + TimeDelta::hours(1)).await.len(), expected.len() + 1);
    mail.data.compact().await.expect("compact");
    assert!(mail.unpaired(cutoff).await == expected);
    // A partner that came late.
    let late = *expected.first().expect("an orphan");
    put(&mail.meta, late, false).await;
    expected.remove(&late);
    assert!(mail.unpaired(cutoff).await == expected);
    mail.store.shutdown().await.expect("shutdown");
}

/// A message whose partner was acknowledged before the scan is never returned, wherever checkpoints
/// move the two. An orphan always is.
#[tokio::test(flavor = "multi_thread")]
async fn beside_traffic_no_pair_is_returned_and_every_orphan() {
    let tiered = Tiered::new(|config| config);
    let mail = Arc::new(Mail::open(&tiered).await);
    let orphans: BTreeSet<SpoolId> = (0..300).map(|n| ids::v6(Utc::now(), 1_000_000 + n)).collect();
    for (n, id) in orphans.iter().enumerate() {
        put(&mail.data, *id, n % 50 == 0).await;
    }
    // The ids with an acknowledged partner, in the order of the acknowledgements.
    let paired = Arc::new(Mutex::new(Vec::new()));
    let is_over = Arc::new(AtomicBool::new(false));
    let storing = {
        let (mail, paired, is_over) = (mail.clone(), paired.clone(), is_over.clone());
        tokio::spawn(async move {
            let mut last = Vec::new();
            for n in 0_u64.. {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                let id = SpoolId::new();
                put(&mail.data, id, n % 16 == 0).await;
                put(&mail.meta, id, n % 16 == 1).await;
                paired.lock().push(id);
                last.push(id);
                // A delivered message: the body first, so that it is never an orphan.
                if last.len() > 300 {
                    let id = last.swap_remove(usize::try_from(n).unwrap() * 7 % 300);
                    mail.data.remove(id).await.expect("remove");
                    mail.meta.remove(id).await.expect("remove");
                }
            }
        })
    };
    let moving = {
        let (mail, is_over) = (mail.clone(), is_over.clone());
        tokio::spawn(async move {
            while !is_over.load(Ordering::SeqCst) {
                mail.data.compact().await.expect("compact");
            }
        })
    };
    for _ in 0..20 {
        let before: BTreeSet<SpoolId> = paired.lock().iter().copied().collect();
        let found = mail.unpaired(Utc::now() + TimeDelta::hours(1)).await;
        let wrong = found.intersection(&before).next();
        assert_eq!(wrong, None, "its partner was acknowledged before the scan");
        assert!(found.is_superset(&orphans));
    }
    is_over.store(true, Ordering::SeqCst);
    storing.await.expect("the stores");
    moving.await.expect("the checkpoints");
    assert_eq!(mail.unpaired(Utc::now() + TimeDelta::hours(1)).await, orphans);
    mail.store.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_with_an_error_when_it_is_cut_short() {
    let tiered = Tiered::new(|config| config);
    let mail = Mail::open(&tiered).await;
    let old = Utc::now() - TimeDelta::hours(3);
    for n in 0..100 {
        put(&mail.data, ids::v7(old, n), n == 99).await;
    }
    for (data, meta, unknown) in [("data", "mate", "mate"), ("date", "meta", "date")] {
        let error = mail.store.unpaired(data, meta, Utc::now()).expect_err("no such spool");
        let expected = SpoolNameError::Unknown { name: unknown.to_owned() };
        assert_eq!(error.root_cause().downcast_ref(), Some(&expected), "{error:#}");
    }
    let mut scan = mail.store.unpaired("data", "meta", Utc::now()).expect("unpaired");
    scan.next().await.expect("an orphan").expect("found");
    mail.store.shutdown().await.expect("shutdown");
    let mut last = None;
    while let Some(next) = scan.next().await {
        last = Some(next);
    }
    let error = last.expect("an item").expect_err("it looks complete");
    assert!(error.root_cause().is::<Closed>(), "{error:#}");
    let error = mail.store.unpaired("data", "meta", Utc::now()).expect_err("shut down");
    assert!(error.root_cause().is::<Closed>(), "{error:#}");
}
