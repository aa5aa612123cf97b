//! Everything that the callers and the threads of one spool share.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tidespool_core::{Closed, SpoolId};

use super::background::balancer::MemoryBalancer;
use super::background::probe::Probe;
use super::background::readers::Readers;
use super::background::relief::Advice;
use super::calls::maintain::UpkeepRuns;
use super::commit::queue::CommitQueue;
use super::hot_settings::HotSettings;
use super::lifecycle::closing::Closing;
use super::protection::Protection;
use super::table::Table;
use crate::Config;
use crate::checkpoint::{
    Ballast, CheckpointError, CheckpointEvents, CheckpointRequests, CheckpointSettings, ManifestError,
    Presence, PresenceEvents, Rebuilding, VerificationRequests,
};
use crate::durable::DiskIndex;
use crate::health::HealthGate;
use crate::journal::{PoolEvents, Segments, needs_own_segment};
use crate::memory::{Allowance, Budget, CleanCache, Held, Risks};
use crate::pressure::{Level, Registration};
use crate::seldom::Seldom;
use crate::stats::{Gauges, Site, Stats, StatsSnapshot};
use crate::storage::{DiskRoom, Loss, Storage, is_no_room};
use crate::timer::Timer;

/// The spool.
pub(crate) struct Shared {
    /// As they are now: whoever needs several that belong together loads them once.
    pub(crate) config: ArcSwap<Config>,
    /// The path that `open` was given. The one in the settings is whole and has no symlinks.
    pub(crate) opened_as: PathBuf,
    pub(crate) hot_settings: HotSettings,
    pub(crate) checkpoint_settings: Arc<ArcSwap<CheckpointSettings>>,
    /// Held while the settings change.
    pub(crate) reconfiguring: Mutex<()>,
    pub(super) balancer: MemoryBalancer,
    pub(super) advice: Advice,
    pub(super) upkeep: UpkeepRuns,
    pub(crate) table: Arc<Table>,
    pub(crate) cache: CleanCache,
    pub(crate) budget: Arc<Budget>,
    pub(crate) commit_queue: Arc<CommitQueue>,
    /// Deadlines of callers.
    pub(crate) timer: Timer,
    pub(crate) segments: Arc<Segments>,
    pub(crate) durable: Arc<DiskIndex>,
    pub(crate) checkpoint_requests: Arc<CheckpointRequests>,
    pub(crate) rebuilding: Arc<Rebuilding>,
    pub(crate) verification: Arc<VerificationRequests>,
    pub(crate) ballast: Arc<Ballast>,
    pub(crate) presence: Arc<Presence>,
    pub(crate) protection: Arc<Protection>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) gate: HealthGate,
    pub(crate) probe: Probe,
    /// For the probe.
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) readers: Readers,
    pub(crate) monitor: OnceLock<Registration>,
    pub(crate) closing: Closing,
    /// Some thread panicked.
    pub(crate) worker_dead: Arc<AtomicBool>,
    /// What the monitor said last.
    pub(crate) pressure_level: Mutex<Level>,
    closed: AtomicBool,
    /// Records with a lower number were there when the spool was opened.
    pub(crate) first_seq: u64,
    started: Instant,
    /// When the oldest version came in that the committer has in hand: nanoseconds since `started`, plus 1; 0 is none.
    oldest_in_hand: AtomicU64,
}

/// The parts of [`Shared`] that are made before it.
pub(crate) struct SharedParts {
    pub(crate) config: Config,
    pub(crate) opened_as: PathBuf,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) table: Arc<Table>,
    pub(crate) commit_queue: Arc<CommitQueue>,
    pub(crate) segments: Arc<Segments>,
    pub(crate) durable: Arc<DiskIndex>,
    pub(crate) checkpoint_requests: Arc<CheckpointRequests>,
    pub(crate) rebuilding: Arc<Rebuilding>,
    pub(crate) ballast: Arc<Ballast>,
    pub(crate) presence: Arc<Presence>,
    pub(crate) protection: Arc<Protection>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) readers: Readers,
    /// Bytes of the crash log that will be in force.
    pub(crate) crash_log_size: u64,
    /// The number of the first record that is written from now on.
    pub(crate) first_seq: u64,
    pub(crate) worker_dead: Arc<AtomicBool>,
    pub(crate) checkpoint_settings: Arc<ArcSwap<CheckpointSettings>>,
}

