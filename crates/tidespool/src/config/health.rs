use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::builder::setters;
use super::{duration, size};

/// One thing that can shut the health gate, the worst first: what fails for want of room is told as want of room. The names in a file and in the metrics are these in snake case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum HealthSignal {
    /// A background thread has died. It does not come back: the spool has to be opened anew.
    DeadWorker,
    /// Many messages were found damaged or lost: [`damage`](HealthConfig::damage).
    Damage,
    /// Files of the spool were deleted, moved, replaced or cut short by something else. The spool
    /// writes them anew; the gate stays shut until all of them are there.
    LostFiles,
    /// The file system is nearly full, or has hardly an inode left: [`min_free_bytes`](HealthConfig::min_free_bytes).
    LowSpace,
    /// Writes or syncs of the journal failed: [`journal_errors`](HealthConfig::journal_errors).
    JournalErrors,
    /// sled or its manifest failed: [`sled_errors`](HealthConfig::sled_errors).
    SledErrors,
    /// Reading messages from disk failed: [`read_errors`](HealthConfig::read_errors).
    ReadErrors,
    /// A checkpoint makes no progress: [`checkpoint_stall`](HealthConfig::checkpoint_stall).
    StalledCheckpoint,
    /// Backlog: no segment of the journal is free, and none can be made.
    NoFreeSegment,
    /// Backlog: too much is dirty: [`dirty_fraction`](HealthConfig::dirty_fraction).
    DirtyBytes,
    /// Backlog: something has been dirty for too long: [`dirty_age`](HealthConfig::dirty_age).
    DirtyAge,
}

/// Which stores are refused while a backlog is all that is wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BacklogRefusal {
    /// All.
    #[default]
    All,
    /// Those that wait for the disk: with `force_sync`, with the durability `synced`, or of a
    /// message larger than a segment. The others wait for room until their deadlines, as they do
    /// while the gate is open.
    Synced,
}

/// How long a signal has to last. What is `None` is as for the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SignalTimes {
    /// How long it has to be there before it shuts the gate.
    ///
    /// Default: 0, which is at once; [`backlog_latch_after`](HealthConfig::backlog_latch_after) for a backlog, 500 ms for
    /// [`HealthSignal::LowSpace`]. Bounds: 0 to 1 hour.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub latch_after: Option<Duration>,

    /// How long it has to be gone before the gate may open.
    ///
    /// Default: [`unlatch_after`](field@HealthConfig::unlatch_after). Bounds: 0 to 1 hour.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub unlatch_after: Option<Duration>,
}

setters! { SignalTimes {
    latch_after: some Duration,
    unlatch_after: some Duration,
}}

