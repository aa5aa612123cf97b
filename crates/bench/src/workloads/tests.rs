//! Tests the calls that each workload makes, with an engine that counts them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::bail;
use async_channel::Sender;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tidespool_core::{Spool, SpoolEntry, SpoolId};

use super::*;
use crate::engine::{Engine, Needs, Opener};
use crate::interrupt::Stop;
use crate::payload::{Payload, Pool};
use crate::plan::{Drain, Lifetime, Plan, Size};

/// The calls to the engine, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Open { small_caches: bool, stay_young: bool },
    Store(SpoolId, bool),
    Load(SpoolId),
    Remove(SpoolId),
}

#[derive(Default)]
struct Counting {
    live: Mutex<HashMap<SpoolId, usize>>,
    most_live: AtomicUsize,
    calls: Mutex<Vec<Call>>,
    fail_store: Option<usize>,
    loaded_too_long: bool,
    enumerates_one_less: bool,
    closed: AtomicBool,
}

/// Opens one spool, which survives a shutdown.
struct Memory(Arc<Counting>);

#[async_trait]
impl Opener for Memory {
    fn name(&self) -> &str {
        "memory"
    }
    async fn open(&self, _: &Path, needs: &Needs) -> Result<Engine> {
        let Needs { small_caches, stay_young, .. } = *needs;
        self.0.calls.lock().unwrap().push(Call::Open { small_caches, stay_young });
        self.0.closed.store(false, Ordering::Relaxed);
        Ok(Engine::Spool(self.0.clone()))
    }
    fn filler(&self) -> Result<Command> {
        bail!("not used")
    }
    fn neighbour(&self) -> Result<Command> {
        bail!("not used")
    }
}

#[async_trait]
impl Spool for Counting {
    async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
        self.called(Call::Load(id));
        let len = *self.live.lock().unwrap().get(&id).expect("a message that is there");
        Ok(vec![0; len + usize::from(self.loaded_too_long)])
    }
    async fn remove(&self, id: SpoolId) -> Result<()> {
        self.called(Call::Remove(id));
        assert!(self.live.lock().unwrap().remove(&id).is_some());
        Ok(())
    }
    async fn store(&self, id: SpoolId, data: Payload, sync: bool, _: Option<Instant>) -> Result<()> {
        let nth = self.called(Call::Store(id, sync));
        if self.fail_store.is_some_and(|fails| nth >= fails) {
            bail!("no room");
        }
        let mut live = self.live.lock().unwrap();
        live.insert(id, data.len());
        self.most_live.fetch_max(live.len(), Ordering::Relaxed);
        Ok(())
    }
    fn enumerate(&self, sender: Sender<SpoolEntry>, _: DateTime<Utc>) -> Result<()> {
        let mut live = self.live.lock().unwrap().clone();
        if self.enumerates_one_less {
            let first = *live.keys().next().unwrap();
            live.remove(&first);
        }
        tokio::spawn(async move {
            for (id, len) in live {
                drop(sender.send(SpoolEntry::Item { id, data: vec![0; len] }).await);
            }
        });
        Ok(())
    }
    async fn cleanup(&self) -> Result<()> {
        Ok(())
    }
    async fn shutdown(&self) -> Result<()> {
        assert!(!self.closed.swap(true, Ordering::Relaxed), "shut down twice");
        Ok(())
    }
    async fn advise_low_memory(&self) -> Result<isize> {
        Ok(0)
    }
}

impl Counting {
    fn called(&self, call: Call) -> usize {
        assert!(!self.closed.load(Ordering::Relaxed), "{call:?} after the shutdown");
        let mut calls = self.calls.lock().unwrap();
        calls.push(call);
        calls.len()
    }

    fn count(&self, is: impl Fn(&Call) -> bool) -> u64 {
        self.calls.lock().unwrap().iter().filter(|call| is(call)).count() as u64
    }

    fn stores(&self) -> u64 {
        self.count(|call| matches!(call, Call::Store(..)))
    }

    fn loads(&self) -> u64 {
        self.count(|call| matches!(call, Call::Load(_)))
    }

    fn removed(&self) -> Vec<SpoolId> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter_map(|call| if let Call::Remove(id) = call { Some(*id) } else { None }).collect()
    }

    fn opened(&self) -> Vec<Call> {
        let calls = self.calls.lock().unwrap();
        calls.iter().copied().filter(|call| matches!(call, Call::Open { .. })).collect()
    }
}

const SIZE: usize = 100;

