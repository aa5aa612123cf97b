//! Everything that the callers and the threads of one spool share.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tidespool_core::Closed;
use tidespool_pressure::{Level, Registration};

use super::balancer::MemoryBalancer;
use super::closing::Closing;
use super::commit_queue::CommitQueue;
use super::home::SpoolHome;
use super::probe::Probe;
use super::protection::Protection;
use super::readers::Readers;
use super::reports::Reports;
use super::runs::Runs;
use super::spools::{SpoolPart, Spools};
use super::table::{Table, TableSize};
use super::upkeep::UpkeepRuns;
use crate::Config;
use crate::checkpoint::{
    Ballast, CheckpointRequests, CheckpointSettings, Presence, Rebuilding, VerificationRequests,
};
use crate::directory::SpoolNames;
use crate::health::HealthGate;
use crate::index::DiskIndex;
use crate::journal::{Segments, needs_own_segment};
use crate::memory::{Allowance, Budget, CacheWeights, CleanCache, Held, Risks, YoungRoom};
use crate::message_id::MessageId;
use crate::stats::{Gauges, Site, Stats, StatsSnapshot};
use crate::storage::Storage;
use crate::timer::Timer;

/// The state of one open spool.
pub(crate) struct Shared {
    /// The current settings. Load them once to read several consistent values.
    pub(crate) config: ArcSwap<Config>,
    /// The path that was passed to `open`. The path in the settings is canonical.
    pub(crate) opened_as: PathBuf,
    pub(in crate::tiered) spools: Spools,
    pub(in crate::tiered) home: Arc<SpoolHome>,
    pub(crate) checkpoint_settings: Arc<ArcSwap<CheckpointSettings>>,
    /// Held while the settings or the spools change.
    pub(crate) reconfiguring: Mutex<()>,
    pub(in crate::tiered) balancer: MemoryBalancer,
    /// The runs of `advise_low_memory`, shared by its callers.
    pub(in crate::tiered) advice: Runs<Result<isize, Closed>>,
    pub(in crate::tiered) upkeep: UpkeepRuns,
    pub(crate) table: Arc<Table>,
    pub(crate) cache: CleanCache,
    pub(crate) budget: Arc<Budget>,
    pub(crate) commit_queue: Arc<CommitQueue>,
    /// Enforces the callers' deadlines.
    pub(crate) timer: Arc<Timer>,
    pub(crate) segments: Arc<Segments>,
    pub(crate) disk_index: Arc<DiskIndex>,
    pub(crate) checkpoint_requests: Arc<CheckpointRequests>,
    pub(crate) rebuilding: Arc<Rebuilding>,
    pub(crate) verification: Arc<VerificationRequests>,
    pub(crate) ballast: Arc<Ballast>,
    pub(crate) presence: Arc<Presence>,
    pub(crate) protection: Arc<Protection>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) gate: HealthGate,
    pub(crate) probe: Probe,
    /// Used by the disk probe and to query free space.
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) readers: Readers,
    pub(crate) monitor: OnceLock<Registration>,
    pub(crate) closing: Closing,
    /// Set when a thread of the spool has panicked.
    pub(crate) worker_dead: Arc<AtomicBool>,
    /// The level that the monitor reported last.
    pub(crate) pressure_level: Mutex<Level>,
    closed: AtomicBool,
    /// Records with a lower number were in the spool before this opening.
    pub(crate) first_seq: u64,
    started: Instant,
    /// When the oldest version was stored that the committer has taken and not made durable, in
    /// nanoseconds since `started`, plus 1. 0: none.
    oldest_in_hand: AtomicU64,
}

/// The parts of [`Shared`] that are created before it.
pub(crate) struct SharedParts {
    pub(crate) config: Config,
    pub(crate) opened_as: PathBuf,
    pub(crate) names: SpoolNames,
    pub(in crate::tiered) home: Arc<SpoolHome>,
    pub(crate) storage: Arc<dyn Storage>,
    pub(in crate::tiered) reports: Arc<Reports>,
    pub(crate) segments: Arc<Segments>,
    pub(crate) disk_index: Arc<DiskIndex>,
    pub(crate) ballast: Arc<Ballast>,
    pub(crate) presence: Arc<Presence>,
    pub(crate) protection: Arc<Protection>,
    /// Size in bytes of the crash log that will be used.
    pub(crate) crash_log_size: u64,
    /// The number of the first record that this run writes.
    pub(crate) first_seq: u64,
    pub(crate) worker_dead: Arc<AtomicBool>,
}

