//! Statistics: one call an event, one snapshot of everything.
//!
//! * here – [`Stats`]: a method for each event, so that a hot path mentions it as one call.
//! * `counter.rs`, `histogram.rs` – what the events are counted in: relaxed atomics, no lock.
//! * `findings.rs` – damage, each piece of it once.
//! * `gauges.rs`, `snapshot.rs` – what a caller sees.
//! * `prometheus.rs` – the same as text for a scraper.

mod counter;
mod findings;
mod gauges;
mod histogram;
pub(crate) mod prometheus;
mod snapshot;
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

/// Totals of what went wrong on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Errors {
    /// Failed writes and syncs of the journal.
    pub(crate) journal_writes: u64,
    /// Failures of sled and of the manifest.
    pub(crate) checkpoint: u64,
    pub(crate) reads: u64,
    pub(crate) corrupt: u64,
    pub(crate) lost: u64,
    /// Files of the spool that were deleted, moved or changed by something else.
    pub(crate) lost_files: u64,
}

/// The counters of one spool. Grouped by the threads that write them, each group on cache lines of its own.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    loads: Padded<Loads>,
    stores: Padded<Stores>,
    commits: Padded<Commits>,
    upkeep: Padded<UpkeepCounters>,
}

/// Written by the threads of callers that load.
#[derive(Debug, Default)]
struct Loads {
    pending: Counter,
    cache: Counter,
    journal: Counter,
    sled: Counter,
    misses: Counter,
    skipped_newer: Counter,
}

/// Written by the threads of callers that store and remove.
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

/// Written by the committer.
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

/// Written seldom, or by one background thread.
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
    /// A load found its message.
    pub(crate) fn hit(&self, tier: Tier) {
        let counter = match tier {
            Tier::Pending => &self.loads.pending,
            Tier::Cache => &self.loads.cache,
            Tier::Journal => &self.loads.journal,
            Tier::Sled => &self.loads.sled,
        };
        counter.increment();
    }

    /// A load found nothing.
    pub(crate) fn miss(&self) {
        self.loads.misses.increment();
    }

    /// An enumeration left out messages that are newer than its start time, though they were there
    /// before this opening.
    pub(crate) fn skipped_newer(&self, messages: u64) {
        self.loads.skipped_newer.add(messages);
    }

    /// A store of `bytes` was acknowledged; `synced` where it was on stable storage by then.
    pub(crate) fn stored(&self, bytes: u64, synced: bool) {
        self.stores.stores.increment();
        self.stores.bytes.add(bytes);
        if synced {
            self.stores.synced.increment();
        }
    }

    /// A message was removed.
    pub(crate) fn removed(&self) {
        self.stores.removes.increment();
    }

    /// A store that had to wait for room got it, or gave up, after `time`.
    pub(crate) fn store_waited(&self, time: Duration) {
        self.stores.waits.record(time);
    }

    /// A store was refused.
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

    /// Writes that were waiting for their group commit need not be made any more.
    pub(crate) fn elided(&self, writes: u64, bytes: u64) {
        self.commits.elided_writes.add(writes);
        self.commits.elided_bytes.add(bytes);
    }

    /// A group commit ended well.
    pub(crate) fn committed(&self, records: u64, bytes: u64, time: Duration) {
        self.commits.commits.record(time);
        self.commits.records.add(records);
        self.commits.bytes.add(bytes);
    }

    /// Syncs of the journal so far, and the microseconds they took together.
    pub(crate) fn syncs(&self) -> (u64, u64) {
        self.commits.syncs.totals()
    }

    /// The journal was synced.
    pub(crate) fn synced(&self, time: Duration) {
        self.commits.syncs.record(time);
    }

    /// A put that was already in the journal was taken back.
    pub(crate) fn aborted(&self) {
        self.commits.aborts.increment();
    }

    /// A checkpoint ended well.
    pub(crate) fn checkpoint(&self, records: u64, segments: u64, time: Duration) {
        self.upkeep.checkpoints.increment();
        self.upkeep.checkpointed_records.add(records);
        self.upkeep.checkpointed_segments.add(segments);
        self.upkeep.checkpoint_us.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// A segment can be written again.
    pub(crate) fn segment_recycled(&self) {
        self.upkeep.segments_recycled.increment();
    }

    /// The survivors of a retained segment, `bytes` in all, were moved to another one.
    pub(crate) fn segment_rewritten(&self, bytes: u64) {
        self.upkeep.segments_rewritten.increment();
        self.upkeep.rewritten_bytes.add(bytes);
    }

    /// Clean copies were pushed out of the cache.
    pub(crate) fn cache_evicted(&self, entries: u64, bytes: u64) {
        self.upkeep.evicted_entries.add(entries);
        self.upkeep.evicted_bytes.add(bytes);
    }

    /// `advise_low_memory` made the accounted memory fall by `freed` bytes (negative: grow, which counts as nothing).
    pub(crate) fn low_memory(&self, freed: isize) {
        self.upkeep.low_memory_calls.increment();
        self.upkeep.low_memory_freed.add(u64::try_from(freed).unwrap_or(0));
    }

    /// The memory-pressure level changed.
    pub(crate) fn pressure_changed(&self) {
        self.upkeep.pressure_changes.increment();
    }

    /// The disk failed.
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

    /// A message was found damaged. Counted, and true, the first time.
    pub(crate) fn found_damage(&self, id: &SpoolId, what: &str) -> bool {
        let is_new = self.upkeep.findings.is_new(id, what);
        if is_new {
            self.corrupt();
        }
        is_new
    }

    /// Something was found damaged.
    pub(crate) fn corrupt(&self) {
        self.upkeep.corrupt.increment();
    }

    /// `messages` that had been acknowledged are lost.
    pub(crate) fn lost(&self, messages: u64) {
        self.upkeep.lost.add(messages);
    }

    /// A file of the spool was deleted, moved or changed by something else.
    pub(crate) fn lost_file(&self) {
        self.upkeep.lost_files.increment();
    }

    /// Recovery read `records` from the journal.
    pub(crate) fn recovered(&self, records: u64) {
        self.upkeep.recovered.add(records);
    }

    /// So many changes were brought back from the crash log.
    pub(crate) fn replayed(&self, changes: u64) {
        self.upkeep.replayed.add(changes);
    }

    /// Something happened to the crash log's file.
    pub(crate) fn crash_log_lost(&self) {
        self.upkeep.crash_logs_lost.increment();
    }

    /// A store or a removal that the crash log could not take goes to the journal.
    pub(crate) fn unprotected(&self) {
        self.upkeep.crash_log_bypassed.increment();
    }

    /// The index was rebuilt from the segments.
    pub(crate) fn rebuilt_index(&self) {
        self.upkeep.index_rebuilds.increment();
    }

    /// Recovery cut `records` from the journal's end.
    pub(crate) fn torn(&self, records: u64) {
        self.upkeep.torn.add(records);
    }

    /// What the health gate counts.
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

    /// Everything, now.
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
