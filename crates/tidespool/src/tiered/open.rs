//! Opens a spool: lock, recovery, threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use tidespool_core::DamagedSpool;

use super::committer::{Committer, Syncer};
use super::crew::{Crew, Running};
use super::directory::Directory;
use super::keeper::keep;
use super::mailbox::Mailbox;
use super::probe::run_probe;
use super::readers::{Readers, run_reader};
use super::reconfigure::filer_settings;
use super::relief::SpoolRelief;
use super::shared::{FilingReports, Parts, PoolReports, Shared};
use super::table::Table;
use super::threads::Starter;
use super::watch::watch;
use crate::checkpoint::{
    Ballast, DeadSegments, Drained, Filer, Filing, LedgerError, LedgerFile, Opened, OpeningError, Places,
    Recount, Retry, Source as _, open_filed, settle, without_segment,
};
use crate::durable::{DurableError, SledOptions, Strays};
use crate::health::Space;
use crate::inspect::Damage;
use crate::journal::{Pool, PoolSettings, Segments, Writer, give_up_a_free_segment};
use crate::pressure::{Registration, Relief};
use crate::stats::Stats;
use crate::storage::{Storage, is_unreadable};
use crate::{Config, PressureMonitor, RecoveryReport};

/// An open spool: what its callers share, its threads, and what was found on the way.
pub(super) struct OpenSpool {
    pub(super) shared: Arc<Shared>,
    pub(super) crew: Crew,
    pub(super) report: RecoveryReport,
}

/// Opens it. Blocks on I/O. Without a `monitor` it gets one of its own.
pub(super) fn open(
    config: Config,
    storage: Arc<dyn Storage>,
    monitor: Option<PressureMonitor>,
) -> Result<OpenSpool> {
    config.validate()?;
    let directory = Arc::new(Directory::open_or_create(&config.path)?);
    let places = Places { storage: storage.clone(), dir: directory.path.clone(), spool: directory.spool };
    let ballast = Ballast::new(storage.clone(), &directory.path, config.ballast);
    let look = || look(&config, &places, &ballast, &directory);
    let Found { opened, stats, mailbox, segments, ledger_file, report } = match look() {
        // A spool that can't be opened can't be emptied.
        Err(error) if is_full_disk(&error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "the disk is full: opening with the room of ballast and spare segments"
            );
            ballast.release();
            // It may have been used before, and its room be somebody else's now.
            while !ballast.is_room_for(TO_OPEN)
                && give_up_a_free_segment(&*places.storage, &places.journal(), places.spool)?
            {}
            look()?
        }
        found => found?,
    };
    directory.finish_creation()?;
    ballast.restore();

    let table = Arc::new(Table::new());
    for (id, newest) in &opened.recovered.replayed.newest {
        table.lock(id).index.learn(*id, *newest);
    }
    table.will_file(opened.ledger.high);
    let dead = Arc::new(AtomicBool::new(false));
    let (readers, queue) = Readers::new(dead.clone());
    let next_seq = opened.recovered.replayed.next_seq;
    let (durable, ledger, counted) = (Arc::new(opened.durable), opened.ledger, opened.counted);
    let filing = Arc::new(Filing::default());
    let settings = Arc::new(ArcSwap::from_pointee(filer_settings(&config)));
    let filer = Filer {
        segments: segments.clone(),
        durable: durable.clone(),
        source: table.clone(),
        filing: filing.clone(),
        events: Arc::new(FilingReports { stats: stats.clone(), mailbox: mailbox.clone() }),
        ledger_file,
        ledger,
        ballast,
        settings: settings.clone(),
        retry: Retry::default(),
        dead: DeadSegments::default(),
        recount: Recount::after_opening(counted),
        drained: Drained::default(),
    };
    let parts = Parts {
        config,
        storage,
        table,
        mailbox,
        segments: segments.clone(),
        durable,
        filing,
        stats,
        readers,
        worker_dead: dead.clone(),
        filer_settings: settings,
    };
    let shared = Arc::new(Shared::new(parts));
    let relief = register(&shared, monitor)?;
    let writer = Writer::new(segments, next_seq);
    let crew = start(&shared, filer, writer, &queue, directory, Starter::new(dead), relief)
        .inspect_err(|_| Crew::abandon(&shared))
        .context("starting the spool's threads")?;
    Ok(OpenSpool { shared, crew, report })
}

