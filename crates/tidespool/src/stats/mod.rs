//! Statistics: one call per event, one snapshot of all counters.
//!
//! * here – [`SpoolStats`] and [`Stats`]: one method per event, so that a hot path needs one call.
//! * `counter.rs`, `histogram.rs` – the counters: relaxed atomics, no lock.
//! * `findings.rs` – findings of damage, each counted once.
//! * `gauges.rs`, `snapshot.rs` – the public snapshot.
//! * `prometheus.rs` – the snapshot as text for a scraper.

mod counter;
mod findings;
mod gauges;
mod histogram;
#[cfg(feature = "prometheus")]
pub(crate) mod prometheus;
mod snapshot;
#[cfg(feature = "prometheus")]
#[cfg(test)]
mod tests;

use std::time::Duration;

use counter::{Counter, Padded, TotalTime};
use findings::DamageFindings;

use crate::message_id::MessageId;

pub use gauges::Gauges;
use histogram::Histogram;
pub use histogram::Latency;
pub use snapshot::{SpoolCounts, StatsSnapshot};

/// Where a load found its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    Pending,
    Young,
    Cache,
    Journal,
    Sled,
}

/// Why a store was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Unhealthy,
    CallerDeadline,
    Backpressure,
    TooLarge,
    Closed,
}

/// Where a disk error happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    JournalWrite,
    JournalSync,
    JournalRead,
    Sled,
    Manifest,
}

/// Totals of the disk errors and the damage found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Errors {
    /// Failed writes and syncs of the journal.
    pub(crate) journal_writes: u64,
    /// Failures of sled and of the manifest.
    pub(crate) checkpoint: u64,
    pub(crate) reads: u64,
    pub(crate) corrupt: u64,
    pub(crate) lost: u64,
    /// Files of the spool that another program deleted, moved or changed.
    pub(crate) lost_files: u64,
}

/// Declares counters in groups, and a struct of all groups. A group has its own cache lines,
/// because other threads write it than the other groups.
macro_rules! counters {
    (
        $(#[$all_doc:meta])* $All:ident into $Snapshot:ident:
        $($(#[$doc:meta])* $group:ident: $Group:ident { $($counter:ident: $Kind:ident,)+ })+
    ) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Default)]
            struct $Group { $($counter: $Kind,)+ }
        )+

        $(#[$all_doc])*
        #[derive(Debug, Default)]
        pub(crate) struct $All {
            $($group: Padded<$Group>,)+
        }

        impl $All {
            /// Adds all counters to the fields of the same names.
            fn add_to(&self, snapshot: &mut $Snapshot) {
                $($(snapshot.$counter += self.$group.$counter.get();)+)+
            }
        }
    };
}

counters! {
    /// The counters of one spool.
    SpoolStats into SpoolCounts:

    /// Written by the threads that load.
    loads: Loads {
        hits_pending: Counter,
        hits_young: Counter,
        hits_cache: Counter,
        hits_journal: Counter,
        hits_sled: Counter,
        misses: Counter,
        enumerate_skipped_newer: Counter,
    }

    /// Written by the threads that store and remove.
    stores: Stores {
        stores: Counter,
        stores_synced: Counter,
        stored_bytes: Counter,
        removes: Counter,
        store_wait: Histogram,
        refused_unhealthy: Counter,
        refused_caller_deadline: Counter,
        refused_backpressure: Counter,
        refused_too_large: Counter,
        refused_closed: Counter,
    }
}

counters! {
    /// The counters of what all spools of a store share.
    StoreCounters into StatsSnapshot:

    /// Written by the committer thread.
    commits: Commits {
        commit: Histogram,
        sync: Histogram,
        committed_records: Counter,
        committed_bytes: Counter,
        elided_writes: Counter,
        elided_bytes: Counter,
        aborts: Counter,
    }

    /// Written rarely, or by one background thread.
    upkeep: UpkeepCounters {
        checkpoints: Counter,
        checkpointed_records: Counter,
        checkpointed_segments: Counter,
        checkpoint_time: TotalTime,
        segments_recycled: Counter,
        segments_rewritten: Counter,
        rewritten_bytes: Counter,
        cache_evicted_entries: Counter,
        cache_evicted_bytes: Counter,
        low_memory_calls: Counter,
        low_memory_freed_bytes: Counter,
        pressure_changes: Counter,
        errors_journal_write: Counter,
        errors_journal_sync: Counter,
        errors_journal_read: Counter,
        errors_sled: Counter,
        errors_manifest: Counter,
        corrupt: Counter,
        lost: Counter,
        lost_files: Counter,
        index_rebuilds: Counter,
        recovered_records: Counter,
        replayed_changes: Counter,
        torn_records: Counter,
        crash_logs_lost: Counter,
        crash_log_bypassed: Counter,
    }
}