impl Shared {
    pub(crate) fn new(parts: SharedParts) -> Self {
        let config = parts.config;
        let allowance = Allowance::new(config.memory_budget);
        let held = Held { crash_log_size: parts.crash_log_size, ..Held::default() };
        let shares = allowance.shares(config.effective_dirty_limit(), held);
        Self {
            cache: CleanCache::new(shares.cache, config.cache_policy == crate::CachePolicy::Lru),
            budget: Arc::new(Budget::new(shares.dirty_limit)),
            opened_as: parts.opened_as,
            hot_settings: HotSettings::of(&config),
            balancer: MemoryBalancer::new(config.memory_budget),
            advice: Advice::default(),
            upkeep: UpkeepRuns::default(),
            checkpoint_settings: parts.checkpoint_settings,
            reconfiguring: Mutex::new(()),
            table: parts.table,
            commit_queue: parts.commit_queue,
            timer: Timer::default(),
            segments: parts.segments,
            durable: parts.durable,
            checkpoint_requests: parts.checkpoint_requests,
            rebuilding: parts.rebuilding,
            verification: Arc::default(),
            ballast: parts.ballast,
            presence: parts.presence,
            protection: parts.protection,
            stats: parts.stats,
            gate: HealthGate::default(),
            probe: Probe::default(),
            storage: parts.storage,
            readers: parts.readers,
            monitor: OnceLock::new(),
            closing: Closing::new(),
            worker_dead: parts.worker_dead,
            pressure_level: Mutex::default(),
            closed: AtomicBool::new(false),
            first_seq: parts.first_seq,
            started: Instant::now(),
            oldest_in_hand: AtomicU64::new(0),
            config: ArcSwap::from_pointee(config),
        }
    }

    pub(crate) fn check_open(&self) -> Result<(), Closed> {
        if self.closed.load(Ordering::Acquire) { Err(Closed) } else { Ok(()) }
    }

