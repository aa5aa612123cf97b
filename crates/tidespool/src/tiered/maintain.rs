//! `cleanup` and `compact`: asked of the checkpoint thread, which alone changes what is filed.

use anyhow::{Context as _, Result};
use tidespool_core::{Closed, Corrupt};
use tokio::sync::oneshot;

use super::shared::Shared;
use crate::checkpoint::FilingTask;
use crate::journal::Role;

/// Files what is old, recycles, prunes.
pub(super) async fn cleanup(shared: &Shared) -> Result<()> {
    shared.check_open()?;
    if has_old_records(shared) {
        flush(shared, true).await?;
    }
    let (done, heard) = oneshot::channel();
    shared.filing.ask(FilingTask::Cleanup(done));
    heard.await.map_err(|_| Closed)?.context("cleaning up the spool")
}

/// Files everything, verifies every byte, rewrites retained segments.
pub(super) async fn compact(shared: &Shared) -> Result<()> {
    shared.check_open()?;
    flush(shared, true).await?;
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

/// Makes everything dirty durable; with `seal`, ends the active segment, so that it can be filed.
async fn flush(shared: &Shared, seal: bool) -> Result<()> {
    shared.mailbox.flush(seal).await.map_err(|_| Closed.into())
}

/// The active segment was begun longer than `checkpoint_after` ago.
fn has_old_records(shared: &Shared) -> bool {
    let checkpoint_after = shared.config.load().checkpoint_after;
    shared.segments.all().iter().any(|segment| {
        let active = segment.role == Role::Journal && segment.settled_at().is_none();
        active && segment.used_since.elapsed() >= checkpoint_after
    })
}
