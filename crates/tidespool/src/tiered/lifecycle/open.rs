//! Opens a spool: lock, recovery, threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use tidespool_pressure::{PressureMonitor, Registration, Relief};

use super::in_place::InPlace;
use super::replay::{CrashLogReplay, explain, explain_replay};
use super::threads::{Starter, names};
use super::workers::{Running, Workers};
use crate::checkpoint::{
    Ballast, CheckpointInbox, Checkpointer, DeadSegments, LiveIndex as _, ManifestFile, OpenedCheckpoint,
    OpeningError, Places, Presence, ReclaimPolicy, Retry, Verifier, Watched, checkpoint_requests,
    open_checkpoint,
};
use crate::damage::Damage;
use crate::directory::{Directory, SpoolNames};
use crate::index::{self, DiskIndex, IndexError};
use crate::journal::{Pool, PoolSettings, Segments, Writer, give_up_a_free_segment};
use crate::stats::Stats;
use crate::storage::{DiskRoom, Storage, is_no_room_kind};
use crate::tiered::background::balancer::keep;
use crate::tiered::background::health::watch;
use crate::tiered::background::probe::run_probe;
use crate::tiered::background::relief::SpoolRelief;
use crate::tiered::commit::{Committer, Syncer};
use crate::tiered::state::{
    CommitReceiver, Protection, Reports, Shared, SharedParts, SpoolHome, commit_queue, keep_free,
};
use crate::{Config, RecoveryReport};

/// An open spool: its shared state, its threads, and the report of the opening.
pub(in crate::tiered) struct OpenSpool {
    pub(in crate::tiered) shared: Arc<Shared>,
    pub(in crate::tiered) workers: Workers,
    pub(in crate::tiered) report: RecoveryReport,
}