    /// What a caller gets for `error`. If the spool is closed, the root cause is [`Closed`]: the
    /// error is most likely a consequence of that.
    pub(super) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        match self.check_open() {
            Ok(()) => error,
            Err(_) if error.root_cause().is::<Closed>() => error,
            Err(closed) => anyhow::Error::new(closed).context(format!("{error:#}")),
        }
    }

    /// From here on nothing new comes in. Whatever was acknowledged before is in the table or in the mailbox when this returns.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.gate.close();
        // Whoever looked before this holds a shard's lock until what it brings is in.
        self.table.shards().for_each(drop);
        // Whoever changes the settings may be deleting files that the next owner of the directory would use.
        drop(self.reconfiguring.lock());
    }

    pub(crate) fn note_oldest_dirty(&self, at: Option<Instant>) {
        let nanos = at.map_or(0, |at| at.saturating_duration_since(self.started).as_nanos() + 1);
        self.oldest_in_hand.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// So much is dirty that the timer can't be waited for. Stores are not held back yet: that begins at three quarters.
    pub(crate) fn is_flush_urgent(&self) -> bool {
        self.budget.dirty() > self.budget.limit() / 8 * 5
    }

    /// More is dirty than may be.
    pub(crate) fn is_over_limit(&self) -> bool {
        self.budget.dirty() > self.budget.limit()
    }

    /// The age of the oldest version that is not durable.
    pub(crate) fn oldest_dirty_age(&self) -> Duration {
        let in_hand = match self.oldest_in_hand.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(self.started + Duration::from_nanos(nanos - 1)),
        };
        let oldest = [in_hand, self.commit_queue.oldest_arrival(), self.table.oldest_dirty()];
        let oldest = oldest.into_iter().flatten().min();
        oldest.map_or(Duration::ZERO, |oldest| oldest.elapsed())
    }

    /// True if a message of `len` bytes is larger than a segment: it gets one of its own.
    pub(crate) fn needs_own_segment(&self, len: u64) -> bool {
        needs_own_segment(len, self.segments.pool().segment_size())
    }

    /// An error of the disk, for those who count.
    pub(crate) fn disk_error(&self, site: Site, error: &io::Error) {
        self.stats.disk_error(site);
        self.ballast.room().note(error);
        tracing::error!(?site, %error, "disk error");
    }

    /// A message's bytes were found to be damaged.
    pub(crate) fn found_damage(&self, id: &SpoolId, what: &str) {
        if self.stats.found_damage(id, what) {
            tracing::error!(%id, what, "a message is damaged");
        }
    }

    /// Memory that counts against the budget, in bytes: clean copies as of the keeper's last look.
    pub(crate) fn accounted_bytes(&self) -> u64 {
        let held = self.held();
        self.budget.dirty() + self.cache.bytes() + held.all()
    }

    /// The part of it that can't be dropped.
    pub(crate) fn held(&self) -> Held {
        let (crash_log, crash_log_size) = self.protection.bytes();
        Held {
            index: self.index_size().1,
            sled: self.durable.memory_bytes(),
            journal: self.segments.buffer_bytes(),
            crash_log,
            crash_log_size,
        }
    }

    /// Entries of the index, and the bytes they take.
    fn index_size(&self) -> (u64, u64) {
        let sizes = self.table.shards().map(|shard| (shard.index.len() as u64, shard.index.bytes()));
        sizes.fold((0, 0), |(entries, bytes), (more, size)| (entries + more, bytes + size))
    }

    pub(crate) fn snapshot(&self) -> StatsSnapshot {
        let (index_entries, index_bytes) = self.index_size();
        let all = self.segments.all();
        let in_use = all.iter().filter(|segment| segment.is_counted()).count() as u64;
        let free = self.segments.pool().free() as u64;
        let pressure = self.monitor.get().and_then(Registration::latest);
        let rebuilding = self.rebuilding.progress();
        let (crash_log_bytes, crash_log_disk_bytes) = self.protection.bytes();
        let Risks { power, process } = self.table.risks();
        let gauges = Gauges {
            dirty_bytes: self.budget.dirty(),
            at_risk_bytes: power.bytes,
            at_risk_removals: power.removals,
            process_risk_bytes: process.bytes,
            process_risk_removals: process.removals,
            crash_log_bytes,
            crash_log_disk_bytes,
            dirty_limit: self.budget.limit(),
            dirty_entries: self.table.shards().map(|shard| shard.pending.len() as u64).sum(),
            oldest_dirty_age: self.oldest_dirty_age(),
            accounted_bytes: self.accounted_bytes(),
            cache_bytes: self.cache.bytes(),
            cache_entries: self.cache.entries(),
            cache_capacity: self.cache.capacity(),
            index_entries,
            index_bytes,
            sled_bytes: self.durable.memory_bytes(),
            journal_buffer_bytes: self.segments.buffer_bytes(),
            memory_budget: self.config.load().memory_budget,
            memory_allowed: self.balancer.allowed(),
            resident_bytes: pressure.and_then(|now| now.resident).unwrap_or(0),
            pressure_used: pressure.map_or(0, |now| now.used),
            pressure_limit: pressure.map_or(0, |now| now.limit),
            pressure_source: pressure.map(|now| now.source),
            pressure_level: *self.pressure_level.lock(),
            memory_stall_ratio: pressure.and_then(|now| now.stall_ratio),
            sled_disk_bytes: self.durable.size_on_disk(),
            index_rebuild_indexed: rebuilding.map(|(done, _)| done),
            index_rebuild_messages: rebuilding.map(|(_, total)| total),
            journal_bytes: all.iter().map(|segment| segment.size).sum::<u64>()
                + free * self.segments.pool().segment_size(),
            journal_capacity: self.segments.pool().capacity() as u64 * self.segments.pool().segment_size(),
            journal_segments_free: free,
            journal_segments_in_use: in_use,
            journal_segments_retained: all.len() as u64 - in_use,
            unhealthy: self.gate.cause(),
            shut_down: self.gate.is_closed(),
            live_messages: None,
        };
        self.stats.snapshot(gauges)
    }
}

/// What the checkpoint reports.
pub(crate) struct CheckpointReports {
    pub(crate) stats: Arc<Stats>,
    pub(crate) commit_queue: Arc<CommitQueue>,
    pub(crate) room: Arc<DiskRoom>,
}

impl CheckpointEvents for CheckpointReports {
    fn filed(&self, records: u64, segments: u64, took: Duration) {
        self.stats.checkpoint(records, segments, took);
    }

    fn recycled(&self) {
        self.stats.segment_recycled();
    }

    fn wants_seal(&self) {
        // Nobody waits for it: the checkpoint is told when the segment is settled.
        drop(self.commit_queue.flush(true));
    }

    fn rewritten(&self, bytes: u64) {
        self.stats.segment_rewritten(bytes);
    }

    fn failed(&self, error: &CheckpointError) {
        let site = match error {
            // A lost directory is logged when it is noticed.
            CheckpointError::Stopped | CheckpointError::Away(_) | CheckpointError::Rebuilding => return,
            // No fault of the disk: the gate looks at free space.
            CheckpointError::NoRoom { .. } | CheckpointError::FileLimit { .. } => {
                return tracing::warn!(%error, "a checkpoint waits");
            }
            CheckpointError::Engine(_) => Site::Sled,
            CheckpointError::Manifest(_)
            | CheckpointError::Liveness(_)
            | CheckpointError::Rewrite(_)
            | CheckpointError::Restore(_) => Site::Manifest,
            CheckpointError::Segment(_) => Site::JournalRead,
        };
        match error {
            CheckpointError::Manifest(ManifestError::Io { source, .. })
            | CheckpointError::Rewrite(source)
            | CheckpointError::Restore(source) => self.room.note(source),
            error if error.is_full_disk() => self.room.note_no_room(),
            _ => {}
        }
        self.stats.disk_error(site);
        tracing::error!(%error, "filing or verifying what is filed failed: filing will be tried again");
    }

