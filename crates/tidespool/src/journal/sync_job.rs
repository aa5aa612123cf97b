//! A sync as a thing of its own: taken from the writer, done by whoever has the time, and its end told to the writer.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::segment::Segment;
use crate::storage::at;

/// A sync to be done, perhaps by another thread. Its result goes to [`Writer::end_sync`].
#[derive(Debug, Default)]
pub(crate) struct SyncJob {
    pub(super) segments: Vec<Arc<Segment>>,
    /// It makes all records up to this number durable, if the jobs before it did so with theirs.
    pub(super) up_to: u64,
    /// What it is worth nothing after: an error of the writer.
    pub(super) epoch: u64,
}

/// How a [`SyncJob`] ended.
#[derive(Debug)]
pub(crate) struct SyncEnd {
    pub(super) up_to: u64,
    pub(super) epoch: u64,
    pub(super) result: io::Result<()>,
    took: Duration,
}

impl SyncJob {
    /// Syncs. Blocks for as long as the disk does.
    pub(crate) fn run(self) -> SyncEnd {
        let started = Instant::now();
        let result = self.segments.iter().try_for_each(|segment| {
            segment.file.sync_data().map_err(|error| at(&segment.path, error))?;
            // The next start does not find the file, also if the sync succeeded.
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

    /// Records up to this number become durable by it.
    pub(crate) fn up_to(&self) -> u64 {
        self.up_to
    }

    /// Takes in a later job: one sync does for both.
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

    /// How long the disk took.
    pub(crate) fn took(&self) -> Duration {
        self.took
    }

    /// Records up to this number were to become durable.
    pub(crate) fn up_to(&self) -> u64 {
        self.up_to
    }
}
