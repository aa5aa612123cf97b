use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::setters::setters;
use super::{MinFree, duration};

/// A condition that can close the health gate, the worst first.
///
/// A failure for want of disk space is reported as `LowSpace`, which is before the error signals.
/// The names in the metrics are these in snake case. Each is *hard* or a *backlog*: see
/// [`HealthConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
#[non_exhaustive]
pub enum HealthSignal {
    /// A background thread has died. It is not restarted: open the spool anew.
    DeadWorker,
    /// Many messages were found damaged or lost: [`damage`](HealthConfig::damage).
    Damage,
    /// Something else deleted, moved, replaced or truncated files of the spool. The spool writes
    /// them anew. The gate stays closed until all of them exist again.
    LostFiles,
    /// The file system is nearly full, or nearly out of inodes:
    /// [`min_free`](HealthConfig::min_free).
    LowSpace,
    /// A write or a sync of the journal failed.
    JournalErrors,
    /// sled or the manifest failed: [`disk_errors`](HealthConfig::disk_errors).
    SledErrors,
    /// Reading messages from disk failed: [`disk_errors`](HealthConfig::disk_errors).
    ReadErrors,
    /// A checkpoint makes no progress: [`checkpoint_stall`](HealthConfig::checkpoint_stall).
    StalledCheckpoint,
    /// Backlog: no segment of the journal is free, and none can be made.
    NoFreeSegment,
    /// Backlog: at least 98 % of [`dirty_limit`](crate::Config::dirty_limit) are dirty, and the
    /// oldest bytes for longer than [`dirty_expire`](crate::Config::dirty_expire).
    DirtyBytes,
    /// Backlog: a message has been dirty for too long: [`dirty_age`](HealthConfig::dirty_age).
    DirtyAge,
}

/// What is wrong with a spool: the class of the worst [`HealthSignal`], or memory pressure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HealthCause {
    /// A disk error, damage, a lost file, a stalled checkpoint or a dead thread. Stores are
    /// refused.
    Broken,
    /// The file system is nearly full. Stores are refused. Removals work, and free space.
    Space,
    /// Data arrives faster than the disk accepts it. Stores are refused as
    /// [`backlog_refusal`](HealthConfig::backlog_refusal) says.
    Backlog,
    /// The memory-pressure level is critical, and nothing else is wrong. No store is refused: each
    /// waits for room in the smaller dirty limit.
    Pressure,
    /// The spool is shut down. Not a value of
    /// [`reported_causes`](HealthConfig::reported_causes): a shutdown is always reported.
    #[serde(skip)]
    ShutDown,
}

/// Which stores are refused while a backlog is the only signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BacklogRefusal {
    /// All stores.
    #[default]
    All,
    /// Stores that wait for the disk: with `force_sync`, with the durability `synced`, or of a
    /// message larger than a segment. The other stores wait for room until their deadlines, as they
    /// do while the gate is open.
    Synced,
}

