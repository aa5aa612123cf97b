use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::builder::setters;
use super::{duration, size};

/// A condition that can close the health gate, the worst first.
///
/// A failure for want of disk space is reported as `LowSpace`, which is before the error signals.
/// The names in a file and in the metrics are these in snake case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum HealthSignal {
    /// A background thread has died. It is not restarted: open the spool anew.
    DeadWorker,
    /// Many messages were found damaged or lost: [`damage`](HealthConfig::damage).
    Damage,
    /// Something else deleted, moved, replaced or truncated files of the spool. The spool writes
    /// them anew. The gate stays closed until all of them exist again.
    LostFiles,
    /// The file system is nearly full, or nearly out of inodes:
    /// [`min_free_bytes`](HealthConfig::min_free_bytes).
    LowSpace,
    /// Writes or syncs of the journal failed: [`journal_errors`](HealthConfig::journal_errors).
    JournalErrors,
    /// sled or the manifest failed: [`sled_errors`](HealthConfig::sled_errors).
    SledErrors,
    /// Reading messages from disk failed: [`read_errors`](HealthConfig::read_errors).
    ReadErrors,
    /// A checkpoint makes no progress: [`checkpoint_stall`](HealthConfig::checkpoint_stall).
    StalledCheckpoint,
    /// Backlog: no segment of the journal is free, and none can be made.
    NoFreeSegment,
    /// Backlog: too many bytes are dirty: [`dirty_fraction`](HealthConfig::dirty_fraction).
    DirtyBytes,
    /// Backlog: a message has been dirty for too long: [`dirty_age`](HealthConfig::dirty_age).
    DirtyAge,
}

/// Which stores are refused while a backlog is the only signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BacklogRefusal {
    /// All stores.
    #[default]
    All,
    /// Stores that wait for the disk: with `force_sync`, with the durability `synced`, or of a
    /// message larger than a segment. The other stores wait for room until their deadlines, as they
    /// do while the gate is open.
    Synced,
}

/// How long a signal has to last, and how long it has to be gone. `None`: the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SignalTimes {
    /// How long the signal has to last before it closes the gate.
    ///
    /// Default: 0, which closes the gate at the next sample;
    /// [`backlog_latch_after`](HealthConfig::backlog_latch_after) for a backlog; 500 ms for
    /// [`HealthSignal::LowSpace`]. Bounds: 0 to 1 hour.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub latch_after: Option<Duration>,

    /// How long the signal has to be gone before the gate may open.
    ///
    /// Default: [`unlatch_after`](field@HealthConfig::unlatch_after). Bounds: 0 to 1 hour.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub unlatch_after: Option<Duration>,
}

setters! { SignalTimes {
    latch_after: some Duration,
    unlatch_after: some Duration,
}}