/// What only a repair can go on with is told as such.
fn name_damage(error: OpeningError, dir: &std::path::Path) -> anyhow::Error {
    match error {
        OpeningError::Engine(error) if error.is_damage() => {
            DamagedSpool { dir: dir.to_owned(), path: dir.join("sled"), what: error.to_string() }.into()
        }
        OpeningError::Beyond { path, what } => DamagedSpool { dir: dir.to_owned(), path, what }.into(),
        error => {
            let lasts = match &error {
                OpeningError::Journal(error) => is_unreadable(&error.source),
                OpeningError::Ledger(LedgerError::Io { source, .. }) => is_unreadable(source),
                _ => false,
            };
            let error = anyhow::Error::from(error);
            match lasts {
                true => error.context(format!(
                    "the disk can't read all of it; if that lasts, `tidespool repair {} NEW_DIR` copies what can be read into a new directory",
                    dir.display()
                )),
                false => error,
            }
        }
    }
}

/// What sled takes for being opened, in bytes: its snapshot, and the segments of its file that it begins.
const TO_OPEN: u64 = 1 << 20;

/// What is in the directory, made to agree.
struct Found {
    opened: Opened,
    stats: Arc<Stats>,
    mailbox: Arc<Mailbox>,
    segments: Arc<Segments>,
    ledger_file: LedgerFile,
    report: RecoveryReport,
}

/// Reads everything, and makes what is missing.
fn look(config: &Config, places: &Places, ballast: &Ballast, directory: &Arc<Directory>) -> Result<Found> {
    let (storage, fresh) = (&places.storage, directory.fresh);
    storage
        .create_dir(&places.journal())
        .with_context(|| format!("creating {}", places.journal().display()))?;
    let strays = Arc::new(Strays::holding(directory));
    let options =
        SledOptions { storage: storage.clone(), strays, ..SledOptions::new(config.effective_sled_cache()) };
    let mut opened =
        open_filed(places, &options, ballast, fresh).map_err(|error| name_damage(error, &places.dir))?;
    let (stats, mailbox) = (Arc::new(Stats::default()), Arc::new(Mailbox::default()));
    let segments = segments(config, places, &mut opened, &mailbox, &stats);
    let ledger_file = LedgerFile::new(storage.clone(), &places.dir);
    let report = settle_disagreement(&mut opened, &segments, &ledger_file, ballast, &stats)?;
    if fresh {
        segments.pool().fill().with_context(|| format!("preparing {}", places.journal().display()))?;
    }
    // Before any segment is used: its generation must never have been another's.
    opened.ledger.next_generation = segments.reserved_generation();
    ledger_file.write_somehow(&opened.ledger, ballast)?;
    Ok(Found { opened, stats, mailbox, segments, ledger_file, report })
}

/// Whether it would have succeeded with more room on disk.
fn is_full_disk(error: &anyhow::Error) -> bool {
    let engine = error.downcast_ref().or_else(|| match error.downcast_ref()? {
        OpeningError::Engine(engine) => Some(engine),
        _ => None,
    });
    let by_engine = engine.and_then(|error| match error {
        DurableError::Engine { kind, .. } => *kind,
        _ => None,
    });
    let by_system = error.chain().find_map(|cause| cause.downcast_ref().map(io::Error::kind));
    by_engine.or(by_system) == Some(io::ErrorKind::StorageFull)
}

/// Hands what recovery found to the pool and to the table of segments.
fn segments(
    config: &Config,
    places: &Places,
    opened: &mut Opened,
    mailbox: &Arc<Mailbox>,
    stats: &Arc<Stats>,
) -> Arc<Segments> {
    let recovered = &mut opened.recovered;
    let settings = PoolSettings {
        dir: places.journal(),
        spool: places.spool,
        segment_size: config.segment_size,
        capacity: config.journal_capacity,
        keep_free: keep_free(config),
        next_slot: recovered.next_slot,
    };
    let reports = PoolReports { mailbox: mailbox.clone(), stats: stats.clone() };
    let pool = Pool::new(places.storage.clone(), settings, Arc::new(reports));
    let segments = Segments::new(Arc::new(pool), places.spool, recovered.next_generation);
    for segment in recovered.journal.drain(..) {
        segments.pool().count_existing();
        segments.insert(segment);
    }
    recovered.retained.drain(..).for_each(|segment| segments.insert(segment));
    recovered.free.drain(..).for_each(|free| segments.pool().give(free));
    Arc::new(segments)
}

/// What new segments leave of the disk: more than the health gate's minimum, so that the spool never shuts its own gate; and room for ballast, ledger
/// and sled.
pub(super) fn keep_free(config: &Config) -> u64 {
    let minimum = Space::of(&config.path).map_or(0, |space| space.minimum(&config.health));
    minimum + minimum / 4 + config.ballast + (4 << 20)
}

