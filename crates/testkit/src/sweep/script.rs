use std::path::Path;
use std::time::Duration;

use tidespool::{Config, HealthConfig, MinFree, PressureConfig};

use super::Kind;

/// One step of a session. Messages are identified by their numbers in the script.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Store(usize, usize, SyncMode),
    /// This many concurrent synced stores, starting with this number.
    Together(usize, usize),
    Remove(usize),
    /// Makes all dirty data durable.
    Flush,
    /// Checkpoints and verifies all messages, and rewrites retained segments.
    Compact,
    Cleanup,
    /// Loads each message, or checks that it is absent.
    LoadAll,
    Enumerate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SyncMode {
    Forced,
    Lazy,
}

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Shutdown,
    PowerCut,
}

use Step::{Cleanup, Compact, Enumerate, Flush, LoadAll, Remove, Store, Together};
use SyncMode::{Forced, Lazy};

/// Lengths in bytes: a small message, a larger one, one of several that fill a segment, and one
/// that needs its own segment.
const SMALL: usize = 300;
const LARGE: usize = 9_000;
const FILLING: usize = 20_000;
pub(super) const HUGE: usize = 70_000;

/// The number of messages in the scripts.
pub(super) const MESSAGES: usize = 40;

pub(super) const SESSIONS: [(&[Step], End); 3] =
    [(FIRST, End::Shutdown), (SECOND, End::PowerCut), (THIRD, End::Shutdown)];

/// A new spool: commits, a checkpoint, removals, and a second checkpoint that rewrites and recycles
/// segments.
const FIRST: &[Step] = &[
    Store(0, SMALL, Forced),
    Store(1, LARGE, Forced),
    Store(2, SMALL, Lazy),
    Store(3, LARGE, Lazy),
    Together(4, 4),
    Flush,
    Store(1, SMALL, Lazy),
    Store(2, LARGE, Forced),
    Remove(0),
    Flush,
    Store(8, FILLING, Lazy),
    Store(9, FILLING, Lazy),
    Store(10, FILLING, Forced),
    Store(11, FILLING, Lazy),
    Store(12, FILLING, Lazy),
    Store(13, FILLING, Forced),
    Store(14, HUGE, Forced),
    Compact,
    LoadAll,
    Remove(8),
    Remove(9),
    Remove(11),
    Remove(12),
    Remove(4),
    Store(5, SMALL, Forced),
    Store(6, LARGE, Lazy),
    Flush,
    Compact,
    Store(15, SMALL, Forced),
    Store(16, LARGE, Lazy),
    Cleanup,
    Enumerate,
    LoadAll,
    Remove(16),
    Store(17, SMALL, Lazy),
];

/// After a shutdown: checkpointed messages are replaced and removed, then the power fails.
const SECOND: &[Step] = &[
    LoadAll,
    Store(20, SMALL, Forced),
    Store(21, FILLING, Lazy),
    Store(2, SMALL, Forced),
    Remove(13),
    Remove(15),
    Flush,
    Compact,
    Store(22, LARGE, Forced),
    Store(23, FILLING, Forced),
    Remove(20),
    Store(24, SMALL, Lazy),
    Together(25, 3),
];

/// After a power cut.
const THIRD: &[Step] = &[
    Enumerate,
    Store(30, LARGE, Forced),
    Remove(22),
    Store(31, SMALL, Lazy),
    Compact,
    Remove(10),
    Store(32, SMALL, Forced),
    Cleanup,
];

pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// Segments are so small that a few messages fill one. Checkpoints run only on request. The gate
/// stays shut until `hard_unlatch_after` is short, so that the check sees it.
pub(super) fn config(path: &Path, kind: Option<Kind>) -> Config {
    const KIB: u64 = 1024;
    // Longer waits are useless while the disk stays broken.
    let is_sticky = kind.is_some_and(Kind::is_sticky);
    let shutdown_timeout = Duration::from_secs(if is_sticky { 3 } else { 60 });
    let read_wait = if is_sticky { Duration::from_millis(10) } else { Duration::from_secs(30) };
    Config::new(path)
        .memory_budget(32 * KIB * KIB)
        .dirty_limit(4 * KIB * KIB)
        .dirty_expire(Duration::from_millis(200))
        .shutdown_timeout(shutdown_timeout)
        .read_wait(read_wait)
        .max_message_size(256 * KIB)
        .segment_size(64 * KIB)
        .journal_capacity(KIB * KIB)
        .checkpoint_after(HOUR)
        .ballast(64 * KIB)
        .read_threads(2)
        .pressure(PressureConfig::default().enabled(false))
        .health(
            HealthConfig::default()
                .min_free(MinFree::Bytes(0))
                .backlog_latch_after(HOUR)
                .hard_unlatch_after(HOUR)
                .sample_interval(Duration::from_millis(10)),
        )
}
