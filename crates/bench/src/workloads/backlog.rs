//! `backlog`: stores many messages, then removes all of them.
//!
//! The main figures of the report are those of the stores. `extra` has the removals and the disk
//! usage.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;

use crate::callers::{Clock, Done};
use crate::disk::{self, DiskWatch, Use};
use crate::engine::{Engine, Needs};
use crate::figures::{per, ratio};
use crate::payload::Random;
use crate::plan::Drain;
use crate::proc::{disk_write_bytes, peak_rss_bytes};
use crate::run::{Measured, Run, Written};
use crate::set::{self, Amount, Step};

/// The figures measured while the engine is open.
struct Phases {
    stored: Done,
    stored_messages: u64,
    /// Payload bytes.
    live_bytes: u64,
    /// Bytes written by the stores and by the background work after them.
    written: u64,
    settled_disk_bytes: u64,
    use_while_storing: Use,
    /// Peak resident memory up to then, that of the bench included.
    peak_while_storing_bytes: u64,
    removed: Done,
    drain_written: u64,
}

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    disk::require(&run.dir, run.plan.backlog_bytes.saturating_mul(2) + run.plan.journal_capacity)?;
    let live = Arc::new(AtomicU64::new(0));
    let watch = DiskWatch::start(run.engine_dir.clone(), Arc::clone(&live), run.plan.journal_capacity)?;
    let phases = run
        .with(&Needs::of(&run.plan), async |engine| {
            let phases = store_and_remove(run, engine, &live, &watch).await?;
            engine.cleanup().await?;
            Ok(phases)
        })
        .await;
    // Joined even after an error.
    let seen = tokio::task::spawn_blocking(|| watch.finish()).await?;
    let (phases, seen) = (phases?, seen?);

    let Phases { live_bytes, written, removed, .. } = phases;
    let mut measured = Measured::from(phases.stored);
    measured.written = Written::Bytes(written);
    measured.extra_count("live_messages", phases.stored_messages);
    measured.extra_count("live_bytes", live_bytes);
    measured.extra("written_per_byte", ratio(written, live_bytes));
    measured.extra_count("peak_while_storing_bytes", phases.peak_while_storing_bytes);
    measured.extra("drain_per_s", per(removed.latency.count(), removed.seconds));
    for (name, quantile) in [("drain_p50_us", 0.5), ("drain_p99_us", 0.99), ("drain_p999_us", 0.999)] {
        measured.extra(name, removed.latency.quantile_us(quantile));
    }
    measured.extra("drain_max_us", removed.latency.max_us());
    measured.extra_count("drain_write_bytes", phases.drain_written);
    let after = allocated(run).await?;
    // The last sample may be older than the last write of the shutdown.
    measured.extra_count("disk_peak_bytes", seen.peak_bytes.max(after));
    measured.extra("disk_peak_over_live", seen.peak_over_live);
    measured.extra("disk_over_promise_bytes", over_promise(&seen));
    measured.extra("disk_over_promise_while_storing_bytes", over_promise(&phases.use_while_storing));
    measured.extra_count("disk_bytes_settled", phases.settled_disk_bytes);
    measured.extra_count("disk_bytes_after", after);
    Ok(measured)
}

async fn store_and_remove(
    run: &Run<'_>,
    engine: &Arc<Engine>,
    live: &Arc<AtomicU64>,
    watch: &DiskWatch,
) -> Result<Phases> {
    let amount = Amount::Bytes(run.plan.backlog_bytes);
    let (stored, mut messages) = set::store(run, engine, &run.plan, amount, live).await?;
    set::settle(run, engine).await?;
    let settled = disk_write_bytes()?;
    let written = settled.saturating_sub(stored.disk_write_bytes_before);
    let settled_disk_bytes = allocated(run).await?;
    let use_while_storing = watch.so_far();
    let peak_while_storing_bytes = peak_rss_bytes()?;
    let (live_bytes, stored_messages) = (live.load(Ordering::Relaxed), messages.len() as u64);

    if run.plan.drain == Drain::Random {
        messages.shuffle(&mut Random::seed_from_u64(run.plan.seed));
    }
    let clock = Clock::counted(&run.stop);
    let removed = set::go_through(run, engine, messages, Step::Remove, clock, live).await?;
    set::settle(run, engine).await?;
    let drain_written = disk_write_bytes()?.saturating_sub(settled);
    Ok(Phases {
        stored,
        stored_messages,
        live_bytes,
        written,
        settled_disk_bytes,
        use_while_storing,
        peak_while_storing_bytes,
        removed,
        drain_written,
    })
}

fn over_promise(seen: &Use) -> f64 {
    let bytes = ratio(seen.over_promise_bytes.unsigned_abs(), 1);
    if seen.over_promise_bytes < 0 { -bytes } else { bytes }
}

async fn allocated(run: &Run<'_>) -> Result<u64> {
    let dir = run.engine_dir.clone();
    tokio::task::spawn_blocking(move || disk::allocated(&dir)).await?
}
