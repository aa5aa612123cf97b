//! `enumerate`: enumerates all messages repeatedly after reopening. Each pass must return all of
//! them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tidespool_core::SpoolEntry;

use crate::disk;
use crate::engine::{Engine, Needs};
use crate::latency::Latency;
use crate::proc::disk_write_bytes;
use crate::run::{Measured, Run, Written};
use crate::set;

const MESSAGES: u64 = 100_000;

/// The capacity of the channel to the receiver, as in a server.
const CHANNEL: usize = 1_024;

/// The result of one enumeration.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pass {
    pub(super) messages: u64,
    bytes: u64,
    first: Duration,
}

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    let count = run.plan.messages.unwrap_or(MESSAGES);
    let needs = Needs::of(&run.plan);
    let stored = run.with(&needs, async |engine| set::fill(run, engine, count).await).await?.len() as u64;
    run.with(&needs, async |engine| passes(run, engine, stored).await).await
}

async fn passes(run: &Run<'_>, engine: &Engine, stored: u64) -> Result<Measured> {
    let before = disk_write_bytes()?;
    let (mut latency, mut first) = (Latency::new()?, Latency::new()?);
    let (mut ops, mut bytes, mut busy) = (0, 0, Duration::ZERO);
    while !run.stop.is_set() && (ops == 0 || busy < run.plan.duration) {
        if run.plan.drop_page_cache {
            disk::drop_page_cache(&run.engine_dir).await?;
        }
        let begun = Instant::now();
        let pass = enumerate(engine).await?;
        let took = begun.elapsed();
        if pass.messages != stored {
            bail!("{stored} messages were stored and {} enumerated", pass.messages);
        }
        latency.record(took);
        first.record(pass.first);
        busy += took;
        ops += pass.messages;
        bytes += pass.bytes;
    }
    let mut measured = Measured {
        seconds: busy.as_secs_f64(),
        ops,
        bytes,
        series: None,
        written: Written::Since(before),
        extra: std::collections::BTreeMap::new(),
        moments: Vec::new(),
        latency,
    };
    measured.extra_count("passes", measured.latency.count());
    measured.extra("first_entry_ms", first.quantile_us(0.5) / 1_000.0);
    Ok(measured)
}

/// Enumerates all messages once.
pub(super) async fn enumerate(engine: &Engine) -> Result<Pass> {
    let (sender, receiver) = async_channel::bounded(CHANNEL);
    let begun = Instant::now();
    engine.enumerate(sender)?;
    let mut pass = Pass::default();
    while let Ok(entry) = receiver.recv().await {
        match entry {
            SpoolEntry::Item { data, .. } => {
                if pass.messages == 0 {
                    pass.first = begun.elapsed();
                }
                pass.messages += 1;
                pass.bytes += data.len() as u64;
            }
            SpoolEntry::Corrupt { id, error } => bail!("message {id} is damaged: {error}"),
        }
    }
    Ok(pass)
}