impl Shared {
    pub(crate) fn new(parts: SharedParts) -> Self {
        let config = parts.config;
        let allowance = Allowance::new(config.memory_budget);
        let held = Held { crash_log_size: parts.crash_log_size, ..Held::default() };
        let shares = allowance.shares(config.effective_dirty_limit(), held);
        let checkpoint_settings = CheckpointSettings { checkpoint_after: config.checkpoint_after };
        let spools = Spools::new(&parts.names, &config);
        let (table, young) = (Table::new(), YoungRoom::part_of(shares.cache));
        let cache = CleanCache::new(shares.cache - young, cache_weights(&spools, &config));
        table.young_room().set_limit(young);
        table.weigh_young(&cache.weights());
        Self {
            cache,
            budget: Arc::new(Budget::new(shares.dirty_limit)),
            opened_as: parts.opened_as,
            spools,
            home: parts.home,
            balancer: MemoryBalancer::new(config.memory_budget),
            advice: Runs::default(),
            upkeep: UpkeepRuns::default(),
            checkpoint_settings: Arc::new(ArcSwap::from_pointee(checkpoint_settings)),
            reconfiguring: Mutex::new(()),
            table: Arc::new(table),
            commit_queue: parts.reports.commit_queue.clone(),
            timer: Arc::default(),
            segments: parts.segments,
            disk_index: parts.disk_index,
            checkpoint_requests: parts.reports.checkpoint_requests.clone(),
            rebuilding: Arc::default(),
            verification: Arc::default(),
            ballast: parts.ballast,
            presence: parts.presence,
            protection: parts.protection,
            stats: parts.reports.stats.clone(),
            gate: HealthGate::new(&config.health.reported_causes),
            probe: Probe::default(),
            storage: parts.storage,
            readers: Readers::new(parts.worker_dead.clone()),
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

    /// Converts `error` for the caller. If the spool is closed, the root cause becomes [`Closed`]:
    /// the error is most likely a consequence of the shutdown.
    pub(in crate::tiered) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        match self.check_open() {
            Ok(()) => error,
            Err(_) if error.root_cause().is::<Closed>() => error,
            Err(closed) => anyhow::Error::new(closed).context(format!("{error:#}")),
        }
    }

    /// Rejects all later calls. When this returns, everything that was acknowledged before is in
    /// the table or in the commit queue.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.spools.close_all();
        self.gate.close();
        // A call that saw the spool open holds its shard's lock until its change is inserted.
        self.table.shards().for_each(drop);
        // A `reconfigure` that runs now may delete files that the next owner of the directory would
        // use. A spool that is being made is closed, too.
        drop(self.reconfiguring.lock());
        self.spools.close_all();
    }

    /// Applies the weights of the spools from the balancer's next turn on. Call it after a change
    /// of the settings or of the spools.
    pub(in crate::tiered) fn set_cache_weights(&self) {
        self.cache.set_weights(cache_weights(&self.spools, &self.config.load()));
    }

    pub(crate) fn note_oldest_dirty(&self, at: Option<Instant>) {
        let nanos = at.map_or(0, |at| at.saturating_duration_since(self.started).as_nanos() + 1);
        self.oldest_in_hand.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// True if more than five eighths of the limit are dirty: the committer must not wait for its
    /// flush timer. Stores are throttled from three quarters on.
    pub(crate) fn is_flush_urgent(&self) -> bool {
        self.budget.dirty() > self.budget.limit() / 8 * 5
    }

    /// True if the dirty bytes exceed the limit.
    pub(crate) fn is_over_limit(&self) -> bool {
        self.budget.dirty() > self.budget.limit()
    }

    /// Returns the age of the oldest version that is not durable.
    pub(crate) fn oldest_dirty_age(&self) -> Duration {
        let in_hand = match self.oldest_in_hand.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(self.started + Duration::from_nanos(nanos - 1)),
        };
        let oldest = [in_hand, self.commit_queue.oldest_arrival(), self.table.oldest_dirty()];
        let oldest = oldest.into_iter().flatten().min();
        oldest.map_or(Duration::ZERO, |oldest| oldest.elapsed())
    }

