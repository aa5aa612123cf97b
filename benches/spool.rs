//! Wall time of single calls from one caller. `tidespool bench` measures many concurrent callers
//! and the disk.
//!
//! `cargo bench`, or a part of it: `cargo bench -- "load hit"`.

#![expect(clippy::expect_used, reason = "a benchmark whose calls fail must not produce a figure")]

use std::cell::OnceCell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use chrono::{DateTime, Utc};
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use rand::rngs::ChaCha8Rng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;
use tidespool::{Config, ListedTier, TieredSpool};
use tidespool_core::{Spool, SpoolId};
use tokio::runtime::Runtime;

/// Messages stored, or removed, between two readings of the clock. The other half is not timed.
const CHUNK: u64 = 256;

/// Messages that `load hit` reads: 16 MiB, which fit in any cache.
const LOAD_SET: usize = 1_024;

/// Messages that `list` lists.
const LISTED: u64 = 1_000_000;

const KIB: usize = 1_024;

type Payload = Arc<Box<[u8]>>;

/// An open spool in its own directory.
struct Bench {
    runtime: Runtime,
    spool: TieredSpool,
    _dir: TempDir,
}

impl Bench {
    fn open() -> Self {
        Self::with(|config| config)
    }

    fn with(adjust: impl FnOnce(Config) -> Config) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let runtime = Runtime::new().expect("a runtime");
        let spool = runtime.block_on(TieredSpool::open(adjust(Config::new(dir.path())))).expect("open");
        Self { runtime, spool, _dir: dir }
    }

    fn close(self) {
        self.runtime.block_on(self.spool.shutdown()).expect("shutdown");
    }
}

async fn store(spool: &TieredSpool, data: &Payload) -> SpoolId {
    let id = SpoolId::new();
    spool.store(id, Arc::clone(data), false, None).await.expect("store");
    id
}

async fn remove(spool: &TieredSpool, id: SpoolId) {
    spool.remove(id).await.expect("remove");
}

/// The times of `count` stores, and of the removes of the same messages.
async fn stores_and_removes(spool: &TieredSpool, data: &Payload, count: u64) -> (Duration, Duration) {
    let (mut storing, mut removing) = (Duration::ZERO, Duration::ZERO);
    let mut ids = Vec::with_capacity(usize::try_from(CHUNK).unwrap_or_default());
    let mut left = count;
    while left > 0 {
        let chunk = left.min(CHUNK);
        left -= chunk;
        let begun = Instant::now();
        for _ in 0..chunk {
            ids.push(store(spool, data).await);
        }
        storing += begun.elapsed();
        let begun = Instant::now();
        for id in ids.drain(..) {
            remove(spool, id).await;
        }
        removing += begun.elapsed();
    }
    (storing, removing)
}

/// Incompressible bytes, the same in each run.
fn payload(size: usize) -> Payload {
    let mut bytes = vec![0; size];
    ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut bytes);
    Arc::new(bytes.into_boxed_slice())
}

fn group<'a>(criterion: &'a mut Criterion, name: &str, size: usize) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(size as u64));
    group
}

/// Unsynced stores, into memory.
fn store_unforced(criterion: &mut Criterion) {
    for size in [KIB, 16 * KIB] {
        let (bench, data) = (Bench::open(), payload(size));
        group(criterion, "store", size).bench_function(format!("{:.0}", ByteSize(size as u64)), |bencher| {
            bencher
                .to_async(&bench.runtime)
                .iter_custom(async |count| stores_and_removes(&bench.spool, &data, count).await.0);
        });
        bench.close();
    }
}

fn remove_young(criterion: &mut Criterion) {
    let (bench, data) = (Bench::open(), payload(16 * KIB));
    criterion.bench_function("remove", |bencher| {
        bencher
            .to_async(&bench.runtime)
            .iter_custom(async |count| stores_and_removes(&bench.spool, &data, count).await.1);
    });
    bench.close();
}

