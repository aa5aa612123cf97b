//! `load-cold`: loads each message of a set at most once from disk, in random order.

use std::sync::Arc;

use anyhow::Result;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;

use crate::callers::Clock;
use crate::disk;
use crate::engine::Needs;
use crate::figures::ratio;
use crate::payload::Random;
use crate::proc::disk_read_bytes;
use crate::run::{Measured, Run};
use crate::set::{self, Step};

/// The default size of the set.
const SET_MESSAGES: u64 = 200_000;
const SET_BYTES: u64 = 256 << 20;

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    let mean = run.plan.size.mean() as u64;
    let count = run.plan.messages.unwrap_or((SET_BYTES / mean).clamp(1, SET_MESSAGES));
    let needs = Needs::of(&run.plan);
    let mut set = run.with(&needs, async |engine| set::fill(run, engine, count).await).await?;
    set.shuffle(&mut Random::seed_from_u64(run.plan.seed));

    let needs = Needs { small_caches: true, ..needs };
    let (done, read) = run
        .with(&needs, async |engine| {
            // After the open, which reads files.
            if run.plan.drop_page_cache {
                disk::drop_page_cache(&run.engine_dir).await?;
            }
            let clock = Clock::at_most(run.plan.duration, &run.stop);
            let before = disk_read_bytes()?;
            let done = set::go_through(run, engine, set, Step::Load, clock, &Arc::default()).await?;
            Ok((done, disk_read_bytes()?.saturating_sub(before)))
        })
        .await?;
    let mut measured = Measured::from(done);
    measured.extra_count("set_messages", count);
    // Counts reads of the device, without those that the page cache served.
    measured.extra("read_per_byte", ratio(read, measured.bytes));
    Ok(measured)
}
