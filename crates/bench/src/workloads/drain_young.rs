//! `drain-young`: removes durable messages before their checkpoint, oldest first.

use std::sync::Arc;

use anyhow::Result;

use crate::callers::Clock;
use crate::engine::Needs;
use crate::run::{Measured, Run};
use crate::set::{self, Step};

const MESSAGES: u64 = 200_000;

/// Bytes of a journal record besides its payload, its share of the end of a batch included.
const RECORD_OVERHEAD: u64 = 512;

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    let count = run.plan.messages.unwrap_or(MESSAGES);
    let done = run
        .with(&young(run, count), async |engine| {
            let set = set::fill(run, engine, count).await?;
            set::settle(run, engine).await?;
            let clock = Clock::counted(&run.stop);
            set::go_through(run, engine, set, Step::Remove, clock, &Arc::default()).await
        })
        .await?;
    let mut measured = Measured::from(done);
    measured.extra_bytes_per_message()?;
    Ok(measured)
}

/// Returns needs with a journal of twice the size of `count` messages, so that lack of space causes
/// no early checkpoint.
pub(super) fn young(run: &Run<'_>, count: u64) -> Needs {
    let bytes = count.saturating_mul(run.plan.size.mean() as u64 + RECORD_OVERHEAD);
    let needs = Needs::of(&run.plan);
    let journal_capacity = needs.journal_capacity.max(bytes.saturating_mul(2));
    Needs { stay_young: true, journal_capacity, ..needs }
}
