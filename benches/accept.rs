//! Accepting a mail: an envelope of 1 KiB and a body of 50 KB, both on stable storage.
//!
//! `cargo bench --bench accept` compares three servers in alternating runs, each with 64 callers:
//!
//! * `two stores`: a directory for envelopes and one for bodies, two concurrent stores.
//! * `one store`: two spools of one store, two concurrent stores.
//! * `accept`: two spools of one store, one transaction.
//!
//! A mail is removed when it is accepted, as after its delivery. The removals count to the time of
//! the run, not to the latency of the accept.
//!
//! Arguments, behind `--`: the seconds of a run (default 4), the number of rounds (default 3), and
//! the number of callers (default 64). `TMPDIR` is the disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tempfile::TempDir;
use tidespool::{Config, Tidespool, TieredSpool};
use tidespool_core::{Spool, SpoolId};

const ENVELOPE: usize = 1 << 10;
const BODY: usize = 50_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    TwoStores,
    OneStore,
    Accept,
}

const MODES: [Mode; 3] = [Mode::TwoStores, Mode::OneStore, Mode::Accept];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::TwoStores => "two stores",
            Self::OneStore => "one store",
            Self::Accept => "accept",
        }
    }
}

/// The open spools, and the stores that they are of.
struct Server {
    stores: Vec<Tidespool>,
    meta: TieredSpool,
    data: TieredSpool,
    _dir: TempDir,
}

impl Server {
    async fn open(mode: Mode) -> Result<Self> {
        let dir = TempDir::new()?;
        let open = |name: &str| Tidespool::open(Config::new(dir.path().join(name)));
        let stores = match mode {
            Mode::TwoStores => vec![open("meta").await?, open("data").await?],
            Mode::OneStore | Mode::Accept => vec![open("both").await?],
        };
        let (first, last) = (&stores[0], &stores[stores.len() - 1]);
        let (meta, data) = (first.spool("meta")?, last.spool("data")?);
        Ok(Self { stores, meta, data, _dir: dir })
    }

    async fn accept(&self, mode: Mode, id: SpoolId, envelope: Message, body: Message) -> Result<()> {
        if mode == Mode::Accept {
            let messages = [(&self.data, id, body), (&self.meta, id, envelope)];
            return self.stores[0].accept(messages, None).await;
        }
        let meta = self.meta.store(id, envelope, true, None);
        let (meta, data) = tokio::join!(meta, self.data.store(id, body, true, None));
        meta.and(data)
    }
}

type Message = Arc<Box<[u8]>>;

/// The result of a run.
struct Figures {
    rate: f64,
    p50: Duration,
    p99: Duration,
    threads: usize,
    accounted_mib: u64,
}

async fn run(mode: Mode, callers: usize, length: Duration) -> Result<Figures> {
    let before = threads();
    let server = Arc::new(Server::open(mode).await?);
    let opened = threads() - before;
    let (envelope, body) = (message(ENVELOPE), message(BODY));
    let began = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (server, envelope, body) = (server.clone(), envelope.clone(), body.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while began.elapsed() < length {
                    let (id, began) = (SpoolId::new(), Instant::now());
                    server.accept(mode, id, envelope.clone(), body.clone()).await?;
                    latencies.push(began.elapsed());
                    server.meta.remove(id).await?;
                    server.data.remove(id).await?;
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let took = began.elapsed();
    let accounted: u64 = server.stores.iter().map(|store| store.stats().gauges.accounted_bytes).sum();
    for store in &server.stores {
        store.shutdown().await?;
    }
    latencies.sort_unstable();
    let quantile = |part: usize| latencies[(latencies.len() - 1) * part / 1000];
    Ok(Figures {
        rate: latencies.len() as f64 / took.as_secs_f64(),
        p50: quantile(500),
        p99: quantile(990),
        threads: opened,
        accounted_mib: accounted >> 20,
    })
}

fn message(len: usize) -> Message {
    Arc::new((0..=250).cycle().take(len).collect())
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

fn main() -> Result<()> {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let number = |place: usize, default| numbers.get(place).copied().unwrap_or(default);
    let (length, rounds) = (Duration::from_secs(number(0, 4)), number(1, 3));
    let callers = usize::try_from(number(2, 64))?;
    if rounds == 0 || callers == 0 || length.is_zero() {
        bail!("seconds, rounds and callers must be at least 1");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!("round  server      mails/s     p50 µs     p99 µs  threads  accounted MiB");
    let mut rates = [const { Vec::new() }; 3];
    for round in 1..=rounds {
        for (mode, rates) in MODES.into_iter().zip(&mut rates) {
            let Figures { rate, p50, p99, threads, accounted_mib } =
                runtime.block_on(run(mode, callers, length))?;
            let (p50, p99) = (p50.as_micros(), p99.as_micros());
            let name = mode.name();
            println!(
                "{round:>5}  {name:10}  {rate:>7.0}  {p50:>9}  {p99:>9}  {threads:>7}  {accounted_mib:>13}"
            );
            rates.push(rate);
        }
    }
    let [two, one, accept] = rates.each_mut().map(|rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!("median rate of two stores: one store {:.2}, accept {:.2}", one / two, accept / two);
    Ok(())
}
