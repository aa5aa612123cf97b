//! One `fdatasync` of the journal, detached from the writer so that another thread can run it.
//!
//! [`Writer::take_sync`](super::Writer::take_sync) creates the job, any thread runs it,
//! [`Writer::end_sync`](super::Writer::end_sync) applies the result. If a write or a sync fails in
//! between, the job is stale: its records are written again to another segment, and its success is
//! ignored. A stale job that fails is one more failure.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::segment::Segment;
use crate::storage::at;

/// A sync to run. Its result goes to [`Writer::end_sync`](super::Writer::end_sync).
#[derive(Debug, Default)]
pub(crate) struct SyncJob {
    pub(super) segments: Vec<Arc<Segment>>,
    /// The job makes all records up to this number durable, if the earlier jobs succeeded.
    pub(super) up_to: u64,
    /// The writer's epoch. A writer error invalidates every job of an earlier epoch.
    pub(super) epoch: u64,
}

/// The result of a [`SyncJob`].
#[derive(Debug)]
pub(crate) struct SyncEnd {
    pub(super) up_to: u64,
    pub(super) epoch: u64,
    pub(super) result: io::Result<()>,
    took: Duration,
}

impl SyncJob {
    /// Syncs the segments. Blocks for as long as the disk does.
    pub(crate) fn run(self) -> SyncEnd {
        let started = Instant::now();
        let result = self.segments.iter().try_for_each(|segment| {
            segment.file.sync_data().map_err(|error| at(&segment.path, error))?;
            // Even if the sync succeeded, the next start does not find the file.
            match segment.is_lost() {
                true => {
                    let error = io::Error::new(io::ErrorKind::NotFound, "the file was deleted or moved");
                    Err(at(&segment.path, error))
                }
                false => Ok(()),
            }
        });
        SyncEnd { up_to: self.up_to, epoch: self.epoch, result, took: started.elapsed() }
    }

    /// Records up to this number become durable by the job.
    pub(crate) fn up_to(&self) -> u64 {
        self.up_to
    }

    /// Merges a later job into this one: one sync covers both.
    pub(crate) fn merge(&mut self, later: Self) {
        for segment in later.segments {
            if !self.segments.iter().any(|other| other.generation == segment.generation) {
                self.segments.push(segment);
            }
        }
        (self.up_to, self.epoch) = (later.up_to, later.epoch);
    }
}

impl SyncEnd {
    pub(crate) fn error(&self) -> Option<&io::Error> {
        self.result.as_ref().err()
    }

    /// The duration of the sync.
    pub(crate) fn took(&self) -> Duration {
        self.took
    }

    /// Records up to this number were to become durable.
    pub(crate) fn up_to(&self) -> u64 {
        self.up_to
    }
}
