//! `open-clean`: measures opening an engine after a clean shutdown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::callers::Clock;
use crate::disk;
use crate::engine::{Engine, Needs};
use crate::latency::Latency;
use crate::proc::disk_write_bytes;
use crate::run::{Measured, Run, Written};
use crate::set::{self, Step};

const MESSAGES: u64 = 100_000;

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    let count = run.plan.messages.unwrap_or(MESSAGES);
    let needs = Needs::of(&run.plan);
    let stored = run.with(&needs, async |engine| set::fill(run, engine, count).await).await?;
    let before = disk_write_bytes()?;
    let mut opened = Openings::new()?;
    let mut all_loaded = Duration::ZERO;
    for _ in 0..run.plan.rounds {
        if run.stop.is_set() {
            break;
        }
        if run.plan.lose_index {
            lose_index(run).await?;
        }
        let begun = Instant::now();
        let engine = opened.open(run, &needs).await?;
        if run.plan.lose_index {
            let clock = Clock::counted(&run.stop);
            set::go_through(run, &engine, stored.clone(), Step::Load, clock, &Arc::default()).await?;
            all_loaded = all_loaded.max(begun.elapsed());
        }
        engine.shutdown().await?;
    }
    let mut measured = opened.measured(before);
    if run.plan.lose_index {
        measured.extra("all_loaded_ms", all_loaded.as_secs_f64() * 1_000.0);
    }
    measured.extra_count("messages", stored.len() as u64);
    Ok(measured)
}

/// Deletes the index of a closed spool.
async fn lose_index(run: &Run<'_>) -> Result<()> {
    let dir = run.engine_dir.join("spool").join("sled");
    let delete = move || {
        std::fs::remove_dir_all(&dir).with_context(|| format!("deleting the index {}", dir.display()))
    };
    tokio::task::spawn_blocking(delete).await?
}

/// Opens the engine repeatedly and records the time.
pub(super) struct Openings {
    latency: Latency,
    first: Option<Duration>,
    total: Duration,
}

impl Openings {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { latency: Latency::new()?, first: None, total: Duration::ZERO })
    }

    pub(super) async fn open(&mut self, run: &Run<'_>, needs: &Needs) -> Result<Arc<Engine>> {
        if run.plan.drop_page_cache {
            disk::drop_page_cache(&run.engine_dir).await?;
        }
        let begun = Instant::now();
        let engine = run.open(needs).await?;
        let took = begun.elapsed();
        self.latency.record(took);
        self.first.get_or_insert(took);
        self.total += took;
        Ok(engine)
    }

    /// `before` is the kernel's write count before the first open.
    pub(super) fn measured(self, before: u64) -> Measured {
        let Self { latency, first, total } = self;
        let mut measured = Measured {
            seconds: total.as_secs_f64(),
            ops: latency.count(),
            bytes: 0,
            series: None,
            written: Written::Since(before),
            extra: BTreeMap::new(),
            moments: Vec::new(),
            latency,
        };
        measured.extra("open_ms", measured.latency.quantile_us(0.5) / 1_000.0);
        measured.extra("first_open_ms", first.unwrap_or_default().as_secs_f64() * 1_000.0);
        measured
    }
}
