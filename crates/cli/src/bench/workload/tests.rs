use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tidespool_core::{Spool, SpoolEntry};

use super::*;

/// Counts what is asked of it, and can be told to fail.
#[derive(Default)]
struct Counting {
    live: Mutex<HashSet<SpoolId>>,
    most_live: AtomicUsize,
    stores: AtomicUsize,
    loads: AtomicUsize,
    removes: AtomicUsize,
    fail_store: Option<usize>,
    loaded_size: usize,
}

#[async_trait]
impl Spool for Counting {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        assert!(self.live.lock().unwrap().contains(&id));
        Ok(vec![0; self.loaded_size])
    }
    async fn remove(&self, id: SpoolId) -> Result<()> {
        self.removes.fetch_add(1, Ordering::Relaxed);
        assert!(self.live.lock().unwrap().remove(&id));
        Ok(())
    }
    async fn store(&self, id: SpoolId, _data: Payload, _: bool, _: Option<Instant>) -> Result<()> {
        let nth = self.stores.fetch_add(1, Ordering::Relaxed);
        if self.fail_store == Some(nth) {
            bail!("no room");
        }
        let mut live = self.live.lock().unwrap();
        live.insert(id);
        self.most_live.fetch_max(live.len(), Ordering::Relaxed);
        Ok(())
    }
    fn enumerate(&self, _: Sender<SpoolEntry>, _: DateTime<Utc>) -> Result<()> {
        bail!("not used")
    }
    async fn cleanup(&self) -> Result<()> {
        Ok(())
    }
    async fn shutdown(&self) -> Result<()> {
        Ok(())
    }
    async fn advise_low_memory(&self) -> Result<isize> {
        Ok(0)
    }
}

const SIZE: usize = 100;

fn plan(workload: Workload) -> Plan {
    Plan {
        workload,
        size: SIZE,
        concurrency: 8,
        force_sync: false,
        duration: Duration::from_millis(100),
        memory_budget: None,
    }
}

fn counting() -> Arc<Counting> {
    Arc::new(Counting { loaded_size: SIZE, ..Counting::default() })
}

async fn run_on(spool: &Arc<Counting>, plan: Plan) -> Result<Measured> {
    let spool = Arc::clone(spool);
    run(&Arc::new(Engine::Spool(spool)), plan, &Arc::default()).await
}

fn seen(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Relaxed)
}

#[tokio::test]
async fn store_keeps_a_bounded_number_alive() {
    let spool = counting();
    // 2 live messages for each of the 8 callers, and one while the oldest is being removed.
    let plan =
        Plan { size: STORE_LIVE_BYTES / 16, duration: Duration::from_millis(200), ..plan(Workload::Store) };
    let measured = run_on(&spool, plan).await.unwrap();
    assert!((16..=24).contains(&seen(&spool.most_live)), "{}", seen(&spool.most_live));
    assert!(measured.latency.count() > 0 && measured.latency.count() <= seen(&spool.stores) as u64);
    assert_eq!(seen(&spool.stores) - seen(&spool.removes), spool.live.lock().unwrap().len());
}

#[tokio::test]
async fn lifecycle_leaves_nothing_and_counts_messages() {
    let spool = counting();
    let measured = run_on(&spool, plan(Workload::Lifecycle)).await.unwrap();
    let stores = seen(&spool.stores);
    assert_eq!((stores, stores), (seen(&spool.loads), seen(&spool.removes)));
    assert!(measured.latency.count() > 0 && measured.latency.count() <= stores as u64);
    assert!(measured.seconds > 0.0);
}

#[tokio::test]
async fn load_reads_what_was_stored_before() {
    let spool = counting();
    let budget = 8 * 10 * SIZE as u64;
    let measured =
        run_on(&spool, Plan { memory_budget: Some(budget), ..plan(Workload::Load) }).await.unwrap();
    assert_eq!(seen(&spool.stores), 10);
    assert!(measured.latency.count() > 0 && measured.latency.count() <= seen(&spool.loads) as u64);
}

#[tokio::test]
async fn all_callers_get_their_turn_where_no_call_ever_waits() {
    // On one thread, without a yield, the first caller would be alone until the end.
    let spool = counting();
    let plan = Plan { size: STORE_LIVE_BYTES, concurrency: 50, ..plan(Workload::Store) };
    run_on(&spool, plan).await.unwrap();
    assert!(seen(&spool.most_live) >= 50, "{}", seen(&spool.most_live));
}

#[tokio::test]
async fn the_first_failure_ends_the_run_early_and_is_told() {
    let spool = Arc::new(Counting { fail_store: Some(20), ..Counting::default() });
    let plan = Plan { duration: Duration::from_secs(3_600), ..plan(Workload::Store) };
    // The warm-up is one second, which is all that this waits.
    let err = run_on(&spool, plan).await.unwrap_err();
    assert!(format!("{err:#}").contains("store of message"), "{err:#}");
    assert!(format!("{err:#}").ends_with("failed: no room"), "{err:#}");
}

#[tokio::test]
async fn a_message_that_comes_back_with_another_length_is_an_error() {
    let spool = Arc::new(Counting { loaded_size: SIZE + 1, ..Counting::default() });
    let err = run_on(&spool, plan(Workload::Lifecycle)).await.unwrap_err();
    assert!(err.to_string().contains("loaded with 101"), "{err:#}");
}

#[tokio::test]
async fn an_interrupt_ends_the_run() {
    let stop = Arc::new(AtomicBool::new(true));
    let plan = Plan { duration: Duration::from_secs(3_600), ..plan(Workload::Store) };
    let measured = run(&Arc::new(Engine::Spool(counting())), plan, &stop).await.unwrap();
    assert_eq!(measured.latency.count(), 0);
}

#[test]
fn live_messages_are_bounded_by_number_and_bytes() {
    let live = |size, concurrency| live_for_each_caller(&Plan { size, concurrency, ..plan(Workload::Store) });
    assert_eq!(live(1_024, 64), 128);
    assert_eq!(live(16_384, 64), 64);
    assert_eq!(live(20 << 20, 64), 1);
    assert_eq!(live(1, 100_000), 1);
}

#[test]
fn payloads_differ_and_do_not_compress() {
    let pool = payloads(4_096);
    assert_eq!(pool.len(), POOL_MESSAGES);
    assert_eq!(pool.iter().collect::<HashSet<_>>().len(), POOL_MESSAGES);
    for payload in pool.iter() {
        let mut counts = [0_u32; 256];
        payload.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        assert!(counts.iter().all(|count| *count < 64), "bytes are not spread evenly");
    }
    assert_eq!(payloads(POOL_BYTES * 2).len(), 1);
    assert_eq!(payloads(3)[0].len(), 3);
}

#[test]
fn every_item_can_be_chosen() {
    let mut random = Random::new();
    let chosen: HashSet<_> = (0..1_000).filter_map(|_| random.choose(&[1, 2, 3]).copied()).collect();
    assert_eq!(chosen.len(), 3);
    assert_eq!(random.choose::<u8>(&[]), None);
}
