//! Statistics: one call per event, one snapshot of all counters.
//!
//! * here – [`Stats`]: one method per event, so that a hot path needs one call.
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

use counter::{Counter, Padded};
use findings::DamageFindings;
pub use gauges::Gauges;
use histogram::Histogram;
pub use histogram::Latency;
pub use snapshot::StatsSnapshot;
use tidespool_core::SpoolId;

/// Where a load found its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    Pending,
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

/// The counters of one spool. They are grouped by the threads that write them. Each group has its
/// own cache lines.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    loads: Padded<Loads>,
    stores: Padded<Stores>,
    commits: Padded<Commits>,
    upkeep: Padded<UpkeepCounters>,
}

/// Written by the threads that load.
#[derive(Debug, Default)]
struct Loads {
    pending: Counter,
    cache: Counter,
    journal: Counter,
    sled: Counter,
    misses: Counter,
    skipped_newer: Counter,
}

/// Written by the threads that store and remove.
#[derive(Debug, Default)]
struct Stores {
    stores: Counter,
    synced: Counter,
    bytes: Counter,
    removes: Counter,
    waits: Histogram,
    unhealthy: Counter,
    caller_deadline: Counter,
    backpressure: Counter,
    too_large: Counter,
    closed: Counter,
}

/// Written by the committer thread.
#[derive(Debug, Default)]
struct Commits {
    commits: Histogram,
    syncs: Histogram,
    records: Counter,
    bytes: Counter,
    elided_writes: Counter,
    elided_bytes: Counter,
    aborts: Counter,
}

/// Written rarely, or by one background thread.
#[derive(Debug, Default)]
struct UpkeepCounters {
    checkpoints: Counter,
    checkpointed_records: Counter,
    checkpointed_segments: Counter,
    checkpoint_us: Counter,
    segments_recycled: Counter,
    segments_rewritten: Counter,
    rewritten_bytes: Counter,
    evicted_entries: Counter,
    evicted_bytes: Counter,
    low_memory_calls: Counter,
    low_memory_freed: Counter,
    pressure_changes: Counter,
    journal_write_errors: Counter,
    journal_sync_errors: Counter,
    journal_read_errors: Counter,
    sled_errors: Counter,
    manifest_errors: Counter,
    corrupt: Counter,
    findings: DamageFindings,
    lost: Counter,
    lost_files: Counter,
    index_rebuilds: Counter,
    recovered: Counter,
    replayed: Counter,
    torn: Counter,
    crash_logs_lost: Counter,
    crash_log_bypassed: Counter,
}

