//! `cleanup` and `compact`: asked of the checkpoint thread, which alone changes what is filed.

use std::io;

use anyhow::{Context as _, Result};
use tidespool_core::{Closed, Corrupt};
use tokio::sync::oneshot;

use super::shared::Shared;
use crate::checkpoint::FilingTask;
use crate::journal::Role;

/// Files what is old, recycles, prunes.
pub(super) async fn cleanup(shared: &Shared) -> Result<()> {
    shared.check_open()?;
    // The thread that does it may hang.
    shared.closing.unless_over(clean_up(shared)).await?
}

/// Files everything, verifies every byte, rewrites retained segments.
pub(super) async fn compact(shared: &Shared) -> Result<()> {
    shared.check_open()?;
    shared.closing.unless_over(compact_all(shared)).await?
}

async fn clean_up(shared: &Shared) -> Result<()> {
    if has_old_records(shared) && !flush(shared).await? {
        // What can be filed may be what gives the rest its room.
        tracing::warn!("cleaning up does not wait any longer for what is dirty: the disk does not take it");
    }
    let (done, heard) = oneshot::channel();
    shared.filing.ask(FilingTask::Cleanup(done));
    heard.await.map_err(|_| Closed)?.context("cleaning up the spool")
}

async fn compact_all(shared: &Shared) -> Result<()> {
    if !flush(shared).await? {
        let what = "what is dirty could not be written within store_deadline";
        return Err(io::Error::new(io::ErrorKind::TimedOut, what)).context("compacting the spool");
    }
    let (done, heard) = oneshot::channel();
    shared.filing.ask(FilingTask::Compact(done));
    let found = heard.await.map_err(|_| Closed)?.context("compacting the spool")?;
    let count = found.len();
    match found.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(Corrupt { id: first.id, reason: first.what })
            .with_context(|| format!("compacting found {count} damaged messages, the first of them")),
    }
}

/// Makes everything dirty durable, and ends the active segment, so that it can be filed. False where the disk did not take it within `store_deadline`.
async fn flush(shared: &Shared) -> Result<bool> {
    let patience = shared.config.load().store_deadline;
    match tokio::time::timeout(patience, shared.mailbox.flush(true)).await {
        Ok(flushed) => flushed.map(|()| true).map_err(|_| Closed.into()),
        Err(_) => Ok(false),
    }
}

/// The active segment was begun longer than `checkpoint_after` ago.
fn has_old_records(shared: &Shared) -> bool {
    let checkpoint_after = shared.config.load().checkpoint_after;
    shared.segments.all().iter().any(|segment| {
        let active = segment.role == Role::Journal && segment.settled_at().is_none();
        active && segment.used_since.elapsed() >= checkpoint_after
    })
}