/// The counters of a store, and its findings of damage.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    counters: StoreCounters,
    findings: DamageFindings,
}

impl SpoolStats {
    /// Counts a load that found its message.
    pub(crate) fn hit(&self, tier: Tier) {
        let counter = match tier {
            Tier::Pending => &self.loads.hits_pending,
            Tier::Young => &self.loads.hits_young,
            Tier::Cache => &self.loads.hits_cache,
            Tier::Journal => &self.loads.hits_journal,
            Tier::Sled => &self.loads.hits_sled,
        };
        counter.increment();
    }

    /// Counts a load that found no message.
    pub(crate) fn miss(&self) {
        self.loads.misses.increment();
    }

    /// Counts messages that an enumeration left out because they are newer than its start time,
    /// although they were in the spool before it was opened.
    pub(crate) fn skipped_newer(&self, messages: u64) {
        self.loads.enumerate_skipped_newer.add(messages);
    }

    /// Counts an acknowledged store of `bytes`. `synced`: it was on stable storage by then.
    pub(crate) fn stored(&self, bytes: u64, synced: bool) {
        self.stores.stores.increment();
        self.stores.stored_bytes.add(bytes);
        if synced {
            self.stores.stores_synced.increment();
        }
    }

    /// Counts a removal, whether or not the message existed.
    pub(crate) fn removed(&self) {
        self.stores.removes.increment();
    }

    /// Counts a store that waited `time` for room, whether or not it got the room.
    pub(crate) fn store_waited(&self, time: Duration) {
        self.stores.store_wait.record(time);
    }

    /// Counts a refused store.
    pub(crate) fn store_refused(&self, why: Refusal) {
        let counter = match why {
            Refusal::Unhealthy => &self.stores.refused_unhealthy,
            Refusal::CallerDeadline => &self.stores.refused_caller_deadline,
            Refusal::Backpressure => &self.stores.refused_backpressure,
            Refusal::TooLarge => &self.stores.refused_too_large,
            Refusal::Closed => &self.stores.refused_closed,
        };
        counter.increment();
    }
}

impl StatsSnapshot {
    /// All counters now: those of `spools` by name, their sums, and those of the store.
    pub(crate) fn of<'a>(
        spools: impl Iterator<Item = (&'a str, &'a SpoolStats)>,
        store: &Stats,
        gauges: Gauges,
    ) -> Self {
        let mut snapshot = Self { gauges, ..Self::default() };
        for (name, spool) in spools {
            let mut counts = SpoolCounts::default();
            spool.add_to(&mut counts);
            snapshot.add_spool(name, counts);
        }
        store.counters.add_to(&mut snapshot);
        snapshot
    }
}

impl Stats {
    /// Counts writes that became unnecessary before their group commit. `bytes` includes the
    /// overhead of a dirty entry for each.
    pub(crate) fn elided(&self, writes: u64, bytes: u64) {
        self.counters.commits.elided_writes.add(writes);
        self.counters.commits.elided_bytes.add(bytes);
    }

    /// Counts a successful group commit. `bytes` includes the overhead of a dirty entry for each
    /// record.
    pub(crate) fn committed(&self, records: u64, bytes: u64, time: Duration) {
        self.counters.commits.commit.record(time);
        self.counters.commits.committed_records.add(records);
        self.counters.commits.committed_bytes.add(bytes);
    }

    /// Number of journal syncs so far, and their total time in microseconds.
    pub(crate) fn syncs(&self) -> (u64, u64) {
        self.counters.commits.sync.totals()
    }

    /// Counts a sync of the journal.
    pub(crate) fn synced(&self, time: Duration) {
        self.counters.commits.sync.record(time);
    }

    /// Counts an abort record: it cancels a put in the journal whose caller gave up.
    pub(crate) fn aborted(&self) {
        self.counters.commits.aborts.increment();
    }

    /// Counts a successful checkpoint.
    pub(crate) fn checkpoint(&self, records: u64, segments: u64, time: Duration) {
        self.counters.upkeep.checkpoints.increment();
        self.counters.upkeep.checkpointed_records.add(records);
        self.counters.upkeep.checkpointed_segments.add(segments);
        self.counters.upkeep.checkpoint_time.add(time);
    }

