//! Checkpoints: live messages move from the in-memory index to the index on disk, and segments
//! without live messages are recycled.
//!
//! # Layout
//!
//! * `requests` – the requests to the checkpointer thread.
//! * `thread` – the loop of the thread: does what is due, cleans up, compacts step by step.
//! * `checkpointer` – the thread's state, and one checkpoint: collect, index in key order, commit,
//!   forget, recycle. The files from `garbage` to `restore` have its other steps.
//! * `garbage` – moves survivors together, and keeps the files within their bound.
//! * `audit` – compares the index of the last run with the manifest.
//! * `rebuild` – builds the index from segments, manifest and liveness log.
//! * `restore` – writes lost files again. `presence` – checks that all files are still in place.
//! * `pace` – rests between the steps of a checkpoint. `progress` – detects a stalled checkpointer,
//!   and counts the messages of a rebuild.
//! * `manifest` – what is checkpointed, and in which segments.
//! * `reclaim` – decides when removals are checkpointed early, to free space on disk.
//!   `dead_segments` – decides which segments are checkpointed early because nothing in them
//!   lives.
//! * `value_log` – segments retained for the messages in them.
//! * `opening` – compares manifest and segments at open. `leftover` – records that nothing else
//!   describes.
//! * `ballast` – two files that are deleted when the index needs space on a full disk. `room` –
//!   frees space before the index writes.
//! * `verifier` – the thread that reads every checkpointed byte.

mod audit;
mod ballast;
mod checkpointer;
mod dead_segments;
mod garbage;
mod leftover;
mod manifest;
mod opening;
mod pace;
mod presence;
mod progress;
mod rebuild;
mod reclaim;
mod requests;
mod restore;
mod room;
#[cfg(test)]
mod tests;
mod thread;
mod value_log;
mod verifier;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use crate::message_id::MessageId;

pub(crate) use ballast::Ballast;
pub(crate) use checkpointer::{CheckpointSettings, Checkpointer, Retry};
pub(crate) use dead_segments::DeadSegments;
pub(crate) use leftover::{Leftovers, newest_puts};
pub(crate) use manifest::{HighKeys, Manifest, ManifestError, ManifestFile};
pub(crate) use opening::{
    Examined, OpenedCheckpoint, OpeningError, Places, examine, open_checkpoint, read_manifest,
};
pub(crate) use presence::{DirectoryCheck, Presence, PresenceEvents, Watched};
pub(crate) use progress::Rebuilding;
pub(crate) use reclaim::{ReclaimPolicy, Survey};
pub(crate) use requests::{CheckpointInbox, CheckpointRequests, CheckpointTask, checkpoint_requests};
pub(crate) use value_log::liveness::{Liveness, LivenessError, LivenessLog};
pub(crate) use value_log::living::{CheckpointedMessage, living_in};
pub(crate) use value_log::retained::{place_of_found, place_of_record};
pub(crate) use verifier::{VerificationReport, VerificationRequests, Verifier};

use crate::index::{IndexError, Key};
use crate::journal::NewestRecord;
use crate::storage::{is_no_room, is_no_room_kind};

/// The in-memory index, as far as a checkpoint needs it.
pub(crate) trait LiveIndex: Send + Sync {
    /// Returns the newest record of each id in segments up to this generation.
    fn collect(&self, up_to: u64) -> Vec<(Key, NewestRecord)>;

    /// Returns the live payload bytes in each segment, by generation.
    fn live_bytes(&self) -> BTreeMap<u64, u64>;

    /// Counts the live bytes in the journal, and the removals not yet applied to the index on disk.
    fn survey(&self) -> Survey;

    /// True while this record is the newest of its id.
    fn is_newest(&self, id: &MessageId, seq: u64) -> bool;

    /// Returns true while memory has a version of this id that is dirty or not checkpointed, or its
    /// removal. Then the version in the index is not the newest.
    fn has_in_memory(&self, id: &MessageId) -> bool;

