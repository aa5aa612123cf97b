//! Stores whose callers give up. A store that is not at the disk leaves no record. A store that may
//! be on disk fails with `InDoubt`, and its abort is written before anything else.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidespool::TieredSpool;
use tidespool_core::{
    Closed, InDoubt, Spool, SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId,
};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};

use crate::broken::{Broken, HOUR, LARGE, begin, committing, is_thread, queue, while_the_syncer_waits};
use crate::setup::{assert_absent, assert_holds, enumerate, put, stop};

/// Stores on a hanging disk with a deadline that passes while the disk has the record. On a busy
/// machine a short deadline may pass earlier, without doubt; then it is doubled.
async fn store_in_doubt(spool: &Arc<TieredSpool>, id: SpoolId) -> anyhow::Error {
    let mut deadline = Duration::from_millis(50);
    loop {
        let store = begin(spool, id, 2, 700, Some(deadline));
        let error = wait::bounded("a store on a hanging disk", store).await.unwrap().expect_err("it hangs");
        assert!(error.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{error:#}");
        if error.is::<InDoubt>() {
            return error;
        }
        deadline *= 2;
    }
}

/// A store returned `Err` at its deadline while the disk had its record, and the message was found
/// after a kill. Such an error has the context `InDoubt`. The message is not visible, and after the
/// next synced store it is gone permanently.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_at_a_hanging_disk_fails_in_doubt() {
    for call in [Call::Sync, Call::Write] {
        let broken = Broken::new(|config| config.checkpoint_after(HOUR).dirty_expire(HOUR));
        let spool = broken.start().await;
        let replaced = put(spool.as_ref(), 3000, true).await;
        let fresh = SpoolId::new();
        for id in [fresh, replaced] {
            broken.disk.inject(committing(Fault::on(call)).always().block());
            let error = store_in_doubt(&spool, id).await;
            assert_eq!(error.downcast_ref::<InDoubt>(), Some(&InDoubt { id }), "{error:#}");
            assert_absent(spool.as_ref(), fresh).await;
            assert_holds(spool.as_ref(), replaced, 3000).await;
            broken.disk.heal();
            let synced = put(spool.as_ref(), 100, true).await;
            spool.remove(synced).await.expect("remove");
        }
        // The messages must match stable storage, as after a power cut: a crash here can restore
        // neither store.
        wait::bounded("a flush", spool.advise_low_memory()).await.expect("advise_low_memory");
        drop(spool);
        broken.assert_reopens_with(&[(replaced, 3000)]).await;
    }
}

/// The spool's own deadline has the same effect.
#[tokio::test(flavor = "multi_thread")]
async fn the_spools_own_deadline_also_fails_in_doubt() {
    let broken = Broken::new(|config| config.store_deadline(Duration::from_millis(50)));
    let spool = broken.start().await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).always().block());
    let mut deadline = Duration::from_millis(50);
    loop {
        let config = tidespool::Config::clone(&spool.config()).store_deadline(deadline);
        spool.reconfigure(config).expect("reconfigure");
        let id = SpoolId::new();
        let store = wait::bounded("a store", begin(&spool, id, 1, 700, None)).await.unwrap();
        let error = store.expect_err("the disk hangs");
        assert!(error.root_cause().is::<SpoolBackpressureTimeout>(), "{error:#}");
        assert_absent(spool.as_ref(), id).await;
        if let Some(doubt) = error.downcast_ref::<InDoubt>() {
            assert_eq!(doubt.id, id);
            break;
        }
        deadline *= 2;
    }
    broken.disk.heal();
    stop(spool).await;
    broken.assert_reopens_with(&[]).await;
}