/// Loads from memory: `load` copies the message, `load_shared` does not.
fn load_hit(criterion: &mut Criterion) {
    let (bench, data) = (Bench::open(), payload(16 * KIB));
    let spool = &bench.spool;
    let ids: Vec<SpoolId> = bench.runtime.block_on(async {
        let mut ids = Vec::with_capacity(LOAD_SET);
        for _ in 0..LOAD_SET {
            ids.push(store(spool, &data).await);
        }
        ids
    });
    let mut group = group(criterion, "load hit", 16 * KIB);
    group.bench_function("load", |bencher| {
        let mut next = ids.iter().cycle().copied();
        bencher.to_async(&bench.runtime).iter(|| {
            let id = next.next().expect("ids");
            async move { black_box(spool.load(id).await.expect("load")).len() }
        });
    });
    group.bench_function("load_shared", |bencher| {
        let mut next = ids.iter().cycle().copied();
        bencher.to_async(&bench.runtime).iter(|| {
            let id = next.next().expect("ids");
            async move { black_box(spool.load_shared(id).await.expect("load_shared")).len() }
        });
    });
    group.finish();
    bench.close();
}

/// Store, load and remove of one message: the cost of a message that is delivered at once.
fn lifecycle(criterion: &mut Criterion) {
    let (bench, data) = (Bench::open(), payload(16 * KIB));
    group(criterion, "lifecycle", 16 * KIB).bench_function("16 KiB", |bencher| {
        bencher.to_async(&bench.runtime).iter(async || {
            let id = store(&bench.spool, &data).await;
            black_box(bench.spool.load(id).await.expect("load"));
            remove(&bench.spool, id).await;
        });
    });
    bench.close();
}

/// A list of a million messages: all of them in the journal, then all of them checkpointed. The
/// store of the set is not timed, and is skipped if no list is selected.
fn list(criterion: &mut Criterion) {
    let filled = OnceCell::new();
    let bench = || {
        filled.get_or_init(|| {
            let hour = Duration::from_secs(3_600);
            let bench = Bench::with(|config| config.checkpoint_after(hour).journal_capacity(2 << 30));
            bench.runtime.block_on(async {
                let data = payload(100);
                for _ in 0..LISTED {
                    store(&bench.spool, &data).await;
                }
                // Makes everything durable, and moves nothing.
                bench.spool.advise_low_memory().await.expect("advise_low_memory");
            });
            bench
        })
    };
    let listed = async |spool: &TieredSpool, tier: ListedTier| {
        let mut list = spool.list(DateTime::<Utc>::MAX_UTC).expect("list");
        let mut count = 0;
        while let Some(message) = list.next().await {
            count += u64::from(message.expect("complete").tier == tier);
        }
        assert_eq!(count, LISTED, "all are in one tier");
    };
    let mut group = criterion.benchmark_group("list");
    group.throughput(Throughput::Elements(LISTED)).sample_size(10);
    for (name, tier) in [("journal", ListedTier::Journal), ("checkpointed", ListedTier::Checkpointed)] {
        let mut is_moved = false;
        group.bench_function(name, |bencher| {
            let bench = bench();
            if tier == ListedTier::Checkpointed && !is_moved {
                bench.runtime.block_on(bench.spool.compact()).expect("compact");
                is_moved = true;
            }
            bencher.to_async(&bench.runtime).iter(|| listed(&bench.spool, tier));
        });
    }
    group.finish();
    filled.into_inner().into_iter().for_each(Bench::close);
}

/// The health query that a server makes for each connection and each message.
fn unhealthy_reason(criterion: &mut Criterion) {
    let bench = Bench::open();
    let (spool, dynamic) = (black_box(&bench.spool), black_box(&bench.spool as &dyn Spool));
    // The common query of a server: the reason matters only if there is one.
    let mut group = criterion.benchmark_group("unhealthy_reason");
    group.bench_function("of a TieredSpool", |bencher| bencher.iter(|| spool.unhealthy_reason().is_some()));
    group.bench_function("of a dyn Spool", |bencher| bencher.iter(|| dynamic.unhealthy_reason().is_some()));
    group.finish();
    bench.close();
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    store_unforced(&mut criterion);
    load_hit(&mut criterion);
    remove_young(&mut criterion);
    lifecycle(&mut criterion);
    list(&mut criterion);
    unhealthy_reason(&mut criterion);
    criterion.final_summary();
}
