use std::time::Duration;

use serde::Serialize;
use tidespool_pressure::{Level, Source};

use crate::HealthSignal;

/// The state of the spool at one moment, as values that can rise and fall.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Gauges {
    /// Bytes of messages and removals that are not on stable storage yet. Includes stores that
    /// wait for their sync.
    pub dirty_bytes: u64,
    /// Bytes of messages that a power cut would lose now: acknowledged but not on stable storage.
    pub at_risk_bytes: u64,
    /// Removals that a power cut would undo now.
    pub at_risk_removals: u64,
    /// Bytes of messages that the death of the process would lose now. 0 unless a spool has the
    /// durability `memory`.
    pub process_risk_bytes: u64,
    /// Removals that the death of the process would undo now. 0 unless a spool has the durability
    /// `memory`.
    pub process_risk_removals: u64,
    /// The limit of `dirty_bytes`. Stores wait when it is reached.
    pub dirty_limit: u64,
    /// Number of messages and removals that are not on stable storage yet.
    pub dirty_entries: u64,
    /// Age of the oldest dirty entry, or zero if there is none. In JSON: seconds and nanoseconds.
    pub oldest_dirty_age: Duration,

    /// Bytes of the clean copies in memory, including the overhead of each.
    pub cache_bytes: u64,
    /// Number of clean copies.
    pub cache_entries: u64,
    /// The maximum of `cache_bytes` now. It shrinks under memory pressure.
    pub cache_capacity: u64,
    /// Bytes of the young copies: the part of `cache_bytes` that came last.
    pub young_bytes: u64,
    /// Number of young copies, a part of `cache_entries`.
    pub young_entries: u64,
    /// The maximum of `young_bytes` now, a part of `cache_capacity`.
    pub young_capacity: u64,
    /// Messages and removals in the index in memory: those that no checkpoint covers yet.
    pub index_entries: u64,
    /// Memory of that index, in bytes.
    pub index_bytes: u64,
    /// Memory of sled, in bytes. An estimate.
    pub sled_bytes: u64,
    /// Memory of the crash log, in bytes: the parts of its file that the process has used.
    pub crash_log_bytes: u64,
    /// Size of the crash log's file in bytes, or 0 if there is none.
    pub crash_log_disk_bytes: u64,
    /// Memory of the journal's writer, in bytes: queued records without the messages themselves.
    pub journal_buffer_bytes: u64,
    /// All memory that counts against the budget, in bytes: dirty entries, cache, index, sled,
    /// crash log and the journal's writer.
    pub accounted_bytes: u64,
    /// The setting `memory_budget`, in bytes.
    pub memory_budget: u64,
    /// The memory that the spool may use now, in bytes: the budget, or less under memory pressure.
    pub memory_allowed: u64,
    /// Resident memory of the process, in bytes. 0 if unknown or if the monitor is off.
    pub resident_bytes: u64,
    /// The usage that the memory-pressure monitor compares with `pressure_limit`, in bytes. 0 if
    /// unknown or if the monitor is off.
    pub pressure_used: u64,
    /// The limit that is nearest to being reached, in bytes. 0 if unknown or if the monitor is off.
    pub pressure_limit: u64,
    /// The source of `pressure_used` and `pressure_limit`.
    pub pressure_source: Option<Source>,
    /// The current level of memory pressure.
    pub pressure_level: Level,
    /// Share of the last 10 s in which some task waited for memory, 0 to 1. `None` if the kernel
    /// does not report it, or if it does not count.
    pub memory_stall_ratio: Option<f64>,

    /// Bytes of sled's files.
    pub sled_disk_bytes: u64,
    /// Messages that a running rebuild of the index has indexed. `None` if no rebuild runs.
    pub index_rebuild_indexed: Option<u64>,
    /// Messages that a running rebuild has to index. `None` if no rebuild runs.
    pub index_rebuild_messages: Option<u64>,
    /// Bytes of all segment files.
    pub journal_bytes: u64,
    /// The bytes that the journal may use now: the setting `journal_capacity`, or the room on the
    /// disk if that is less.
    pub journal_capacity: u64,
    /// Segments that are ready to be written.
    pub journal_segments_free: u64,
    /// Segments that are not completely checkpointed yet.
    pub journal_segments_in_use: u64,
    /// Segments that are checkpointed and hold live messages, or a single message larger than
    /// `segment_size`.
    pub journal_segments_retained: u64,

    /// The worst signal, while the spool is unhealthy and refuses new messages.
    pub unhealthy: Option<HealthSignal>,
    /// The spool is shut down and refuses new messages.
    pub shut_down: bool,
}
