use std::time::Duration;

use serde::Serialize;

use super::gauges::Gauges;
use super::histogram::Latency;

/// Every counter and gauge of a spool at one moment. Counters start at zero when the spool is opened.
///
/// Each number is exact; they are read one after the other, so that under load two of them may differ by what
/// happened between the two reads.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StatsSnapshot {
    /// Loads served from dirty data in memory.
    pub hits_pending: u64,
    /// Loads served from clean copies in memory.
    pub hits_cache: u64,
    /// Loads served from the journal's segments.
    pub hits_journal: u64,
    /// Loads of filed messages, which the index found in a retained segment.
    pub hits_sled: u64,
    /// Loads of ids that are not there.
    pub misses: u64,
    /// Messages that enumerations left out because their ids are newer than `start_time`, though
    /// they were in the spool before it was opened: a clock that was ahead and was corrected leaves
    /// such ids behind. What is stored after the opening is not counted.
    pub enumerate_skipped_newer: u64,

    /// Stores acknowledged, replaces included.
    pub stores: u64,
    /// Of these, the ones that were on stable storage when they were acknowledged.
    pub stores_synced: u64,
    /// Payload bytes of all stores acknowledged.
    pub stored_bytes: u64,
    /// Stores acknowledged and then taken back because of an error: their callers got that error.
    pub aborts: u64,
    /// Messages removed: calls of `remove` that found one.
    pub removes: u64,
    /// Writes that never had to be made, because the message was removed or replaced before its group commit.
    pub elided_writes: u64,
    /// Payload bytes of these.
    pub elided_bytes: u64,
    /// The time that stores waited for room, of those that had to wait.
    pub store_wait: Latency,

    /// Stores refused because the spool was unhealthy.
    pub refused_unhealthy: u64,
    /// Stores refused because of the caller's deadline.
    pub refused_caller_deadline: u64,
    /// Stores refused because of `store_deadline`.
    pub refused_backpressure: u64,
    /// Stores refused because the message was larger than `max_message_size`.
    pub refused_too_large: u64,
    /// Stores refused because the spool was shut down.
    pub refused_closed: u64,

    /// Group commits: from taking what waits until it is on stable storage. Their number and the
    /// time they took.
    pub commit: Latency,
    /// Records written by them.
    pub committed_records: u64,
    /// Bytes written by them, headers and padding included.
    pub committed_bytes: u64,
    /// `fdatasync` of the journal: number and time.
    pub sync: Latency,

    /// Checkpoints that ended well.
    pub checkpoints: u64,
    /// Records that they put into the index or removed there.
    pub checkpointed_records: u64,
    /// Segments that they filed.
    pub checkpointed_segments: u64,
    /// The time that they took, all together. In JSON: seconds and nanoseconds.
    pub checkpoint_time: Duration,
    /// Segments made ready to be written again.
    pub segments_recycled: u64,
    /// Retained segments of which the survivors were moved to another one.
    pub segments_rewritten: u64,
    /// Bytes of these survivors.
    pub rewritten_bytes: u64,

    /// Clean copies pushed out of the cache.
    pub cache_evicted_entries: u64,
    /// Their bytes.
    pub cache_evicted_bytes: u64,
    /// Calls of `advise_low_memory`, by the caller or by the monitor.
    pub low_memory_calls: u64,
    /// Bytes by which they made the accounted memory fall.
    pub low_memory_freed_bytes: u64,
    /// Changes of the memory-pressure level.
    pub pressure_changes: u64,

    /// Failed writes of the journal.
    pub errors_journal_write: u64,
    /// Failed syncs of the journal.
    pub errors_journal_sync: u64,
    /// Failed reads of the journal.
    pub errors_journal_read: u64,
    /// Errors of sled.
    pub errors_sled: u64,
    /// Failures to write the manifest.
    pub errors_manifest: u64,
    /// Messages found damaged.
    pub corrupt: u64,
    /// Messages that were acknowledged and are lost. Not zero means that a promise was broken by the hardware.
    pub lost: u64,
    /// Files of the spool that were found deleted, moved, replaced or cut short by something else
    /// while the spool ran.
    pub lost_files: u64,
    /// Records that recovery read from the journal when the spool was opened.
    pub recovered_records: u64,
    /// Stores and removals that the process before this one had acknowledged, and that were brought
    /// back from its crash log.
    pub replayed_changes: u64,
    /// Times that the crash log's file was found deleted, replaced or cut short, or that a page of
    /// it could not be had. It is replaced each time.
    pub crash_logs_lost: u64,
    /// Stores and removals that waited for a sync of the journal, because the crash log was full or
    /// there was none.
    pub crash_log_bypassed: u64,
    /// Records that recovery cut from the end of the journal: they were being written when the spool last stopped, and
    /// had not been acknowledged as durable.
    pub torn_records: u64,
    /// Rebuilds of the index from the segments that ended since the spool was opened.
    pub index_rebuilds: u64,

    /// What the spool holds now.
    pub gauges: Gauges,
}

impl StatsSnapshot {
    /// Loads that found their message, wherever it was.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.memory_hits() + self.hits_journal + self.hits_sled
    }

    /// Loads that ended with a message or with `NotFound`. Those that failed are not in it.
    #[must_use]
    pub fn loads(&self) -> u64 {
        self.hits() + self.misses
    }

    /// Of the loads that found their message, the share served from memory, 0 to 1. `None` while there was no such
    /// load.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub fn hit_ratio(&self) -> Option<f64> {
        let hits = self.hits();
        (hits > 0).then(|| self.memory_hits() as f64 / hits as f64)
    }

    /// Stores refused, for whatever reason.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused_unhealthy
            + self.refused_caller_deadline
            + self.refused_backpressure
            + self.refused_too_large
            + self.refused_closed
    }

    /// Disk errors, wherever they happened.
    #[must_use]
    pub fn disk_errors(&self) -> u64 {
        self.errors_journal_write
            + self.errors_journal_sync
            + self.errors_journal_read
            + self.errors_sled
            + self.errors_manifest
    }

    fn memory_hits(&self) -> u64 {
        self.hits_pending + self.hits_cache
    }
}
