use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::gauges::Gauges;
use super::histogram::Latency;

/// Declares the counters of a spool, and a snapshot with their sums under the same names.
macro_rules! snapshot {
    (
        $(#[$counts_doc:meta])* $Counts:ident { $($(#[$count_doc:meta])* $count:ident: $Count:ty,)+ }
        $(#[$all_doc:meta])* $All:ident { $($(#[$doc:meta])* $field:ident: $Field:ty,)+ }
    ) => {
        $(#[$counts_doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
        #[non_exhaustive]
        pub struct $Counts { $($(#[$count_doc])* pub $count: $Count,)+ }

        $(#[$all_doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize)]
        #[non_exhaustive]
        pub struct $All {
            $($(#[$count_doc])* pub $count: $Count,)+
            $($(#[$doc])* pub $field: $Field,)+
        }

        impl $All {
            /// Adds the counters of a spool to the sums, and keeps them.
            pub(super) fn add_spool(&mut self, name: &str, counts: $Counts) {
                $(self.$count += &counts.$count;)+
                self.spools.insert(name.to_owned(), counts);
            }
        }
    };
}

snapshot! {
    /// Every counter of one spool at one moment: a part of a [`StatsSnapshot`].
    ///
    /// Counters start at zero when the store is opened, or when the spool is made.
    SpoolCounts {
        /// Loads served from dirty messages in memory.
        hits_pending: u64,
        /// Loads served from young copies: the clean copies that came last.
        hits_young: u64,
        /// Loads served from older clean copies in memory.
        hits_cache: u64,
        /// Loads served from the journal's segments, found by the index in memory.
        hits_journal: u64,
        /// Loads of checkpointed messages: the index on disk found them in a retained segment.
        hits_sled: u64,
        /// Loads of ids that do not exist.
        misses: u64,
        /// Messages that enumerations left out because their ids are newer than `start_time`,
        /// although they were in the spool before it was opened. Such ids exist if the clock was
        /// ahead and was corrected. Messages stored after the opening are not counted.
        enumerate_skipped_newer: u64,
        /// Acknowledged stores, including those that replaced a message.
        stores: u64,
        /// Of these, the stores that were on stable storage when they were acknowledged.
        stores_synced: u64,
        /// Payload bytes of all acknowledged stores.
        stored_bytes: u64,
        /// Removals, including those of messages that do not exist.
        removes: u64,
        /// Time that stores waited for room. Stores that did not have to wait are not counted.
        store_wait: Latency,
        /// Stores refused because the spool was unhealthy.
        refused_unhealthy: u64,
        /// Stores refused because of the caller's deadline.
        refused_caller_deadline: u64,
        /// Stores refused because of `store_deadline`.
        refused_backpressure: u64,
        /// Stores refused because the message was larger than `max_message_size`.
        refused_too_large: u64,
        /// Stores refused because the spool was shut down.
        refused_closed: u64,
    }

    /// Every counter and gauge of a store at one moment. Counters start at zero when the store is
    /// opened.
    ///
    /// The fields that [`SpoolCounts`] has as well are sums over [`spools`](Self::spools): of one
    /// spool from [`TieredSpool::stats`](crate::TieredSpool::stats), of all from
    /// [`Tidespool::stats`](crate::Tidespool::stats). All other fields are those of the store. A
    /// spool that is removed takes its counters with it.
    ///
    /// Each number is exact. They are read one after the other, so under load two numbers may
    /// differ by the events between the two reads.
    StatsSnapshot {
        /// The counters of each spool, by its name.
        spools: BTreeMap<String, SpoolCounts>,
        /// Puts in the journal that were cancelled, because the caller gave up before the commit.
        aborts: u64,
        /// Writes that were avoided: the message was removed or replaced before its group commit.
        elided_writes: u64,
        /// Bytes of the avoided writes, with an overhead of 256 bytes for each.
        elided_bytes: u64,
        /// Group commits: number, and duration from the start of the batch to the end of its sync.
        commit: Latency,
        /// Messages and removals that group commits made durable.
        committed_records: u64,
        /// Bytes of these, with an overhead of 256 bytes for each.
        committed_bytes: u64,
        /// `fdatasync` calls of the journal: number and duration.
        sync: Latency,
        /// Checkpoints that succeeded.
        checkpoints: u64,
        /// Messages and removals that checkpoints applied to the index on disk.
        checkpointed_records: u64,
        /// Segments that were checkpointed.
        checkpointed_segments: u64,
        /// Total time of all checkpoints. In JSON: seconds and nanoseconds.
        checkpoint_time: Duration,
        /// Segments that were made reusable.
        segments_recycled: u64,
        /// Rewrites of retained segments, of one or several segments each.
        segments_rewritten: u64,
        /// Payload bytes of live messages that these rewrites moved.
        rewritten_bytes: u64,
        /// Clean copies that were dropped to shrink the cache.
        cache_evicted_entries: u64,
        /// Bytes of these copies.
        cache_evicted_bytes: u64,
        /// Runs of `advise_low_memory`, including those of the pressure monitor.
        low_memory_calls: u64,
        /// Bytes by which these runs reduced the accounted memory.
        low_memory_freed_bytes: u64,
        /// Changes of the memory-pressure level.
        pressure_changes: u64,
        /// Failed writes of the journal.
        errors_journal_write: u64,
        /// Failed syncs of the journal.
        errors_journal_sync: u64,
        /// Failed reads of the journal.
        errors_journal_read: u64,
        /// Errors of sled.
        errors_sled: u64,
        /// Failures to write the manifest.
        errors_manifest: u64,
        /// Findings of damage, at open and later. A message with the same damage counts once.
        corrupt: u64,
        /// Acknowledged messages that are lost. A value above 0 means that the storage, or a
        /// program that changed the spool's files, lost data.
        lost: u64,
        /// Files of the spool that were found deleted, moved, replaced or cut short while the spool
        /// ran.
        lost_files: u64,
        /// Records that recovery read from the journal when the spool was opened.
        recovered_records: u64,
        /// Stores and removals that the previous process had acknowledged and that were replayed
        /// from its crash log.
        replayed_changes: u64,
        /// Times that the crash log's file was found deleted, replaced or cut short, or that one of
        /// its pages was not available. The file is replaced each time.
        crash_logs_lost: u64,
        /// Stores and removals that waited for a sync of the journal, because the crash log was
        /// full or missing.
        crash_log_bypassed: u64,
        /// Records that recovery cut from the end of the journal: they were incomplete when the
        /// spool stopped, and had not been acknowledged as durable.
        torn_records: u64,
        /// Rebuilds of the index from the segments that ended since the spool was opened.
        index_rebuilds: u64,
        /// The gauges at the same moment.
        gauges: Gauges,
    }
}

/// Implements what follows from the counters that both structs have.
macro_rules! sums_of_counts {
    ($($Counts:ident),+) => {
        $(impl $Counts {
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

            /// The share of successful loads that were served from memory, 0 to 1. `None` if there
            /// was no successful load.
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

            fn memory_hits(&self) -> u64 {
                self.hits_pending + self.hits_young + self.hits_cache
            }
        })+
    };
}

sums_of_counts!(SpoolCounts, StatsSnapshot);

impl StatsSnapshot {
    /// Disk errors at all sites.
    #[must_use]
    pub fn disk_errors(&self) -> u64 {
        self.errors_journal_write
            + self.errors_journal_sync
            + self.errors_journal_read
            + self.errors_sled
            + self.errors_manifest
    }
}
