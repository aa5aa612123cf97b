//! `store`: stores new messages, with or without a sync, and removes the oldest to bound their
//! number.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::Result;
use tokio::task::coop::consume_budget;

use crate::callers::{self, Caller, Clock};
use crate::disk::BareSync;
use crate::engine::Needs;
use crate::plan::Plan;
use crate::run::{Measured, Run, Written};

/// The upper bounds of the live messages. Each caller has at least one.
const LIVE_MESSAGES: usize = 8_192;
const LIVE_BYTES: usize = 64 << 20;

/// The bound without syncs. It is small enough that the default memory budget does not limit the
/// run.
const LIVE_BYTES_UNSYNCED: usize = 16 << 20;

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    // With one caller a durable store is one sync. A bare sync is measured before and after,
    // because disks change.
    let floor = run.plan.force_sync && run.plan.concurrency == 1;
    let bare = if floor { Some(bare_sync(run).await?) } else { None };
    let done = run
        .with(&Needs::of(&run.plan), async |engine| {
            let clock = Clock::timed(run.plan.duration, &run.stop);
            callers::run(engine, &run.plan, &run.pool, clock, store).await
        })
        .await?;
    let mut measured = Measured::from(done.0);
    if let Some(bare) = bare {
        measured.written = Written::Bytes(measured.disk_write_bytes()?);
        let bare = tokio::task::spawn_blocking(|| bare.measure()).await??;
        measured.extra("bare_fdatasync_p50_us", bare.p50_us());
    }
    Ok(measured)
}

async fn bare_sync(run: &Run<'_>) -> Result<BareSync> {
    let (dir, len) = (run.dir.clone(), run.plan.size.mean());
    tokio::task::spawn_blocking(move || BareSync::create(&dir, len)?.measure()).await?
}

async fn store(mut caller: Caller) -> Result<(Caller, ())> {
    let bound = live_for_each_caller(&caller.plan);
    let mut live = VecDeque::with_capacity(bound + 1);
    while caller.goes_on() {
        let (id, data) = caller.messages.next();
        let len = data.len();
        let begun = Instant::now();
        caller.store(id, data, caller.plan.force_sync).await?;
        caller.record(begun, len)?;
        live.push_back(id);
        if live.len() > bound
            && let Some(oldest) = live.pop_front()
        {
            caller.remove(oldest).await?;
        }
        consume_budget().await;
    }
    Ok((caller, ()))
}

/// Each caller removes the oldest of its own messages, so callers need no coordination.
fn live_for_each_caller(plan: &Plan) -> usize {
    let bytes = if plan.force_sync { LIVE_BYTES } else { LIVE_BYTES_UNSYNCED };
    LIVE_MESSAGES.min(bytes / plan.size.mean()).div_euclid(plan.concurrency).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Size, Workload};

    #[test]
    fn live_messages_are_bounded_by_number_and_bytes() {
        let live = |size, concurrency, force_sync| {
            let size = Size::Bytes(size);
            live_for_each_caller(&Plan { size, concurrency, force_sync, ..Plan::new(Workload::Store) })
        };
        assert_eq!(live(1_024, 64, true), 128);
        assert_eq!(live(16_384, 64, true), 64);
        assert_eq!(live(16_384, 64, false), 16);
        assert_eq!(live(20 << 20, 64, true), 1);
        assert_eq!(live(1, 100_000, false), 1);
    }
}