    /// Counts a segment that was made reusable.
    pub(crate) fn segment_recycled(&self) {
        self.counters.upkeep.segments_recycled.increment();
    }

    /// Counts a rewrite of retained segments, which moved `bytes` of live messages.
    pub(crate) fn segment_rewritten(&self, bytes: u64) {
        self.counters.upkeep.segments_rewritten.increment();
        self.counters.upkeep.rewritten_bytes.add(bytes);
    }

    /// Counts clean copies that were dropped from the cache to shrink it.
    pub(crate) fn cache_evicted(&self, entries: u64, bytes: u64) {
        self.counters.upkeep.cache_evicted_entries.add(entries);
        self.counters.upkeep.cache_evicted_bytes.add(bytes);
    }

    /// Counts a run of `advise_low_memory`, which reduced the accounted memory by `freed` bytes.
    /// A negative value (it grew) adds 0.
    pub(crate) fn low_memory(&self, freed: isize) {
        self.counters.upkeep.low_memory_calls.increment();
        self.counters.upkeep.low_memory_freed_bytes.add(u64::try_from(freed).unwrap_or(0));
    }

    /// Counts a change of the memory-pressure level.
    pub(crate) fn pressure_changed(&self) {
        self.counters.upkeep.pressure_changes.increment();
    }

    /// Counts a disk error.
    pub(crate) fn disk_error(&self, site: Site) {
        let counter = match site {
            Site::JournalWrite => &self.counters.upkeep.errors_journal_write,
            Site::JournalSync => &self.counters.upkeep.errors_journal_sync,
            Site::JournalRead => &self.counters.upkeep.errors_journal_read,
            Site::Sled => &self.counters.upkeep.errors_sled,
            Site::Manifest => &self.counters.upkeep.errors_manifest,
        };
        counter.increment();
    }

    /// Counts a damaged message, unless the same finding was counted before. Returns true if it
    /// was counted.
    pub(crate) fn found_damage(&self, id: &MessageId, what: &str) -> bool {
        let is_new = self.findings.is_new(id, what);
        if is_new {
            self.corrupt();
        }
        is_new
    }

    /// Counts a finding of damage.
    pub(crate) fn corrupt(&self) {
        self.counters.upkeep.corrupt.increment();
    }

    /// Counts acknowledged `messages` that are lost.
    pub(crate) fn lost(&self, messages: u64) {
        self.counters.upkeep.lost.add(messages);
    }

    /// Counts a file of the spool that another program deleted, moved or changed.
    pub(crate) fn lost_file(&self) {
        self.counters.upkeep.lost_files.increment();
    }

    /// Counts the `records` that recovery read from the journal.
    pub(crate) fn recovered(&self, records: u64) {
        self.counters.upkeep.recovered_records.add(records);
    }

    /// Counts the changes that were replayed from the crash log.
    pub(crate) fn replayed(&self, changes: u64) {
        self.counters.upkeep.replayed_changes.add(changes);
    }

    /// Counts a loss of the crash log's file.
    pub(crate) fn crash_log_lost(&self) {
        self.counters.upkeep.crash_logs_lost.increment();
    }

    /// Counts a store or a removal that the crash log could not take and that the journal syncs.
    pub(crate) fn unprotected(&self) {
        self.counters.upkeep.crash_log_bypassed.increment();
    }

    /// Counts a rebuild of the index from the segments.
    pub(crate) fn rebuilt_index(&self) {
        self.counters.upkeep.index_rebuilds.increment();
    }

    /// Counts the `records` that recovery cut from the end of the journal.
    pub(crate) fn torn(&self, records: u64) {
        self.counters.upkeep.torn_records.add(records);
    }

    /// The totals that the health gate uses.
    pub(crate) fn errors(&self) -> Errors {
        let upkeep = &self.counters.upkeep;
        Errors {
            journal_writes: upkeep.errors_journal_write.get() + upkeep.errors_journal_sync.get(),
            checkpoint: upkeep.errors_sled.get() + upkeep.errors_manifest.get(),
            reads: upkeep.errors_journal_read.get(),
            corrupt: upkeep.corrupt.get(),
            lost: upkeep.lost.get(),
            lost_files: upkeep.lost_files.get(),
        }
    }
}