    /// True if a message of `len` bytes is larger than a segment and gets a segment of its own.
    pub(crate) fn needs_own_segment(&self, len: u64) -> bool {
        needs_own_segment(len, self.segments.pool().segment_size())
    }

    /// Counts and logs a disk error.
    pub(crate) fn disk_error(&self, site: Site, error: &io::Error) {
        self.stats.disk_error(site);
        self.ballast.room().note(error);
        tracing::error!(?site, %error, "disk error");
    }

    /// Counts and logs a damaged message.
    pub(crate) fn found_damage(&self, message: &MessageId, what: &str) {
        if self.stats.found_damage(message, what) {
            let (spool, id) = (self.spools.name_of(message.spool()), message.id());
            tracing::error!(spool, %id, what, "a message is damaged");
        }
    }

    /// Memory that counts against the budget, in bytes. The size of the clean copies is as of the
    /// memory balancer's last turn.
    pub(crate) fn accounted_bytes(&self) -> u64 {
        let size = self.table.size();
        self.budget.dirty() + size.young.bytes + self.cache.size().bytes + self.held_beside(size).all()
    }

    /// The part of [`accounted_bytes`](Self::accounted_bytes) that neither dirty messages nor clean
    /// copies take.
    pub(crate) fn held(&self) -> Held {
        self.held_beside(self.table.size())
    }

    fn held_beside(&self, size: TableSize) -> Held {
        let (crash_log, crash_log_size) = self.protection.bytes();
        Held {
            index: size.index_bytes,
            sled: self.disk_index.memory_bytes(),
            journal: self.segments.buffer_bytes(),
            crash_log,
            crash_log_size,
        }
    }

    /// The statistics of `spools`, and those of the store.
    pub(crate) fn snapshot(&self, spools: &[Arc<SpoolPart>]) -> StatsSnapshot {
        let spools = spools.iter().map(|spool| (&*spool.name, &spool.stats));
        StatsSnapshot::of(spools, &self.stats, self.gauges())
    }

    fn gauges(&self) -> Gauges {
        let size = self.table.size();
        let clean = size.young + self.cache.size();
        let all = self.segments.all();
        let in_use = all.iter().filter(|segment| segment.is_counted()).count() as u64;
        let free = self.segments.pool().free() as u64;
        let pressure = self.monitor.get().and_then(Registration::latest);
        let rebuilding = self.rebuilding.progress();
        let (crash_log_bytes, crash_log_disk_bytes) = self.protection.bytes();
        let Risks { power, process } = self.table.risks();
        Gauges {
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
            cache_bytes: clean.bytes,
            cache_entries: clean.entries,
            cache_capacity: self.clean_capacity(),
            young_bytes: size.young.bytes,
            young_entries: size.young.entries,
            young_capacity: self.table.young_room().limit(),
            index_entries: size.index_entries,
            index_bytes: size.index_bytes,
            sled_bytes: self.disk_index.memory_bytes(),
            journal_buffer_bytes: self.segments.buffer_bytes(),
            memory_budget: self.config.load().memory_budget,
            memory_allowed: self.balancer.allowed(),
            resident_bytes: pressure.and_then(|now| now.resident).unwrap_or(0),
            pressure_used: pressure.map_or(0, |now| now.used),
            pressure_limit: pressure.map_or(0, |now| now.limit),
            pressure_source: pressure.map(|now| now.source),
            pressure_level: *self.pressure_level.lock(),
            memory_stall_ratio: pressure.and_then(|now| now.stall_ratio),
            sled_disk_bytes: self.disk_index.size_on_disk(),
            index_rebuild_indexed: rebuilding.map(|(done, _)| done),
            index_rebuild_messages: rebuilding.map(|(_, total)| total),
            journal_bytes: all.iter().map(|segment| segment.size).sum::<u64>()
                + free * self.segments.pool().segment_size(),
            journal_capacity: self.segments.pool().capacity() as u64 * self.segments.pool().segment_size(),
            journal_segments_free: free,
            journal_segments_in_use: in_use,
            journal_segments_retained: all.len() as u64 - in_use,
            unhealthy: self.gate.signal(),
            shut_down: self.gate.is_closed(),
        }
    }
}

fn cache_weights(spools: &Spools, config: &Config) -> CacheWeights {
    CacheWeights::of(spools.all().iter().map(|part| (part.number, config.cache_weight_of(&part.name))))
}