/// When the spool declares itself unhealthy and refuses new messages: the `[health]` table.
///
/// Loads and removes go on while it does. Each [`HealthSignal`] has a threshold here (a dead thread and a journal without a free segment need none), a
/// time for which it has to last, and a time for which it has to be gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HealthConfig {
    /// Backlog: the dirty bytes, as a fraction of `dirty_limit`, from which on the spool has fallen behind.
    ///
    /// Default = 0.98. Bounds: above 0, at most 1.
    pub dirty_fraction: f64,

    /// Backlog: the age of the oldest dirty message from which on the spool has fallen behind.
    ///
    /// Default = 10 × `dirty_expire`. Bounds: `dirty_expire` to 1 day.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub dirty_age: Option<Duration>,

    /// Which stores are refused while a backlog is all that is wrong: dirty bytes, dirty age, no free segment.
    ///
    /// Default = `all`.
    pub backlog_refusal: BacklogRefusal,

    /// How long a backlog (dirty bytes, dirty age, no free segment) has to last before the gate shuts. Short bursts
    /// are met by making stores wait instead.
    ///
    /// Default = 2 s. Bounds: 0 to 1 hour; 0 shuts at once.
    #[serde(with = "duration")]
    pub backlog_latch_after: Duration,

    /// How long a checkpoint may make no progress: it hangs, or fails again and again.
    ///
    /// Default = 60 s. Bounds: 1 s to 1 day.
    #[serde(with = "duration")]
    pub checkpoint_stall: Duration,

    /// This many failed writes and syncs of the journal within [`error_window`](Self::error_window) shut the gate.
    ///
    /// Default = 1. Bounds: 1 to 1 000.
    pub journal_errors: u32,

    /// This many errors of sled and its manifest within [`error_window`](Self::error_window).
    ///
    /// Default = 3. Bounds: 1 to 1 000.
    pub sled_errors: u32,

    /// This many failed reads of messages within [`error_window`](Self::error_window).
    ///
    /// Default = 3. Bounds: 1 to 1 000.
    pub read_errors: u32,

    /// This many damaged or lost messages found within [`error_window`](Self::error_window) shut
    /// the gate, those found at open included. A message that is found damaged again does not count
    /// again.
    ///
    /// A few damaged old messages are reported and do not stop the mail: they prove little about
    /// what is written now. Many at a time mean that the disk, or the memory, is losing data.
    ///
    /// Default = 10. Bounds: 1 to 1 000.
    pub damage: u32,

    /// The time in which errors and findings are counted, each kind for itself.
    ///
    /// Default = 60 s. Bounds: 1 s to 1 day.
    #[serde(with = "duration")]
    pub error_window: Duration,

    /// Free space, in bytes, under which the gate shuts; on a small file system
    /// [`min_free_fraction`](Self::min_free_fraction) says it earlier.
    ///
    /// The gate is shut while the free space is under the **smaller** of the two: under 256 MiB on a large disk,
    /// under 5 % on a small one. Setting either to 0 switches the check of free space off.
    ///
    /// Default = 256 MiB. Bounds: 0 to 1 TiB.
    #[serde(with = "size")]
    pub min_free_bytes: u64,

    /// Free space, as a fraction of the file system, under which the gate shuts: see
    /// [`min_free_bytes`](Self::min_free_bytes). The same for inodes.
    ///
    /// Default = 0.05. Bounds: 0 to 0.5.
    pub min_free_fraction: f64,

    /// Free inodes under which the gate shuts, where they are also fewer than [`min_free_fraction`](Self::min_free_fraction) of all. The
    /// spool itself needs a handful: for new segments, the manifest and sled's snapshots.
    ///
    /// Default = 1 000. Bounds: 0 to 1 000 000; 0 switches the check off.
    pub min_free_inodes: u64,

    /// How long a signal has to be gone before the gate opens again. What shut it is tried then: a small file is written, synced, and read back.
    ///
    /// A gate that shuts again soon after it opened waits twice as long the next time, up to 16 times.
    ///
    /// Default = 5 s. Bounds: 0 to 1 hour.
    #[serde(with = "duration")]
    pub unlatch_after: Duration,

    /// Whether the gate may open again by itself. If not, it stays shut until the spool is opened anew.
    ///
    /// Default = true.
    pub allow_unlatch: bool,

    /// How often the signals are looked at: "at once" is at the next look.
    ///
    /// Default = 100 ms. Bounds: 10 ms to 10 s. Free space is asked for no less often than each second.
    #[serde(with = "duration")]
    pub sample_interval: Duration,

    /// Other times for single signals.
    ///
    /// Default: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub signals: BTreeMap<HealthSignal, SignalTimes>,
}

/// How long the disk has to be nearly full: two looks at it are more than the moment between a file and its deletion.
const LOW_SPACE_LATCH_AFTER: Duration = Duration::from_millis(500);

impl HealthConfig {
    /// Sets the times of one signal.
    #[must_use]
    pub fn signal(mut self, signal: HealthSignal, times: SignalTimes) -> Self {
        self.signals.insert(signal, times);
        self
    }

    /// How long a signal has to be there before it shuts the gate.
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
