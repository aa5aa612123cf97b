use std::time::Duration;

use serde::Serialize;

use crate::HealthSignal;
use crate::pressure::{Level, Source};

/// What the spool holds at one moment. The pieces know it; the tiered layer asks them and fills this in.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Gauges {
    /// Bytes of messages and removals that are not yet on stable storage, those of stores that wait
    /// for their sync included.
    pub dirty_bytes: u64,
    /// Bytes of messages that a power cut would lose now: acknowledged, and not on stable storage.
    pub at_risk_bytes: u64,
    /// Removals that a power cut would undo now.
    pub at_risk_removals: u64,
    /// Bytes of messages that the death of the process would lose now. 0 above the durability
    /// `memory`.
    pub process_risk_bytes: u64,
    /// Removals that the death of the process would undo now. 0 above the durability `memory`.
    pub process_risk_removals: u64,
    /// The bound of `dirty_bytes`, at which stores wait.
    pub dirty_limit: u64,
    /// Messages and removals not yet on stable storage.
    pub dirty_entries: u64,
    /// The age of the oldest of them; zero where there is none. In JSON: seconds and nanoseconds.
    pub oldest_dirty_age: Duration,

    /// Payload bytes of the clean copies, with what the cache needs for each.
    pub cache_bytes: u64,
    /// Clean copies.
    pub cache_entries: u64,
    /// The bound of `cache_bytes` now; shrinks under memory pressure.
    pub cache_capacity: u64,
    /// Messages in the index: those younger than the last checkpoint.
    pub index_entries: u64,
    /// Memory of the index, in bytes.
    pub index_bytes: u64,
    /// Memory of sled, in bytes: an estimate.
    pub sled_bytes: u64,
    /// Memory of the crash log, in bytes: the parts of its file that the process has used.
    pub crash_log_bytes: u64,
    /// Bytes of the crash log's file. 0: there is none.
    pub crash_log_disk_bytes: u64,
    /// Memory of the journal's writer, in bytes: what is queued, without the messages themselves.
    pub journal_buffer_bytes: u64,
    /// All memory that counts against the budget, in bytes: dirty, cache, index, sled, the crash
    /// log and the journal's writer.
    pub accounted_bytes: u64,
    /// The setting `memory_budget`, in bytes.
    pub memory_budget: u64,
    /// What the spool may take now, in bytes: the budget, or less while memory is short.
    pub memory_allowed: u64,
    /// Resident memory of the whole process, in bytes; 0 where it is not known.
    pub resident_bytes: u64,
    /// What the memory-pressure monitor compares with `pressure_limit`, in bytes; 0 where it does not know, or is off.
    pub pressure_used: u64,
    /// The limit that is nearest to being reached, in bytes; 0 as above.
    pub pressure_limit: u64,
    /// What these two are of.
    pub pressure_source: Option<Source>,
    /// The level that the memory-pressure monitor sees.
    pub pressure_level: Level,
    /// The share of the last 10 s in which some task waited for memory, 0 to 1, where the kernel tells it.
    pub memory_stall_ratio: Option<f64>,

    /// Bytes of sled's files.
    pub sled_disk_bytes: u64,
    /// Messages that a rebuild of the index has indexed so far. `None`: no rebuild runs.
    pub index_rebuild_indexed: Option<u64>,
    /// Messages that it has to index. `None`: no rebuild runs.
    pub index_rebuild_messages: Option<u64>,
    /// Bytes of all segment files.
    pub journal_bytes: u64,
    /// What the journal may take now, in bytes: the setting `journal_capacity`, or what fits on the
    /// disk where that is less.
    pub journal_capacity: u64,
    /// Segments ready to be written.
    pub journal_segments_free: u64,
    /// Segments with records that are not all filed yet.
    pub journal_segments_in_use: u64,
    /// Filed segments kept for the large messages in them.
    pub journal_segments_retained: u64,

    /// Why the spool refuses new messages, if it does: the worst of what is wrong.
    pub unhealthy: Option<HealthSignal>,
    /// The spool is shut down, and refuses new messages for that.
    pub shut_down: bool,
    /// Live messages, where their number is known.
    pub live_messages: Option<u64>,
}
