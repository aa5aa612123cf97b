use std::time::Duration;

use serde::Serialize;

use super::gauges::Gauges;
use super::histogram::Latency;

/// Every counter and gauge of a spool at one moment. Counters start at zero when the spool is
/// opened.
///
/// Each number is exact. They are read one after the other, so under load two numbers may differ
/// by the events between the two reads.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StatsSnapshot {
    /// Loads served from dirty messages in memory.
    pub hits_pending: u64,
    /// Loads served from clean copies in memory.
    pub hits_cache: u64,
    /// Loads served from the journal's segments, found by the index in memory.
    pub hits_journal: u64,
    /// Loads of checkpointed messages: the index on disk found them in a retained segment.
    pub hits_sled: u64,
    /// Loads of ids that do not exist.
    pub misses: u64,
    /// Messages that enumerations left out because their ids are newer than `start_time`, although
    /// they were in the spool before it was opened. Such ids exist if the clock was ahead and was
    /// corrected. Messages stored after the opening are not counted.
    pub enumerate_skipped_newer: u64,

    /// Acknowledged stores, including those that replaced a message.
    pub stores: u64,
    /// Of these, the stores that were on stable storage when they were acknowledged.
    pub stores_synced: u64,
    /// Payload bytes of all acknowledged stores.
    pub stored_bytes: u64,
    /// Puts in the journal that were cancelled, because the caller gave up before the commit.
    pub aborts: u64,
    /// Removals, including those of messages that do not exist.
    pub removes: u64,
    /// Writes that were avoided: the message was removed or replaced before its group commit.
    pub elided_writes: u64,
    /// Bytes of the avoided writes, with an overhead of 256 bytes for each.
    pub elided_bytes: u64,
    /// Time that stores waited for room. Stores that did not have to wait are not counted.
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

    /// Group commits: number, and duration from the start of the batch to the end of its sync.
    pub commit: Latency,
    /// Messages and removals that group commits made durable.
    pub committed_records: u64,
    /// Bytes of these, with an overhead of 256 bytes for each.
    pub committed_bytes: u64,
    /// `fdatasync` calls of the journal: number and duration.
    pub sync: Latency,

    /// Checkpoints that succeeded.
    pub checkpoints: u64,
    /// Messages and removals that checkpoints applied to the index on disk.
    pub checkpointed_records: u64,
    /// Segments that were checkpointed.
    pub checkpointed_segments: u64,
    /// Total time of all checkpoints. In JSON: seconds and nanoseconds.
    pub checkpoint_time: Duration,
    /// Segments that were made reusable.
    pub segments_recycled: u64,
    /// Rewrites of retained segments, of one or several segments each.
    pub segments_rewritten: u64,
    /// Payload bytes of live messages that these rewrites moved.
    pub rewritten_bytes: u64,

    /// Clean copies that were dropped to shrink the cache.
    pub cache_evicted_entries: u64,
    /// Bytes of these copies.
    pub cache_evicted_bytes: u64,
    /// Runs of `advise_low_memory`, including those of the pressure monitor.
    pub low_memory_calls: u64,
    /// Bytes by which these runs reduced the accounted memory.
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
    /// Findings of damage, at open and later. A message with the same damage counts once.
    pub corrupt: u64,
    /// Acknowledged messages that are lost. A value above 0 means that the storage, or a program
    /// that changed the spool's files, lost data.
    pub lost: u64,
    /// Files of the spool that were found deleted, moved, replaced or cut short while the spool
    /// ran.
    pub lost_files: u64,
    /// Records that recovery read from the journal when the spool was opened.
    pub recovered_records: u64,
    /// Stores and removals that the previous process had acknowledged and that were replayed from
    /// its crash log.
    pub replayed_changes: u64,
    /// Times that the crash log's file was found deleted, replaced or cut short, or that one of
    /// its pages was not available. The file is replaced each time.
    pub crash_logs_lost: u64,
    /// Stores and removals that waited for a sync of the journal, because the crash log was full or
    /// missing.
    pub crash_log_bypassed: u64,
    /// Records that recovery cut from the end of the journal: they were incomplete when the spool
    /// stopped, and had not been acknowledged as durable.
    pub torn_records: u64,
    /// Rebuilds of the index from the segments that ended since the spool was opened.
    pub index_rebuilds: u64,

    /// The gauges at the same moment.
    pub gauges: Gauges,
}

impl StatsSnapshot {
    /// Loads that found their message, in any tier.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.memory_hits() + self.hits_journal + self.hits_sled
    }

    /// Loads that returned a message or `NotFound`. Failed loads are not counted.
    #[must_use]
    pub fn loads(&self) -> u64 {
        self.hits() + self.misses
    }

    /// The share of successful loads that were served from memory, 0 to 1. `None` if there was no
    /// successful load.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub fn hit_ratio(&self) -> Option<f64> {
        let hits = self.hits();
        (hits > 0).then(|| self.memory_hits() as f64 / hits as f64)
    }

    /// Stores refused, for any reason.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused_unhealthy
            + self.refused_caller_deadline
            + self.refused_backpressure
            + self.refused_too_large
            + self.refused_closed
    }

    /// Disk errors at all sites.
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