fn plan(workload: Workload) -> Plan {
    Plan {
        size: Size::Bytes(SIZE),
        concurrency: 8,
        duration: Duration::from_millis(200),
        messages: Some(200),
        // The disk must have this space free, whether it is used or not.
        backlog_bytes: 1 << 20,
        journal_capacity: 1 << 20,
        ..Plan::new(workload)
    }
}

async fn measure(spool: &Arc<Counting>, plan: Plan, stop: Stop) -> Result<Measured> {
    let measured = measure_with(&Memory(spool.clone()), plan, stop).await;
    assert!(spool.closed.load(Ordering::Relaxed), "left open");
    measured
}

async fn measure_with(opener: &dyn Opener, plan: Plan, stop: Stop) -> Result<Measured> {
    let dir = tempfile::tempdir().unwrap();
    let run = Run {
        opener,
        pool: Pool::new(plan.size, plan.seed),
        plan: Arc::new(plan),
        dir: dir.path().to_owned(),
        engine_dir: dir.path().to_owned(),
        stop,
        quiet: Duration::ZERO,
    };
    super::run(&run).await
}

async fn run_on(spool: &Arc<Counting>, plan: Plan) -> Result<Measured> {
    measure(spool, plan, Stop::default()).await
}

fn close_to_all(counted: u64, all: u64) {
    assert!(counted > 0 && counted <= all, "{counted} of {all}");
}

#[tokio::test]
async fn store_keeps_a_bounded_number_alive() {
    let spool = Arc::default();
    // 32 live messages for each of the 8 callers, and one more while the oldest is being removed.
    let plan = Plan { size: Size::Bytes(256 << 10), ..plan(Workload::Store) };
    let measured = run_on(&spool, plan).await.unwrap();
    let most = spool.most_live.load(Ordering::Relaxed);
    assert!(most <= 8 * 33, "{most}");
    close_to_all(measured.ops, spool.stores());
    let (removed, live) = (spool.removed().len() as u64, spool.live.lock().unwrap().len() as u64);
    assert_eq!(spool.stores(), removed + live);
    assert_eq!(measured.bytes, measured.ops * (256 << 10));
}

#[tokio::test]
async fn lifecycle_leaves_nothing_and_counts_messages() {
    for lifetime in [None, Some(Lifetime::TenMillis), Some(Lifetime::HeavyTail)] {
        let spool = Arc::default();
        let measured = run_on(&spool, Plan { lifetime, ..plan(Workload::Lifecycle) }).await.unwrap();
        assert_eq!((spool.stores(), spool.stores()), (spool.loads(), spool.removed().len() as u64));
        close_to_all(measured.ops, spool.stores());
        assert!(measured.seconds > 0.0 && spool.live.lock().unwrap().is_empty());
        assert!(measured.extra.contains_key("bytes_per_message"));
        assert_eq!(measured.extra.contains_key("remove_p50_us"), lifetime.is_some());
    }
}

#[tokio::test]
async fn a_lifetime_keeps_messages_and_their_bytes_are_bounded() {
    let spool = Arc::default();
    let live_bytes = 8 * 10 * SIZE as u64;
    let plan = Plan { lifetime: Some(Lifetime::OneSecond), live_bytes, ..plan(Workload::Lifecycle) };
    let measured = run_on(&spool, plan).await.unwrap();
    assert_eq!(spool.most_live.load(Ordering::Relaxed), 80);
    assert!(measured.ops < spool.stores());
    assert!((measured.extra["live_bytes_peak"] - 8_000.0).abs() < 1e-9);
    assert!(measured.extra["waited_for_room_share"] > 0.0, "{:?}", measured.extra);
}

#[tokio::test]
async fn load_reads_what_was_stored_before() {
    let spool = Arc::default();
    let budget = 8 * 10 * SIZE as u64;
    let plan = Plan { memory_budget: Some(budget), ..plan(Workload::Load) };
    let measured = run_on(&spool, plan).await.unwrap();
    assert_eq!(spool.stores(), 10);
    close_to_all(measured.ops, spool.loads());
}