/// A store that is still queued when its caller gives up is never written. There is no doubt, and
/// no abort.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_waits_behind_a_hanging_disk_fails_without_doubt() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR).dirty_expire(HOUR));
    let spool = broken.start().await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).block());
    let first = SpoolId::new();
    let first_store = begin(&spool, first, 1, 500, None);
    wait::until("the sync hangs", || broken.disk.blocked() == 1).await;
    let mut late = vec![first];
    for len in [100, LARGE, 1_000_000] {
        let (given_up, dropped) = (SpoolId::new(), SpoolId::new());
        let store = begin(&spool, given_up, 1, len, Some(Duration::from_millis(20)));
        let error = wait::bounded("a store", store).await.unwrap().expect_err("the disk hangs");
        assert!(error.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{error:#}");
        assert!(!error.is::<InDoubt>(), "{error:#}");
        let store = begin(&spool, dropped, 1, len, None);
        tokio::task::yield_now().await;
        store.abort();
        let _ = store.await;
        late.extend([given_up, dropped]);
    }
    broken.disk.heal();
    wait::bounded("the first store", first_store).await.unwrap().expect("it was synced");
    let second = put(spool.as_ref(), 300, true).await;
    assert_eq!(spool.stats().aborts, 0);
    for id in &late[1..] {
        assert_eq!(records(&broken.tiered.path(), *id), [], "it was written");
    }
    drop(spool);
    broken.assert_reopens_with(&[(first, 500), (second, 300)]).await;
}

/// Callers drop their stores while the disk has the records, and other stores follow. The abort of
/// an earlier store was written after its put was durable, behind later stores. A crash after the
/// later store's `Ok` could restore the earlier store, which its caller had sent again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_back_is_taken_back_before_what_comes_after_it() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR).dirty_expire(HOUR));
    let spool = broken.start().await;
    let (earlier, stores) = while_the_syncer_waits(&broken, &spool).await;
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    broken.disk.watch(move |m| {
        if m.call == Call::Write && is_thread("tide-commit") {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    for store in stores {
        store.abort();
        store.await.expect_err("the disk hangs");
    }
    wait::until("they are aborted", || spool.stats().aborts == 8).await;
    let before = written.load(Ordering::SeqCst);
    let later: Vec<SpoolId> = (0..16).map(|_| SpoolId::new()).collect();
    let mut stores = Vec::new();
    for &id in &later {
        stores.push(queue(&spool, id, 1, LARGE).await);
    }
    wait::until("they are written", || written.load(Ordering::SeqCst) > before).await;
    broken.disk.heal();
    for store in stores {
        wait::bounded("a later store", store).await.unwrap().expect("the disk works again");
    }
    broken.disk.unwatch();
    let path = broken.tiered.path();
    let first_later = later.iter().flat_map(|id| records(&path, *id)).map(|(_, seq)| seq).min().unwrap();
    for id in earlier {
        match records(&path, id)[..] {
            [(PUT, put), (ABORT, abort)] => {
                assert!(put < abort && abort < first_later, "{put}, {abort}, {first_later}");
            }
            ref other => panic!("{other:?}"),
        }
        assert_absent(spool.as_ref(), id).await;
    }
    drop(spool);
    broken.disk.heal();
    let spool = broken.start().await;
    for id in &later {
        assert_holds(spool.as_ref(), *id, LARGE).await;
    }
    // Includes the store that kept the committer busy.
    assert_eq!(enumerate(spool.as_ref()).await.len(), later.len() + 1);
    stop(spool).await;
}

/// A shutdown ends while the disk fails. A written store may or may not be found at the next
/// opening, but got a plain `Closed`, as if it had never been written.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_at_a_failing_disk_at_the_shutdown_is_in_doubt() {
    let broken = Broken::new(|config| {
        config.checkpoint_after(HOUR).dirty_expire(HOUR).shutdown_timeout(Duration::from_millis(400))
    });
    let spool = broken.start().await;
    let kept = put(spool.as_ref(), 700, true).await;
    broken.disk.inject(committing(Fault::on(Call::Sync)).always());
    let before = broken.disk.count(Call::Sync);
    let written = SpoolId::new();
    let written_store = begin(&spool, written, 1, 700, None);
    wait::until("the sync was tried", || broken.disk.count(Call::Sync) > before).await;
    wait::bounded("the shutdown", spool.shutdown()).await.expect_err("it is not durable");
    let error = wait::bounded("the store", written_store).await.unwrap().expect_err("the disk fails");
    assert!(error.root_cause().is::<Closed>(), "{error:#}");
    assert_eq!(error.downcast_ref::<InDoubt>(), Some(&InDoubt { id: written }), "{error:#}");
    let never = SpoolId::new();
    let error = spool.store(never, payload::shared(never, 1, 100), true, None).await.expect_err("closed");
    assert!(error.root_cause().is::<Closed>() && !error.is::<InDoubt>(), "{error:#}");
    drop(spool);
    broken.disk.heal();
    let spool = broken.start().await;
    assert_holds(spool.as_ref(), kept, 700).await;
    assert_absent(spool.as_ref(), never).await;
    stop(spool).await;
}

const PUT: u32 = 1;
const ABORT: u32 = 3;

/// Kind and sequence number of the records of `id` in the segments, sorted by number, each once: a
/// record that is written again keeps its number. A record has the generation of its segment; a
/// footer entry does not.
fn records(spool: &Path, id: SpoolId) -> Vec<(u32, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(spool.join("journal")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for at in (4096..bytes.len().saturating_sub(56)).step_by(8) {
            if bytes[at + 8..at + 16] == bytes[16..24] && bytes[at + 32..at + 48] == id.as_bytes()[..] {
                let kind = u32::from(bytes[at + 4]);
                let seq = u64::from_le_bytes(bytes[at + 16..at + 24].try_into().unwrap());
                found.push((kind, seq));
            }
        }
    }
    found.sort_unstable_by_key(|(_, seq)| *seq);
    found.dedup();
    found
}