/// Opens a spool. Blocks on I/O. Without a `monitor` the spool creates its own.
pub(in crate::tiered) fn open(
    mut config: Config,
    storage: Arc<dyn Storage>,
    monitor: Option<PressureMonitor>,
) -> Result<OpenSpool> {
    config.validate()?;
    index::check_clock(SystemTime::now())?;
    let dead = Arc::new(AtomicBool::new(false));
    let starter = Starter::new(dead.clone());
    starter.reserve(thread_names(&config)).context("starting the spool's threads")?;
    let directory = Arc::new(Directory::open_or_create(&config.path)?);
    let opened_as = std::mem::replace(&mut config.path, directory.path.clone());
    starter.release(names::SPARE);
    let storage: Arc<dyn Storage> = Arc::new(InPlace::new(storage, &directory)?);
    let places = Places { storage: storage.clone(), dir: directory.path.clone(), spool: directory.spool };
    let room = Arc::new(DiskRoom::new(storage.clone(), &directory.path, enough(&config)));
    room.remove_leftover();
    let ballast = Arc::new(Ballast::new(storage.clone(), room.clone(), &directory.path, config.ballast));
    let held = Arc::<Directory>::downgrade(&directory);
    let engine = || index::engine(config.sled_cache(), storage.clone(), held.clone());
    let recover = || {
        let disk_index = DiskIndex::new(&places.index(), engine());
        recover(&config, &places, disk_index, &ballast, &room, &directory)
    };
    let mut files = match recover() {
        // The spool must open on a full disk, so that it can be emptied.
        Err(error) if is_full_disk(&error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "the disk is full: freeing the ballast and spare segments to open the spool"
            );
            room.note_no_room();
            ballast.release();
            // The ballast may have been released before, and its space be used by other files.
            while !ballast.is_room_for(engine().bytes_to_open())
                && give_up_a_free_segment(&*places.storage, &places.journal(), places.spool)?
            {
                room.note_given();
            }
            recover()?
        }
        found => found?,
    };
    directory.finish_creation()?;
    let (spool, dir) = (directory.spool, &*directory.path);
    let protection =
        Arc::new(Protection::new(storage.clone(), dir, spool, files.reports.commit_queue.clone()));
    let mut replay = explain_replay(CrashLogReplay::begin(&protection, &config), dir)?;
    let changes = replay.changes();
    files.report.replayed = changes;
    files.reports.stats.replayed(changes);
    if let Some(torn) = replay.torn() {
        note_torn(&protection, torn, &mut files.report, &files.reports.stats);
    }
    ballast.restore();

    let OpenedCheckpoint { durable, manifest, liveness, recovered, .. } = files.opened;
    let (disk_index, first_seq) = (Arc::new(durable), recovered.replayed.next_seq);
    let home = SpoolHome::new(storage.clone(), &directory)
        .with_context(|| format!("opening the format file of {}", directory.path.display()))?;
    let home = Arc::new(home);
    let presence = Arc::new(Presence::new(Watched {
        storage: storage.clone(),
        home: home.clone(),
        segments: files.segments.clone(),
        manifest_file: files.manifest_file.clone(),
        ballast: ballast.clone(),
        durable: disk_index.clone(),
        events: files.reports.clone(),
    }));
    let shared = Arc::new(Shared::new(SharedParts {
        config,
        opened_as,
        names: directory.names.lock().clone(),
        home,
        storage,
        reports: files.reports.clone(),
        segments: files.segments,
        disk_index,
        ballast,
        presence,
        protection,
        crash_log_size: replay.log_size(),
        first_seq,
        worker_dead: dead,
    }));
    for (id, newest) in &recovered.replayed.newest {
        shared.table.lock(id).index.learn(*id, *newest);
    }
    shared.table.will_checkpoint(manifest.high);
    let checkpointer = Checkpointer {
        segments: shared.segments.clone(),
        durable: shared.disk_index.clone(),
        source: shared.table.clone(),
        inbox: files.inbox,
        events: files.reports.clone(),
        presence: shared.presence.clone(),
        manifest_file: files.manifest_file,
        manifest,
        liveness,
        rebuilding: shared.rebuilding.clone(),
        ballast: shared.ballast.clone(),
        settings: shared.checkpoint_settings.clone(),
        retry: Retry::default(),
        dead: DeadSegments::default(),
        reclaim: ReclaimPolicy::default(),
        compaction: None,
        cut_up_to: 0,
        is_manifest_in_doubt: false,
    };
    let verifier = Verifier {
        segments: shared.segments.clone(),
        durable: shared.disk_index.clone(),
        source: shared.table.clone(),
        checkpoint_requests: shared.checkpoint_requests.clone(),
        events: files.reports,
        verification: shared.verification.clone(),
    };
    let writer = Writer::new(shared.segments.clone(), first_seq);
    let dir = directory.path.clone();
    let started = explain_replay(replay.adopt(&shared), &dir)
        .and_then(|()| register(&shared, monitor))
        .and_then(|relief| {
            start(&shared, (checkpointer, verifier), (writer, files.receiver), directory, starter, relief)
        })
        .and_then(|workers| explain_replay(replay.settle(&shared, changes), &dir).map(|()| workers));
    match started {
        Ok(workers) => Ok(OpenSpool { shared, workers, report: files.report }),
        Err(error) => {
            Workers::abandon(&shared);
            if let Err(error) = shared.disk_index.close(Instant::now() + TO_UNDO) {
                tracing::warn!(%error, "an opening that failed could not close everything");
            }
            Err(error)
        }
    }
}

/// The longest wait to close the index after a failed opening.
const TO_UNDO: Duration = Duration::from_secs(10);

/// Returns the bytes that must be free for the spool to continue storing: a segment, and the free
/// space at which the ballast is written again.
fn enough(config: &Config) -> u64 {
    config.segment_size.saturating_add(2 * config.ballast)
}

/// Returns the names of all threads that an opening needs: see [`Starter::reserve`].
fn thread_names(config: &Config) -> Vec<String> {
    // The threads of the index engine, and the monitor's thread.
    let spare = index::threads_to_start() + 1;
    let readers = (0..config.read_threads).map(names::reader);
    let spare = (0..spare).map(|_| names::SPARE);
    let named = names::OF_A_SPOOL.into_iter().chain([names::LAST_WRITER; 2]).chain(spare);
    named.map(str::to_owned).chain(readers).collect()
}

/// The contents of the directory after recovery.
struct OpenedFiles {
    opened: OpenedCheckpoint,
    reports: Arc<Reports>,
    segments: Arc<Segments>,
    receiver: CommitReceiver,
    inbox: CheckpointInbox,
    manifest_file: Arc<ManifestFile>,
    report: RecoveryReport,
}