    /// Announces that keys up to these bounds are about to be checkpointed: removals of such ids
    /// must be written from now on.
    fn will_checkpoint(&self, high: HighKeys);

    /// Drops these records, which are now in the index on disk. An id with a newer record stays.
    fn forget(&self, checkpointed: &[(Key, NewestRecord)]);
}

/// Receives what the checkpointer reports to metrics, health and logs.
pub(crate) trait CheckpointEvents: Send + Sync {
    /// A checkpoint moved `records` records of `segments` segments to the index on disk.
    fn checkpointed(&self, records: u64, segments: u64, took: std::time::Duration);
    /// A segment was recycled.
    fn recycled(&self);
    /// The active segment must be sealed, so that it can be checkpointed.
    fn wants_seal(&self);
    /// The survivors of retained segments were moved. `bytes` is their size.
    fn rewritten(&self, bytes: u64);
    /// The manifest or a segment could not be read or written.
    fn failed(&self, error: &CheckpointError);
    /// A damaged message was found.
    fn found_damage(&self, id: &MessageId, what: &str);
    /// The index was rebuilt and holds `messages` messages.
    fn rebuilt(&self, messages: u64, took: std::time::Duration);
    /// `messages` messages are lost.
    fn found_loss(&self, messages: u64, what: &str);
}

impl CheckpointError {
    /// Returns true if more free disk space would let the checkpoint succeed.
    pub(crate) fn is_full_disk(&self) -> bool {
        match self {
            Self::Engine(IndexError::Engine { kind, .. }) => kind.is_some_and(is_no_room_kind),
            Self::NoRoom { .. } | Self::FileLimit { .. } => true,
            error => error.of_own_file().is_some_and(is_no_room),
        }
    }

    /// Returns the error of a file that the spool writes itself.
    pub(crate) fn of_own_file(&self) -> Option<&io::Error> {
        match self {
            Self::Manifest(ManifestError::Io { source, .. })
            | Self::Liveness(LivenessError::Io { source, .. })
            | Self::Rewrite(source)
            | Self::Restore(source) => Some(source),
            _ => None,
        }
    }
}

/// Why a checkpoint failed. Repeating the checkpoint restores a consistent state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    /// An error of the index.
    #[error(transparent)]
    Engine(#[from] IndexError),
    /// An error of the manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// An error of the liveness log of the retained segments.
    #[error(transparent)]
    Liveness(#[from] LivenessError),
    /// The index is being rebuilt, so nothing may change it.
    #[error("the index is being rebuilt from the segments: the checkpoint waits for it")]
    Rebuilding,
    /// A segment could not be read.
    #[error(transparent)]
    Segment(#[from] crate::journal::ReadError),
    /// The disk has too little free space. Nothing was changed.
    #[error(
        "the file system of {path} has fewer than {need} bytes free, which the index may need: checkpoints resume when it has more",
        path = path.display()
    )]
    NoRoom {
        /// The directory of the index.
        path: PathBuf,
        /// Bytes.
        need: u64,
    },
    /// The process may not write a file of this size. Nothing was changed.
    #[error(
        "a file in {path} may need {need} bytes, and this process may not write files of that size: raise its limit on the size of files (RLIMIT_FSIZE, `ulimit -f`)",
        path = path.display()
    )]
    FileLimit {
        /// The directory of the index.
        path: PathBuf,
        /// Bytes.
        need: u64,
    },
    /// The spool is shutting down.
    #[error("the spool is shutting down: the checkpoint is repeated at the next start")]
    Stopped,
    /// The spool's directory was moved, deleted, or taken by another process.
    #[error(
        "{} is not the directory that was opened: it was deleted or moved, or another process has opened it",
        .0.display()
    )]
    Away(std::path::PathBuf),
    /// A lost file could not be written again.
    #[error("rewriting a file that was deleted or moved: {0}")]
    Restore(std::io::Error),
    /// A segment for survivors could not be written.
    #[error("rewriting a segment: {0}")]
    Rewrite(#[from] std::io::Error),
}