#[tokio::test]
async fn load_cold_loads_each_once_after_a_reopening_with_small_caches() {
    let spool = Arc::default();
    let plan = Plan { duration: Duration::from_secs(3_600), ..plan(Workload::LoadCold) };
    let measured = run_on(&spool, plan).await.unwrap();
    assert_eq!((spool.stores(), spool.loads(), measured.ops), (200, 200, 200));
    let opened = [false, true].map(|small_caches| Call::Open { small_caches, stay_young: false });
    assert_eq!(spool.opened(), opened);
    let calls = spool.calls.lock().unwrap();
    let loads = calls.iter().filter_map(|call| if let Call::Load(id) = call { Some(*id) } else { None });
    let loads: Vec<SpoolId> = loads.collect();
    assert!(!loads.is_sorted(), "not in random order");
    assert_eq!(loads.iter().collect::<std::collections::HashSet<_>>().len(), 200);
}

/// A spool for each directory, as an engine on disk has.
#[derive(Default)]
struct Directories(Mutex<BTreeMap<PathBuf, Arc<Counting>>>);

#[async_trait]
impl Opener for Directories {
    fn name(&self) -> &str {
        "memory"
    }
    async fn open(&self, dir: &Path, needs: &Needs) -> Result<Engine> {
        let spool = self.0.lock().unwrap().entry(dir.to_owned()).or_default().clone();
        Memory(spool).open(dir, needs).await
    }
    fn filler(&self) -> Result<Command> {
        bail!("not used")
    }
    fn neighbour(&self) -> Result<Command> {
        bail!("not used")
    }
}

#[tokio::test]
async fn mail_keeps_bodies_and_envelopes_in_two_spools() {
    let directories = Directories::default();
    let measured = measure_with(&directories, plan(Workload::Mail), Stop::default()).await.unwrap();
    let spools: Vec<_> = directories.0.into_inner().unwrap().into_iter().collect();
    let [(data, bodies), (meta, envelopes)] = &spools[..] else { panic!("{} spools", spools.len()) };
    assert!(data.ends_with("data") && meta.ends_with("meta"), "{data:?} {meta:?}");
    let messages = bodies.stores();
    close_to_all(measured.ops, messages);
    assert_eq!((messages, 2 * messages), (bodies.loads(), envelopes.stores()));
    assert_eq!(messages, envelopes.loads());
    // Both had the same ids, and no message is left.
    assert_eq!(bodies.removed(), envelopes.removed());
    for spool in [bodies, envelopes] {
        assert!(spool.live.lock().unwrap().is_empty() && spool.closed.load(Ordering::Relaxed));
    }
}

#[tokio::test]
async fn resave_keeps_one_message_for_each_caller() {
    let spool = Arc::default();
    let plan = Plan { size: Size::Metadata, force_sync: true, ..plan(Workload::Resave) };
    let measured = run_on(&spool, plan).await.unwrap();
    assert_eq!(spool.live.lock().unwrap().len(), 8);
    close_to_all(measured.ops, spool.stores());
    assert_eq!(spool.stores(), spool.count(|call| matches!(call, Call::Store(_, true))));
}

#[tokio::test]
async fn a_backlog_is_removed_only_when_all_of_it_is_there() {
    for drain in [Drain::Order, Drain::Random] {
        let spool = Arc::default();
        let plan = Plan { backlog_bytes: 50_000, drain, ..plan(Workload::Backlog) };
        let measured = run_on(&spool, plan).await.unwrap();
        assert_eq!((measured.ops, measured.bytes, spool.stores()), (500, 50_000, 500));
        let removed = spool.removed();
        assert_eq!((removed.len(), removed.is_sorted()), (500, drain == Drain::Order));
        let calls = spool.calls.lock().unwrap();
        assert!(calls[..501].iter().all(|call| !matches!(call, Call::Remove(_))));
        for (name, value) in [("live_messages", 500.0), ("live_bytes", 50_000.0)] {
            assert!((measured.extra[name] - value).abs() < 1e-9, "{name}");
        }
        assert!(measured.extra["drain_per_s"] > 0.0 && measured.extra.contains_key("written_per_byte"));
    }
}

#[tokio::test]
async fn drain_young_removes_oldest_first_what_no_checkpoint_has_touched() {
    let spool = Arc::default();
    let measured = run_on(&spool, plan(Workload::DrainYoung)).await.unwrap();
    assert_eq!((measured.ops, spool.stores()), (200, 200));
    assert!(spool.removed().is_sorted());
    assert_eq!(spool.opened(), [Call::Open { small_caches: false, stay_young: true }]);
}

#[tokio::test]
async fn enumerate_finds_everything_in_each_pass() {
    let spool = Arc::default();
    let measured = run_on(&spool, plan(Workload::Enumerate)).await.unwrap();
    let passes = measured.latency.count();
    assert_eq!((measured.ops, measured.bytes), (200 * passes, 200 * passes * SIZE as u64));
    assert_eq!(spool.opened().len(), 2);
    assert!((measured.extra["passes"] - passes as f64).abs() < 1e-9);
}