/// Recovers the contents of the directory, and creates missing files.
fn recover(
    config: &Config,
    places: &Places,
    disk_index: DiskIndex,
    ballast: &Ballast,
    room: &Arc<DiskRoom>,
    directory: &Directory,
) -> Result<OpenedFiles> {
    let (storage, fresh, names) = (&places.storage, directory.fresh, &*directory.names.lock());
    storage
        .create_dir(&places.journal())
        .with_context(|| format!("creating {}", places.journal().display()))?;
    let mut opened =
        open_checkpoint(places, disk_index, ballast, fresh).map_err(|error| explain(error, &places.dir))?;
    let ((commit_queue, receiver), (checkpoint_requests, inbox)) = (commit_queue(), checkpoint_requests());
    let reports = Arc::new(Reports::new(commit_queue, checkpoint_requests, room.clone()));
    let segments = segments(config, places, &mut opened, reports.clone());
    let manifest_file = Arc::new(ManifestFile::new(storage.clone(), &places.dir));
    let report = report(&mut opened, &segments, &places.dir, names, &reports.stats);
    if fresh {
        segments.pool().fill().with_context(|| format!("preparing {}", places.journal().display()))?;
    }
    // Before any segment is used: no generation may ever be used twice.
    opened.manifest.next_generation = segments.reserved_generation();
    manifest_file.write_somehow(&opened.manifest, ballast)?;
    Ok(OpenedFiles { opened, reports, segments, receiver, inbox, manifest_file, report })
}

/// Returns true if the opening failed for lack of disk space.
fn is_full_disk(error: &anyhow::Error) -> bool {
    let engine = error.downcast_ref().or_else(|| match error.downcast_ref()? {
        OpeningError::Engine(engine) => Some(engine),
        _ => None,
    });
    let by_engine = engine.and_then(|error| match error {
        IndexError::Engine { kind, .. } => *kind,
        _ => None,
    });
    let by_system = error.chain().find_map(|cause| cause.downcast_ref().map(io::Error::kind));
    by_engine.or(by_system).is_some_and(is_no_room_kind)
}

/// Creates the pool and the table of segments from the recovered segments.
fn segments(
    config: &Config,
    places: &Places,
    opened: &mut OpenedCheckpoint,
    reports: Arc<Reports>,
) -> Arc<Segments> {
    let recovered = &mut opened.recovered;
    let settings = PoolSettings {
        dir: places.journal(),
        spool: places.spool,
        segment_size: config.segment_size,
        capacity: config.journal_capacity,
        keep_free: keep_free(config, &*places.storage),
        next_slot: recovered.next_slot,
    };
    let pool = Pool::new(places.storage.clone(), settings, reports);
    // If the query fails, the capacity is that of the setting.
    if let Ok(space) = places.storage.space(&places.dir) {
        pool.note_space(&space);
    }
    let segments = Segments::new(Arc::new(pool), places.spool, recovered.next_generation);
    for segment in recovered.journal.drain(..) {
        segments.pool().count_existing();
        segments.insert(segment);
    }
    recovered.retained.drain(..).for_each(|segment| segments.insert(segment));
    for generation in opened.manifest.retained.keys() {
        if segments.get(*generation).is_none() {
            segments.note_missing(*generation);
        }
    }
    recovered.free.drain(..).for_each(|free| segments.pool().give(free));
    let usable = segments.pool().capacity() as u64 * config.segment_size;
    if usable < config.journal_capacity / config.segment_size * config.segment_size {
        tracing::warn!(
            usable,
            journal_capacity = config.journal_capacity,
            path = %places.journal().display(),
            "the file system has less room than the journal's capacity: the journal uses less"
        );
    }
    Arc::new(segments)
}