impl Stats {
    /// Counts a load that found its message.
    pub(crate) fn hit(&self, tier: Tier) {
        let counter = match tier {
            Tier::Pending => &self.loads.pending,
            Tier::Cache => &self.loads.cache,
            Tier::Journal => &self.loads.journal,
            Tier::Sled => &self.loads.sled,
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
        self.loads.skipped_newer.add(messages);
    }

    /// Counts an acknowledged store of `bytes`. `synced`: it was on stable storage by then.
    pub(crate) fn stored(&self, bytes: u64, synced: bool) {
        self.stores.stores.increment();
        self.stores.bytes.add(bytes);
        if synced {
            self.stores.synced.increment();
        }
    }

    /// Counts a removal, whether or not the message existed.
    pub(crate) fn removed(&self) {
        self.stores.removes.increment();
    }

    /// Counts a store that waited `time` for room, whether or not it got the room.
    pub(crate) fn store_waited(&self, time: Duration) {
        self.stores.waits.record(time);
    }

    /// Counts a refused store.
    pub(crate) fn store_refused(&self, why: Refusal) {
        let counter = match why {
            Refusal::Unhealthy => &self.stores.unhealthy,
            Refusal::CallerDeadline => &self.stores.caller_deadline,
            Refusal::Backpressure => &self.stores.backpressure,
            Refusal::TooLarge => &self.stores.too_large,
            Refusal::Closed => &self.stores.closed,
        };
        counter.increment();
    }

    /// Counts writes that became unnecessary before their group commit. `bytes` includes the
    /// overhead of a dirty entry for each.
    pub(crate) fn elided(&self, writes: u64, bytes: u64) {
        self.commits.elided_writes.add(writes);
        self.commits.elided_bytes.add(bytes);
    }

    /// Counts a successful group commit. `bytes` includes the overhead of a dirty entry for each
    /// record.
    pub(crate) fn committed(&self, records: u64, bytes: u64, time: Duration) {
        self.commits.commits.record(time);
        self.commits.records.add(records);
        self.commits.bytes.add(bytes);
    }

    /// Number of journal syncs so far, and their total time in microseconds.
    pub(crate) fn syncs(&self) -> (u64, u64) {
        self.commits.syncs.totals()
    }

    /// Counts a sync of the journal.
    pub(crate) fn synced(&self, time: Duration) {
        self.commits.syncs.record(time);
    }

    /// Counts an abort record: it cancels a put in the journal whose caller gave up.
    pub(crate) fn aborted(&self) {
        self.commits.aborts.increment();
    }

    /// Counts a successful checkpoint.
    pub(crate) fn checkpoint(&self, records: u64, segments: u64, time: Duration) {
        self.upkeep.checkpoints.increment();
        self.upkeep.checkpointed_records.add(records);
        self.upkeep.checkpointed_segments.add(segments);
        self.upkeep.checkpoint_us.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts a segment that was made reusable.
    pub(crate) fn segment_recycled(&self) {
        self.upkeep.segments_recycled.increment();
    }

    /// Counts a rewrite of retained segments, which moved `bytes` of live messages.
    pub(crate) fn segment_rewritten(&self, bytes: u64) {
        self.upkeep.segments_rewritten.increment();
        self.upkeep.rewritten_bytes.add(bytes);
    }

    /// Counts clean copies that were dropped from the cache to shrink it.
    pub(crate) fn cache_evicted(&self, entries: u64, bytes: u64) {
        self.upkeep.evicted_entries.add(entries);
        self.upkeep.evicted_bytes.add(bytes);
    }

    /// Counts a run of `advise_low_memory`, which reduced the accounted memory by `freed` bytes.
    /// A negative value (it grew) adds 0.
    pub(crate) fn low_memory(&self, freed: isize) {
        self.upkeep.low_memory_calls.increment();
        self.upkeep.low_memory_freed.add(u64::try_from(freed).unwrap_or(0));
    }

    /// Counts a change of the memory-pressure level.
    pub(crate) fn pressure_changed(&self) {
        self.upkeep.pressure_changes.increment();
    }

    /// Counts a disk error.
    pub(crate) fn disk_error(&self, site: Site) {
        let counter = match site {
            Site::JournalWrite => &self.upkeep.journal_write_errors,
            Site::JournalSync => &self.upkeep.journal_sync_errors,
            Site::JournalRead => &self.upkeep.journal_read_errors,
            Site::Sled => &self.upkeep.sled_errors,
            Site::Manifest => &self.upkeep.manifest_errors,
        };
        counter.increment();
    }

    /// Counts a damaged message, unless the same finding was counted before. Returns true if it
    /// was counted.
    pub(crate) fn found_damage(&self, id: &SpoolId, what: &str) -> bool {
        let is_new = self.upkeep.findings.is_new(id, what);
        if is_new {
            self.corrupt();
        }
        is_new
    }

    /// Counts a finding of damage.
    pub(crate) fn corrupt(&self) {
        self.upkeep.corrupt.increment();
    }

    /// Counts acknowledged `messages` that are lost.
    pub(crate) fn lost(&self, messages: u64) {
        self.upkeep.lost.add(messages);
    }

    /// Counts a file of the spool that another program deleted, moved or changed.
    pub(crate) fn lost_file(&self) {
        self.upkeep.lost_files.increment();
    }

    /// Counts the `records` that recovery read from the journal.
    pub(crate) fn recovered(&self, records: u64) {
        self.upkeep.recovered.add(records);
    }

    /// Counts the changes that were replayed from the crash log.
    pub(crate) fn replayed(&self, changes: u64) {
        self.upkeep.replayed.add(changes);
    }

    /// Counts a loss of the crash log's file.
    pub(crate) fn crash_log_lost(&self) {
        self.upkeep.crash_logs_lost.increment();
    }

    /// Counts a store or a removal that the crash log could not take and that the journal syncs.
    pub(crate) fn unprotected(&self) {
        self.upkeep.crash_log_bypassed.increment();
    }

    /// Counts a rebuild of the index from the segments.
    pub(crate) fn rebuilt_index(&self) {
        self.upkeep.index_rebuilds.increment();
    }

    /// Counts the `records` that recovery cut from the end of the journal.
    pub(crate) fn torn(&self, records: u64) {
        self.upkeep.torn.add(records);
    }

    /// The totals that the health gate uses.
    pub(crate) fn errors(&self) -> Errors {
        let upkeep = &self.upkeep;
        Errors {
            journal_writes: upkeep.journal_write_errors.get() + upkeep.journal_sync_errors.get(),
            checkpoint: upkeep.sled_errors.get() + upkeep.manifest_errors.get(),
            reads: upkeep.journal_read_errors.get(),
            corrupt: upkeep.corrupt.get(),
            lost: upkeep.lost.get(),
            lost_files: upkeep.lost_files.get(),
        }
    }

    /// All counters now, with the given `gauges`.
    pub(crate) fn snapshot(&self, gauges: Gauges) -> StatsSnapshot {
        let Self { loads, stores, commits, upkeep } = self;
        StatsSnapshot {
            hits_pending: loads.pending.get(),
            hits_cache: loads.cache.get(),
            hits_journal: loads.journal.get(),
            hits_sled: loads.sled.get(),
            misses: loads.misses.get(),
            enumerate_skipped_newer: loads.skipped_newer.get(),
            stores: stores.stores.get(),
            stores_synced: stores.synced.get(),
            stored_bytes: stores.bytes.get(),
            aborts: commits.aborts.get(),
            removes: stores.removes.get(),
            elided_writes: commits.elided_writes.get(),
            elided_bytes: commits.elided_bytes.get(),
            store_wait: stores.waits.snapshot(),
            refused_unhealthy: stores.unhealthy.get(),
            refused_caller_deadline: stores.caller_deadline.get(),
            refused_backpressure: stores.backpressure.get(),
            refused_too_large: stores.too_large.get(),
            refused_closed: stores.closed.get(),
            commit: commits.commits.snapshot(),
            committed_records: commits.records.get(),
            committed_bytes: commits.bytes.get(),
            sync: commits.syncs.snapshot(),
            checkpoints: upkeep.checkpoints.get(),
            checkpointed_records: upkeep.checkpointed_records.get(),
            checkpointed_segments: upkeep.checkpointed_segments.get(),
            checkpoint_time: Duration::from_micros(upkeep.checkpoint_us.get()),
            segments_recycled: upkeep.segments_recycled.get(),
            segments_rewritten: upkeep.segments_rewritten.get(),
            rewritten_bytes: upkeep.rewritten_bytes.get(),
            cache_evicted_entries: upkeep.evicted_entries.get(),
            cache_evicted_bytes: upkeep.evicted_bytes.get(),
            low_memory_calls: upkeep.low_memory_calls.get(),
            low_memory_freed_bytes: upkeep.low_memory_freed.get(),
            pressure_changes: upkeep.pressure_changes.get(),
            errors_journal_write: upkeep.journal_write_errors.get(),
            errors_journal_sync: upkeep.journal_sync_errors.get(),
            errors_journal_read: upkeep.journal_read_errors.get(),
            errors_sled: upkeep.sled_errors.get(),
            errors_manifest: upkeep.manifest_errors.get(),
            corrupt: upkeep.corrupt.get(),
            lost: upkeep.lost.get(),
            lost_files: upkeep.lost_files.get(),
            recovered_records: upkeep.recovered.get(),
            replayed_changes: upkeep.replayed.get(),
            torn_records: upkeep.torn.get(),
            crash_logs_lost: upkeep.crash_logs_lost.get(),
            crash_log_bypassed: upkeep.crash_log_bypassed.get(),
            index_rebuilds: upkeep.index_rebuilds.get(),
            gauges,
        }
    }
}