#[tokio::test]
async fn an_enumeration_that_misses_a_message_is_an_error() {
    let spool = Arc::new(Counting { enumerates_one_less: true, ..Counting::default() });
    let err = run_on(&spool, plan(Workload::Enumerate)).await.unwrap_err();
    assert_eq!(err.to_string(), "200 messages were stored and 199 enumerated");
}

#[tokio::test]
async fn open_clean_opens_as_often_as_asked() {
    let spool = Arc::default();
    let measured = run_on(&spool, Plan { rounds: 3, ..plan(Workload::OpenClean) }).await.unwrap();
    assert_eq!((measured.ops, spool.opened().len(), spool.stores()), (3, 4, 200));
    assert!(measured.extra.contains_key("open_ms") && measured.series.is_none());
}

#[tokio::test]
async fn mixed_counts_every_call_by_its_kind() {
    let spool = Arc::default();
    let measured = run_on(&spool, plan(Workload::Mixed)).await.unwrap();
    let kinds = ["store_unsynced", "store_synced", "load", "resave", "remove"];
    let by_kind: f64 = kinds.iter().map(|kind| measured.extra[&format!("{kind}_ops")]).sum();
    assert!((by_kind - measured.ops as f64).abs() < 1e-9);
    let synced = spool.count(|call| matches!(call, Call::Store(_, true))) as f64 / spool.stores() as f64;
    assert!((0.2..0.4).contains(&synced), "{synced}");
}

#[tokio::test]
async fn scale_measures_each_level_and_keeps_its_number_alive() {
    let spool = Arc::default();
    let plan = Plan { messages: Some(20_000), ..plan(Workload::Scale) };
    let measured = run_on(&spool, plan).await.unwrap();
    // 5 000 are stored and removed at 10 000, and 10 000 at 20 000.
    assert_eq!((measured.ops, spool.live.lock().unwrap().len()), (20_000, 20_000));
    assert_eq!((spool.stores(), spool.removed().len()), (35_000, 15_000));
    for what in ["store_p50_us", "load_p99_us", "remove_mean_us", "resident_bytes_per_message"] {
        for level in [10_000, 20_000] {
            assert!(measured.extra.contains_key(&format!("{what}_at_{level}")), "{what} {level}");
        }
    }
}

#[tokio::test]
async fn all_callers_get_their_turn_where_no_call_ever_waits() {
    // On one thread, without a yield, the first caller would run alone until the end, and each
    // other caller would make one call.
    let spool = Arc::default();
    run_on(&spool, plan(Workload::Resave)).await.unwrap();
    let mut of_caller = HashMap::new();
    for call in spool.calls.lock().unwrap().iter() {
        if let Call::Store(id, _) = call {
            *of_caller.entry(*id).or_insert(0) += 1;
        }
    }
    assert!(of_caller.len() == 8 && of_caller.values().all(|calls| *calls > 1), "{of_caller:?}");
}

#[tokio::test]
async fn the_first_failure_ends_the_run_early_and_is_returned() {
    let spool = Arc::new(Counting { fail_store: Some(20), ..Counting::default() });
    let plan = Plan { duration: Duration::from_secs(3_600), ..plan(Workload::Store) };
    // This waits for the warm-up of one second and no longer.
    let err = run_on(&spool, plan).await.unwrap_err();
    assert!(format!("{err:#}").contains("store of message"), "{err:#}");
    assert!(format!("{err:#}").ends_with("failed: no room"), "{err:#}");
}

#[tokio::test]
async fn a_message_that_comes_back_with_another_length_is_an_error() {
    let spool = Arc::new(Counting { loaded_too_long: true, ..Counting::default() });
    let err = run_on(&spool, plan(Workload::Lifecycle)).await.unwrap_err();
    assert!(err.to_string().contains("loaded with 101"), "{err:#}");
}

#[tokio::test]
async fn an_interrupt_ends_every_workload() {
    for workload in [Workload::Store, Workload::Lifecycle, Workload::LoadCold, Workload::Backlog] {
        let stop = Stop::default();
        stop.set();
        let spool = Arc::default();
        let plan = Plan { duration: Duration::from_secs(3_600), ..plan(workload) };
        let measured = measure(&spool, plan, stop).await.unwrap();
        assert_eq!((measured.ops, spool.stores()), (0, 0), "{workload:?}");
    }
}
