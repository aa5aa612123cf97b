//! `open-killed`: measures opening an engine whose process was killed.

use anyhow::{Context, Result, bail};

use super::enumerate::enumerate;
use super::open::Openings;
use crate::child::Filler;
use crate::disk;
use crate::engine::Needs;
use crate::proc::disk_write_bytes;
use crate::run::{Measured, Run};

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    let needs = Needs::of(&run.plan);
    let before = disk_write_bytes()?;
    let mut opened = Openings::new()?;
    let (mut filled, mut lost) = (0, 0);
    for _ in 0..run.plan.rounds {
        if run.stop.is_set() {
            break;
        }
        empty(run)?;
        disk::require(&run.dir, run.plan.journal_capacity.saturating_mul(2))?;
        filled = fill_and_kill(run).await?;
        if run.stop.is_set() {
            break;
        }
        let engine = opened.open(run, &needs).await?;
        let found = enumerate(&engine).await;
        engine.shutdown().await?;
        lost += filled.saturating_sub(found?.messages);
        if run.plan.force_sync && lost > 0 {
            bail!("{lost} of {filled} messages were stored with a sync and are not there after a kill");
        }
    }
    let mut measured = opened.measured(before);
    measured.extra_count("messages", filled);
    measured.extra_count("lost_messages", lost);
    Ok(measured)
}

/// Returns how many messages the killed process stored.
async fn fill_and_kill(run: &Run<'_>) -> Result<u64> {
    let filler = Filler::start(run.opener, &run.plan, &run.engine_dir)?;
    let stop = run.stop.clone();
    tokio::task::spawn_blocking(move || filler.filled_and_killed(&stop)).await?
}

/// Empties the directory of the engine for the next round.
fn empty(run: &Run<'_>) -> Result<()> {
    let dir = &run.engine_dir;
    std::fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    std::fs::create_dir(dir).with_context(|| format!("creating {}", dir.display()))
}