/// When the spool is unhealthy and refuses new messages: the `[health]` table.
///
/// Loads and removals continue meanwhile. The three backlog signals ([`NoFreeSegment`],
/// [`DirtyBytes`], [`DirtyAge`]) mean that the disk does not keep up. All others are hard:
/// something is broken, or the disk is full. Both classes have a time for which a signal has to
/// last, and a time for which it has to be gone.
///
/// [`NoFreeSegment`]: HealthSignal::NoFreeSegment
/// [`DirtyBytes`]: HealthSignal::DirtyBytes
/// [`DirtyAge`]: HealthSignal::DirtyAge
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HealthConfig {
    /// Backlog: the age of the oldest dirty message at which the signal begins.
    ///
    /// Default = 10 × `dirty_expire`. Bounds: `dirty_expire` to 1 day.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub dirty_age: Option<Duration>,

    /// Which stores are refused while a backlog (dirty bytes, dirty age, no free segment) is the
    /// only signal. `synced`: those that wait for the disk.
    ///
    /// Default = `all`. Bounds: `all` or `synced`.
    pub backlog_refusal: BacklogRefusal,

    /// The causes for which `unhealthy_reason` returns a reason. It returns `None` for a cause that
    /// is not listed, although stores are refused: see [`HealthCause`].
    /// [`health_cause`](crate::TieredSpool::health_cause) returns all causes. For a server that
    /// also stops deliveries while there is a reason: deliveries end a lack of space and a backlog.
    ///
    /// Default = `broken`, `space`, `backlog`. Bounds: any of `broken`, `space`, `backlog`,
    /// `pressure`.
    pub reported_causes: Vec<HealthCause>,

    /// How long a backlog (dirty bytes, dirty age, no free segment) has to last before the gate
    /// closes. During a shorter burst, stores wait instead.
    ///
    /// Default = 2 s. Bounds: 0 to 1 hour; 0 closes the gate at the next sample.
    #[serde(with = "duration")]
    pub backlog_latch_after: Duration,

    /// How long every signal has to be gone before a gate that only a backlog closed may open
    /// again: see [`hard_unlatch_after`](Self::hard_unlatch_after).
    ///
    /// Default = 5 s. Bounds: 0 to 1 year.
    #[serde(with = "duration")]
    pub backlog_unlatch_after: Duration,

    /// How long a hard signal has to last before the gate closes. A disk that is nearly full has to
    /// be so for at least 500 ms, so that a file that is deleted at once does not close the gate.
    ///
    /// Default = 0, which closes the gate at the next sample. Bounds: 0 to 1 hour.
    #[serde(with = "duration")]
    pub hard_latch_after: Duration,

    /// How long every signal has to be gone before a gate that a hard signal closed may open again.
    /// Before it opens, a small file must be written, synced and read back.
    ///
    /// If both a hard signal and a backlog closed the gate, the longer time applies. If the gate
    /// closes again soon after it opened, the next wait is twice as long, up to 16 times. With
    /// one year, the gate stays closed until the spool is opened anew.
    ///
    /// Default = 5 s. Bounds: 0 to 1 year.
    #[serde(with = "duration")]
    pub hard_unlatch_after: Duration,

    /// How long a checkpoint may make no progress because it hangs, or fails again and again.
    ///
    /// Default = 60 s. Bounds: 1 s to 1 day.
    #[serde(with = "duration")]
    pub checkpoint_stall: Duration,

    /// This many errors of sled and the manifest within a minute close the gate, and so do this
    /// many failed reads of messages. A failed write or sync of the journal closes it alone.
    ///
    /// Default = 3. Bounds: 1 to 1 000.
    pub disk_errors: u32,

    /// This many damaged or lost messages found within a minute, including those found at open,
    /// close the gate. A message that is found damaged again does not count again.
    ///
    /// A few damaged old messages are reported and do not stop the mail, because they prove little
    /// about new writes. Many at a time mean that the disk, or the memory, is losing data.
    ///
    /// Default = 10. Bounds: 1 to 1 000.
    pub damage: u32,

    /// Free space under which the gate closes: bytes, or a percentage of the file system. The gate
    /// also closes while fewer than 1 000 inodes, and fewer than 5 % of them, are free.
    ///
    /// Default = the smaller of 256 MiB and 5 % of the file system. Bounds: 0 to 1 TiB, or 0 % to
    /// 50 %; 0 switches the checks of space and inodes off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_free: Option<MinFree>,

    /// How often the signals are sampled. Free space is checked at least once a second.
    ///
    /// Default = 100 ms. Bounds: 10 ms to 10 s.
    #[serde(with = "duration")]
    pub sample_interval: Duration,
}

/// How long the disk has to be nearly full. Two samples of free space fall into this time.
const LOW_SPACE_LATCH_AFTER: Duration = Duration::from_millis(500);

impl HealthConfig {
    /// How long a signal has to last before it closes the gate.
    pub(crate) fn latch_after(&self, signal: HealthSignal) -> Duration {
        match signal {
            HealthSignal::LowSpace => self.hard_latch_after.max(LOW_SPACE_LATCH_AFTER),
            signal if signal.is_backlog() => self.backlog_latch_after,
            _ => self.hard_latch_after,
        }
    }

    /// How long a signal has to be gone before the gate may open.
    pub(crate) fn unlatch_after(&self, signal: HealthSignal) -> Duration {
        if signal.is_backlog() { self.backlog_unlatch_after } else { self.hard_unlatch_after }
    }
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            dirty_age: None,
            backlog_refusal: BacklogRefusal::default(),
            reported_causes: vec![HealthCause::Broken, HealthCause::Space, HealthCause::Backlog],
            backlog_latch_after: Duration::from_secs(2),
            backlog_unlatch_after: Duration::from_secs(5),
            hard_latch_after: Duration::ZERO,
            hard_unlatch_after: Duration::from_secs(5),
            checkpoint_stall: Duration::from_secs(60),
            disk_errors: 3,
            damage: 10,
            min_free: None,
            sample_interval: Duration::from_millis(100),
        }
    }
}

/// `setters!` takes a type of one word.
type Causes = Vec<HealthCause>;

setters! { HealthConfig {
    dirty_age: some Duration,
    backlog_refusal: BacklogRefusal,
    reported_causes: Causes,
    backlog_latch_after: Duration,
    backlog_unlatch_after: Duration,
    hard_latch_after: Duration,
    hard_unlatch_after: Duration,
    checkpoint_stall: Duration,
    disk_errors: u32,
    damage: u32,
    min_free: some MinFree,
    sample_interval: Duration,
}}