/// Reports the damage that recovery found, and the losses.
fn report(
    opened: &mut OpenedCheckpoint,
    segments: &Segments,
    dir: &std::path::Path,
    names: &SpoolNames,
    stats: &Stats,
) -> RecoveryReport {
    let replayed = &opened.recovered.replayed;
    let mut report = RecoveryReport {
        rebuilds_index: opened.rebuilds_index,
        records: replayed.records,
        torn: opened.recovered.torn_records,
        ..Default::default()
    };
    let mut note = |path: &std::path::Path, what| report.damage.push(Damage::new(path, what));
    for damage in opened.damage.drain(..).chain(opened.recovered.damage.drain(..)) {
        note(&damage.path, damage.what);
    }
    for gap in &replayed.gaps {
        let what = format!("records {} to {} are missing", gap.first, gap.last);
        note(&dir.join("journal"), what);
    }
    for damaged in &replayed.damaged {
        let what = format!("the payload of record {} fails its checksum", damaged.seq);
        let path =
            segments.get(damaged.generation).map_or_else(Default::default, |segment| segment.path.clone());
        report.damage.push(Damage::of_message(&path, damaged.id, names, what));
    }
    let mut lost = replayed.gaps.iter().map(|gap| gap.last - gap.first + 1).sum::<u64>();
    if opened.rebuilds_index {
        // Without the index, only the segment itself has the ids of its messages.
        let before = lost;
        opened.manifest.retained.retain(|generation, kept| {
            let is_there = segments.get(*generation).is_some();
            if !is_there {
                lost += kept.live;
            }
            is_there
        });
        opened.manifest.lost += lost - before;
    }
    report.lost = lost;
    stats.recovered(report.records);
    stats.torn(report.torn);
    stats.lost(report.lost);
    for damage in &report.damage {
        stats.corrupt();
        tracing::error!(path = damage.path, spool = damage.spool, id = ?damage.id, what = damage.what, "found damage while opening");
    }
    report
}

/// Reports that the crash log of the last run is damaged, so that its changes can't be restored.
fn note_torn(protection: &Protection, torn: &str, report: &mut RecoveryReport, stats: &Stats) {
    let path = protection.path();
    stats.corrupt();
    tracing::error!(path = %path.display(), what = torn, "found damage while opening");
    report.damage.push(Damage::new(&path, torn.to_owned()));
}

/// Registers the spool with `monitor`, or with its own. A monitor that is turned off sleeps until
/// the settings change.
fn register(shared: &Arc<Shared>, monitor: Option<PressureMonitor>) -> Result<Arc<dyn Relief>> {
    let relief: Arc<dyn Relief> = Arc::new(SpoolRelief(shared.clone()));
    let registration = match monitor {
        Some(monitor) => monitor.register(&relief),
        None => Registration::own(shared.config.load().pressure.clone(), &relief),
    };
    // Cannot fail: the monitor is set only here.
    let _ = shared.monitor.set(registration.context("watching memory")?);
    Ok(relief)
}

/// Starts all threads. The threads that write hold the directory: its lock is free when the last of
/// them has ended.
fn start(
    shared: &Arc<Shared>,
    (checkpointer, verifier): (Checkpointer, Verifier),
    (writer, receiver): (Writer, CommitReceiver),
    directory: Arc<Directory>,
    starter: Starter,
    relief: Arc<dyn Relief>,
) -> Result<Workers> {
    let syncer = Arc::<Syncer>::default();
    let committer = Committer::new(shared.clone(), syncer.clone(), receiver, writer);
    let committer = starter.start(names::COMMIT, &directory, move || committer.run())?;
    let counted = shared.clone();
    let syncer = starter.start(names::SYNC, &directory, move || syncer.run(&counted))?;
    let timed = shared.clone();
    let timer = starter.start_free(names::TIMER, move || timed.timer.run())?;
    let checkpointer = starter.start(names::CHECKPOINT, &directory, move || checkpointer.run())?;
    let pool = shared.segments.clone();
    let mut others = vec![starter.start(names::PREWRITE, &directory, move || pool.pool().run_prewriter())?];
    others.push(starter.start(names::VERIFY, &directory, move || verifier.run())?);
    let watched = shared.clone();
    others.push(starter.start(names::HEALTH, &directory, move || watch(&watched))?);
    let probed = shared.clone();
    others.push(starter.start(names::PROBE, &directory, move || run_probe(&probed))?);
    let kept = shared.clone();
    others.push(starter.start(names::BALANCER, &directory, move || keep(&kept))?);
    let read_threads = shared.config.load().read_threads;
    for number in 0..read_threads {
        let reading = shared.clone();
        others.push(starter.start(&names::reader(number), &directory, move || reading.readers.serve())?);
    }
    let running = Running { committer, syncer, timer, checkpointer, others, _relief: relief, directory };
    Ok(Workers::new(running, starter))
}