/// When the spool is unhealthy and refuses new messages: the `[health]` table.
///
/// Loads and removals continue meanwhile. Each [`HealthSignal`] has a time for which it has to
/// last, and a time for which it has to be gone. Most signals have a threshold here. A dead thread,
/// lost files and a journal without a free segment have none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HealthConfig {
    /// Backlog: the dirty bytes, as a fraction of `dirty_limit`, at which the signal begins.
    ///
    /// Default = 0.98. Bounds: above 0, at most 1.
    pub dirty_fraction: f64,

    /// Backlog: the age of the oldest dirty message at which the signal begins.
    ///
    /// Default = 10 × `dirty_expire`. Bounds: `dirty_expire` to 1 day.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub dirty_age: Option<Duration>,

    /// Which stores are refused while a backlog (dirty bytes, dirty age, no free segment) is the
    /// only signal.
    ///
    /// Default = `all`.
    pub backlog_refusal: BacklogRefusal,

    /// How long a backlog (dirty bytes, dirty age, no free segment) has to last before the gate
    /// closes. During a shorter burst, stores wait instead.
    ///
    /// Default = 2 s. Bounds: 0 to 1 hour; 0 closes the gate at the next sample.
    #[serde(with = "duration")]
    pub backlog_latch_after: Duration,

    /// How long a checkpoint may make no progress because it hangs, or fails again and again.
    ///
    /// Default = 60 s. Bounds: 1 s to 1 day.
    #[serde(with = "duration")]
    pub checkpoint_stall: Duration,

    /// This many failed writes and syncs of the journal within [`error_window`](Self::error_window)
    /// close the gate.
    ///
    /// Default = 1. Bounds: 1 to 1 000.
    pub journal_errors: u32,

    /// This many errors of sled and the manifest within [`error_window`](Self::error_window) close
    /// the gate.
    ///
    /// Default = 3. Bounds: 1 to 1 000.
    pub sled_errors: u32,

    /// This many failed reads of messages within [`error_window`](Self::error_window) close the
    /// gate.
    ///
    /// Default = 3. Bounds: 1 to 1 000.
    pub read_errors: u32,

    /// This many damaged or lost messages found within [`error_window`](Self::error_window),
    /// including those found at open, close the gate. A message that is found damaged again does
    /// not count again.
    ///
    /// A few damaged old messages are reported and do not stop the mail, because they prove little
    /// about new writes. Many at a time mean that the disk, or the memory, is losing data.
    ///
    /// Default = 10. Bounds: 1 to 1 000.
    pub damage: u32,

    /// The time in which errors and damaged messages are counted, each kind separately.
    ///
    /// Default = 60 s. Bounds: 1 s to 1 day.
    #[serde(with = "duration")]
    pub error_window: Duration,

    /// Free space, in bytes, under which the gate closes.
    ///
    /// The gate is closed while free space is under the **smaller** of this and
    /// [`min_free_fraction`](Self::min_free_fraction): under 256 MiB on a large disk, under 5 % on
    /// a small one. Setting either to 0 switches the check of free space off.
    ///
    /// Default = 256 MiB. Bounds: 0 to 1 TiB.
    #[serde(with = "size")]
    pub min_free_bytes: u64,

    /// Free space, as a fraction of the file system, under which the gate closes: see
    /// [`min_free_bytes`](Self::min_free_bytes). Applies to free inodes as well: see
    /// [`min_free_inodes`](Self::min_free_inodes).
    ///
    /// Default = 0.05. Bounds: 0 to 0.5.
    pub min_free_fraction: f64,

    /// Free inodes under which the gate closes, if they are also fewer than
    /// [`min_free_fraction`](Self::min_free_fraction) of all inodes. The spool itself needs only a
    /// few: for new segments, the manifest and sled's snapshots.
    ///
    /// Default = 1 000. Bounds: 0 to 1 000 000; 0 switches the check off.
    pub min_free_inodes: u64,

    /// How long a signal has to be gone before the gate may open again. Before it opens, a small
    /// file must be written, synced and read back.
    ///
    /// If the gate closes again soon after it opened, the next wait is twice as long, up to 16
    /// times.
    ///
    /// Default = 5 s. Bounds: 0 to 1 hour.
    #[serde(with = "duration")]
    pub unlatch_after: Duration,

    /// Whether the gate may open again by itself. If not, it stays closed until the spool is opened
    /// anew.
    ///
    /// Default = true.
    pub allow_unlatch: bool,

    /// How often the signals are sampled. Free space is checked at least once a second.
    ///
    /// Default = 100 ms. Bounds: 10 ms to 10 s.
    #[serde(with = "duration")]
    pub sample_interval: Duration,

    /// Times of single signals, which override the times above.
    ///
    /// Default: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub signals: BTreeMap<HealthSignal, SignalTimes>,
}

/// How long the disk has to be nearly full. Two samples of free space fall into this time, so that
/// a file that is deleted at once does not close the gate.
const LOW_SPACE_LATCH_AFTER: Duration = Duration::from_millis(500);

impl HealthConfig {
    /// Sets the times of one signal in [`signals`](field@Self::signals).
    #[must_use]
    pub fn signal(mut self, signal: HealthSignal, times: SignalTimes) -> Self {
        self.signals.insert(signal, times);
        self
    }

    /// How long a signal has to last before it closes the gate.
    pub(crate) fn latch_after_of(&self, signal: HealthSignal) -> Duration {
        let own = self.signals.get(&signal).and_then(|times| times.latch_after);
        own.unwrap_or(match signal {
            HealthSignal::DirtyBytes | HealthSignal::DirtyAge | HealthSignal::NoFreeSegment => {
                self.backlog_latch_after
            }
            HealthSignal::LowSpace => LOW_SPACE_LATCH_AFTER,
            _ => Duration::ZERO,
        })
    }

    /// How long a signal has to be gone before the gate may open.
    pub(crate) fn unlatch_after_of(&self, signal: HealthSignal) -> Duration {
        self.signals.get(&signal).and_then(|times| times.unlatch_after).unwrap_or(self.unlatch_after)
    }
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            dirty_fraction: 0.98,
            dirty_age: None,
            backlog_refusal: BacklogRefusal::default(),
            backlog_latch_after: Duration::from_secs(2),
            checkpoint_stall: Duration::from_secs(60),
            journal_errors: 1,
            sled_errors: 3,
            read_errors: 3,
            damage: 10,
            error_window: Duration::from_secs(60),
            min_free_bytes: 256 * size::MIB,
            min_free_fraction: 0.05,
            min_free_inodes: 1_000,
            unlatch_after: Duration::from_secs(5),
            allow_unlatch: true,
            sample_interval: Duration::from_millis(100),
            signals: BTreeMap::new(),
        }
    }
}

setters! { HealthConfig {
    dirty_fraction: f64,
    dirty_age: some Duration,
    backlog_refusal: BacklogRefusal,
    backlog_latch_after: Duration,
    checkpoint_stall: Duration,
    journal_errors: u32,
    sled_errors: u32,
    read_errors: u32,
    damage: u32,
    error_window: Duration,
    min_free_bytes: u64,
    min_free_fraction: f64,
    min_free_inodes: u64,
    unlatch_after: Duration,
    allow_unlatch: bool,
    sample_interval: Duration,
}}
