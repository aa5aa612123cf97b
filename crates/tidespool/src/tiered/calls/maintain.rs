//! `cleanup` and `compact`: requests to the checkpointer thread, which alone changes checkpointed
//! data, and to the verification thread.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use tidespool_core::{Closed, Corrupt};
use tokio::sync::oneshot;

use crate::checkpoint::{CheckpointError, CheckpointTask, VerificationReport};
use crate::journal::Role;
use crate::tiered::state::{Shared, SpoolPart, UpkeepFailure};

/// Checkpoints old records, recycles segments, deletes what is no longer needed.
pub(in crate::tiered) async fn cleanup(shared: &Arc<Shared>, spool: &SpoolPart) -> Result<()> {
    spool.check_open()?;
    let run = shared.upkeep.cleanups.share(|| clean_up(shared.clone()));
    // The checkpointer thread may hang: after a shutdown this returns all the same.
    let done = shared.closing.unless_over(run).await?;
    done.map_err(|failure| failure.while_doing(shared, "cleaning up the spool"))
}

/// Checkpoints everything, rewrites segments of the value log, verifies every byte.
pub(in crate::tiered) async fn compact(shared: &Arc<Shared>, spool: &SpoolPart) -> Result<()> {
    spool.check_open()?;
    let run = shared.upkeep.compactions.share(|| compact_all(shared.clone()));
    let done = shared.closing.unless_over(run).await?;
    let found = done.map_err(|failure| failure.while_doing(shared, "compacting the spool"))?;
    let Some(first) = found.first else { return Ok(()) };
    let what = format!("compacting found {} damaged messages, the first of them", found.count);
    Err(anyhow::Error::new(Corrupt { id: first.id.id(), reason: first.what }).context(what))
}

/// Makes everything dirty durable when a spool is shut down and others of its store are not. The
/// caller has closed the spool.
pub(in crate::tiered) async fn leave(shared: &Shared) -> Result<()> {
    // A call that saw the spool open holds its shard's lock until its change is inserted.
    shared.table.shards().for_each(drop);
    let until = Instant::now() + shared.config.load().shutdown_timeout;
    match shared.timer.bound(until, shared.commit_queue.flush(false)).await {
        Some(Ok(())) => Ok(()),
        // The store was shut down meanwhile, which makes everything durable, too.
        Some(Err(_)) if shared.check_open().is_err() => Ok(()),
        Some(Err(_)) => Err(UpkeepFailure::Died.while_doing(shared, LEAVING)),
        None => Err(UpkeepFailure::Late.while_doing(shared, LEAVING)),
    }
}

const LEAVING: &str = "shutting down one spool of the store";

async fn clean_up(shared: Arc<Shared>) -> Result<(), UpkeepFailure> {
    let shared = &*shared;
    if has_old_records(shared) && !flush(shared).await? {
        // Continue: a checkpoint may free the disk space that the dirty messages need.
        tracing::warn!("cleanup goes on although the disk did not write the dirty messages in time");
    }
    let (done, result) = oneshot::channel();
    shared.checkpoint_requests.ask(CheckpointTask::Cleanup(done));
    answer(shared, result).await
}

async fn compact_all(shared: Arc<Shared>) -> Result<VerificationReport, UpkeepFailure> {
    let shared = &*shared;
    if !flush(shared).await? {
        return Err(UpkeepFailure::Late);
    }
    let (done, result) = oneshot::channel();
    shared.checkpoint_requests.ask(CheckpointTask::Compact(done));
    answer(shared, result).await?;
    answer(shared, shared.verification.ask()).await
}

async fn answer<T>(
    shared: &Shared,
    result: oneshot::Receiver<Result<T, CheckpointError>>,
) -> Result<T, UpkeepFailure> {
    match result.await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(CheckpointError::Stopped)) => Err(UpkeepFailure::Closed),
        Ok(Err(error)) => Err(UpkeepFailure::CheckpointFailed(Arc::new(error))),
        Err(_) if shared.check_open().is_err() => Err(UpkeepFailure::Closed),
        Err(_) => Err(UpkeepFailure::Died),
    }
}

/// Makes everything dirty durable, and seals the active segment so that it can be checkpointed.
/// Returns false if the disk does not finish within `store_deadline`.
async fn flush(shared: &Shared) -> Result<bool, UpkeepFailure> {
    let patience = shared.config.load().store_deadline;
    match shared.timer.bound(Instant::now() + patience, shared.commit_queue.flush(true)).await {
        Some(Ok(())) => Ok(true),
        Some(Err(_)) if shared.check_open().is_ok() => Err(UpkeepFailure::Died),
        Some(Err(_)) => Err(UpkeepFailure::Closed),
        None => Ok(false),
    }
}

/// True if the active segment was begun at least `checkpoint_after` ago.
fn has_old_records(shared: &Shared) -> bool {
    let checkpoint_after = shared.config.load().checkpoint_after;
    shared.segments.all().iter().any(|segment| {
        let active = segment.role == Role::Journal && segment.settled_at().is_none();
        active && segment.used_since.elapsed() >= checkpoint_after
    })
}

impl UpkeepFailure {
    fn while_doing(self, shared: &Shared, what: &'static str) -> anyhow::Error {
        let error = match self {
            Self::Closed => return Closed.into(),
            Self::Late => {
                let late = "the dirty messages could not be written within store_deadline";
                io::Error::new(io::ErrorKind::TimedOut, late).into()
            }
            Self::Died => io::Error::other("a thread of the spool has died: see the log").into(),
            Self::CheckpointFailed(error) => anyhow::Error::new(CheckpointFailed(error)),
        };
        shared.explain(error.context(what))
    }
}

/// A shared error with the text and the sources of the original.
#[derive(Debug)]
struct CheckpointFailed(Arc<CheckpointError>);

impl fmt::Display for CheckpointFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for CheckpointFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