    fn found_damage(&self, id: &SpoolId, what: &str) {
        if self.stats.found_damage(id, what) {
            tracing::error!(%id, what, "a message is damaged");
        }
    }

    fn rebuilt(&self, _messages: u64, _took: Duration) {
        self.stats.rebuilt_index();
    }

    fn found_loss(&self, messages: u64, what: &str) {
        self.stats.corrupt();
        self.stats.lost(messages);
        tracing::error!(what, "found damage");
    }
}

impl PresenceEvents for CheckpointReports {
    fn lost_file(&self, path: &Path, loss: Loss) {
        self.stats.lost_file();
        tracing::error!(path = %path.display(), %loss, "a file of the spool is lost");
    }

    fn found_file(&self, path: &Path) {
        tracing::info!(path = %path.display(), "a file of the spool that was lost is whole again, or not needed any more");
    }
}

/// What the pool of segments reports.
pub(crate) struct PoolReports {
    commit_queue: Arc<CommitQueue>,
    stats: Arc<Stats>,
    room: Arc<DiskRoom>,
    checkpoint_requests: Arc<CheckpointRequests>,
    /// Of the warning about a segment that could not be prepared.
    unprepared: Seldom,
}

impl PoolReports {
    pub(super) fn new(
        commit_queue: Arc<CommitQueue>,
        stats: Arc<Stats>,
        room: Arc<DiskRoom>,
        checkpoint_requests: Arc<CheckpointRequests>,
    ) -> Self {
        Self { commit_queue, stats, room, checkpoint_requests, unprepared: Seldom::default() }
    }
}

impl PoolEvents for PoolReports {
    fn segment_free(&self) {
        self.commit_queue.room_came();
    }

    fn leaves_enough(&self, size: u64) -> bool {
        self.room.leaves_enough(size)
    }

    fn prewrite_failed(&self, error: &io::Error) {
        self.room.note(error);
        // A full disk is no fault of the disk: the gate looks at free space, and at free segments.
        if !is_no_room(error) {
            self.stats.disk_error(Site::JournalWrite);
        } else {
            // What is dead is to give its room back now.
            self.checkpoint_requests.kick();
        }
        if let Some(left_out) = self.unprepared.is_time() {
            tracing::warn!(%error, left_out, "a journal segment could not be prepared");
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::storage::{OpenMode, OsStorage, Space, StorageFile};

    /// Shows room, and has none.
    #[derive(Debug)]
    struct UsedUp;

    impl Storage for UsedUp {
        fn create_dir(&self, path: &Path) -> io::Result<()> {
            OsStorage.create_dir(path)
        }
        fn open(&self, _path: &Path, _mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
            Err(Errno::DQUOT.into())
        }
        fn list(&self, path: &Path) -> io::Result<Vec<String>> {
            OsStorage.list(path)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            OsStorage.rename(from, to)
        }
        fn remove_file(&self, path: &Path) -> io::Result<()> {
            OsStorage.remove_file(path)
        }
        fn space(&self, _path: &Path) -> io::Result<Space> {
            Ok(Space { free_bytes: 1 << 40, total_bytes: 1 << 41, ..Space::default() })
        }
        fn sync_dir(&self, path: &Path) -> io::Result<()> {
            OsStorage.sync_dir(path)
        }
    }

    /// A segment that was not made, to leave room to others, was taken for a quota: the gate shut on a disk with
    /// more than its minimum of free space.
    #[test]
    fn room_that_the_spool_itself_leaves_to_others_is_no_quota() {
        let dir = tempfile::tempdir().unwrap();
        let reports = || CheckpointReports {
            stats: Arc::default(),
            commit_queue: Arc::default(),
            room: Arc::new(DiskRoom::new(Arc::new(UsedUp), dir.path(), 1 << 20)),
        };
        let own = || io::Error::new(io::ErrorKind::StorageFull, "it would leave too little to others");
        let systems = || io::Error::from(Errno::DQUOT);
        for (is_known, source) in [(false, own as fn() -> io::Error), (true, systems)] {
            for error in [CheckpointError::Rewrite(source()), CheckpointError::Restore(source())] {
                let reports = reports();
                reports.failed(&error);
                assert_eq!(reports.room.is_still_used_up(), is_known, "{error}");
            }
        }
    }
}