/// Makes sled hold what it should, as far as that can be, and says what could not be.
fn settle_disagreement(
    opened: &mut Opened,
    segments: &Segments,
    ledger_file: &LedgerFile,
    ballast: &Ballast,
    stats: &Stats,
) -> Result<RecoveryReport> {
    let replayed = &opened.recovered.replayed;
    let dir = ledger_file.dir();
    let mut report = RecoveryReport {
        counted: opened.counted,
        records: replayed.records,
        torn: opened.recovered.torn_records,
        ..Default::default()
    };
    let mut note = |path: &std::path::Path, id, what: String| {
        report.damage.push(Damage { path: path.display().to_string(), id, what });
    };
    for damage in opened.damage.drain(..).chain(opened.recovered.damage.drain(..)) {
        note(&damage.path, None, damage.what);
    }
    for gap in &replayed.gaps {
        let what = format!("records {} to {} are missing", gap.first, gap.last);
        note(&dir.join("journal"), None, what);
    }
    for damaged in &replayed.damaged {
        let what = format!("the payload of record {} fails its checksum", damaged.seq);
        let path =
            segments.get(damaged.generation).map_or_else(Default::default, |segment| segment.path.clone());
        note(&path, Some(damaged.id), what);
    }
    let sled = dir.join("sled");
    for (id, what) in opened.damaged.drain(..) {
        note(&sled, Some(id), what);
    }
    let mut lost = replayed.gaps.iter().map(|gap| gap.last - gap.first + 1).sum::<u64>();
    let mut refiled = 0;
    if let Some(what) = opened.disagrees.take() {
        let settled =
            settle(&opened.durable, segments, &mut opened.ledger, ledger_file, ballast, &replayed.newest)
                .map_err(|error| name_damage(error, dir))?;
        (refiled, lost) = (settled.refiled, lost + settled.lost);
        let what = format!("{what}; {} messages were filed anew, {} are lost", settled.refiled, settled.lost);
        note(&sled, None, what);
    }
    let gone = without_segment(&opened.durable, segments, &opened.ledger.retained);
    for id in gone.map_err(|error| name_damage(error.into(), dir))? {
        note(&sled, Some(id), "its segment is missing".to_owned());
    }
    (report.lost, report.refiled) = (lost, refiled);
    stats.recovered(report.records);
    stats.torn(report.torn);
    stats.lost(report.lost);
    for damage in &report.damage {
        stats.corrupt();
        tracing::error!(path = damage.path, id = ?damage.id, what = damage.what, "found damage while opening");
    }
    Ok(report)
}

/// Puts the spool under the eyes of `monitor`, or of one of its own: one that is turned off sleeps, until the settings change.
fn register(shared: &Arc<Shared>, monitor: Option<PressureMonitor>) -> Result<Arc<dyn Relief>> {
    let relief: Arc<dyn Relief> = Arc::new(SpoolRelief(shared.clone()));
    let registration = match monitor {
        Some(monitor) => Registration::shared(monitor, &relief),
        None => Registration::own(shared.config.load().pressure.clone(), &relief),
    };
    // Set here and nowhere else.
    let _ = shared.monitor.set(registration.context("watching memory")?);
    Ok(relief)
}

/// Starts every thread there is. Those that write hold the directory: its lock is free when the last of them has ended.
fn start(
    shared: &Arc<Shared>,
    filer: Filer,
    writer: Writer,
    queue: &async_channel::Receiver<Box<dyn FnOnce() + Send>>,
    directory: Arc<Directory>,
    starter: Starter,
    relief: Arc<dyn Relief>,
) -> Result<Crew> {
    let syncer = Arc::<Syncer>::default();
    let committer = Committer::new(shared.clone(), syncer.clone(), writer);
    let committer = starter.start("tidespool-commit", &directory, move || committer.run())?;
    let counted = shared.clone();
    let syncer = starter.start("tidespool-sync", &directory, move || syncer.run(&counted))?;
    let filer = starter.start("tidespool-filer", &directory, move || filer.run())?;
    let pool = shared.segments.clone();
    let mut others =
        vec![starter.start("tidespool-prewrite", &directory, move || pool.pool().run_prewriter())?];
    let watched = shared.clone();
    others.push(starter.start("tidespool-watch", &directory, move || watch(&watched))?);
    let probed = shared.clone();
    others.push(starter.start("tidespool-probe", &directory, move || run_probe(&probed))?);
    let kept = shared.clone();
    others.push(starter.start("tidespool-memory", &directory, move || keep(&kept))?);
    let config = shared.config.load_full();
    for number in 0..config.read_threads {
        let queue = queue.clone();
        let name = format!("tidespool-read-{number}");
        others.push(starter.start(&name, &directory, move || run_reader(&queue))?);
    }
    let running = Running { committer, syncer, filer, others, _relief: relief, directory };
    Ok(Crew::new(running, starter))
}
