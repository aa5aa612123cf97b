//! Opens a spool: lock, recovery, threads.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result};

use super::committer::Committer;
use super::crew::Crew;
use super::directory::Directory;
use super::mailbox::Mailbox;
use super::readers::{Readers, run_reader};
use super::relief::SpoolRelief;
use super::shared::{FilingReports, Parts, PoolReports, Shared};
use super::table::Table;
use super::threads::Starter;
use super::watch::watch;
use crate::checkpoint::{
    Ballast, DeadSegments, Filer, FilerSettings, Filing, LedgerFile, Opened, Places, Retry, Source as _,
    open_filed, settle, without_segment,
};
use crate::durable::SledOptions;
use crate::health::Space;
use crate::inspect::Damage;
use crate::journal::{Pool, PoolSettings, Segments, Writer};
use crate::pressure::{Monitor, Relief, SystemSampler};
use crate::stats::Stats;
use crate::storage::Storage;
use crate::{Config, RecoveryReport};

/// An open spool: what its callers share, its threads, and what was found on the way.
pub(super) struct OpenSpool {
    pub(super) shared: Arc<Shared>,
    pub(super) crew: Crew,
    pub(super) report: RecoveryReport,
}

/// Opens it. Blocks on I/O.
pub(super) fn open(config: Config, storage: Arc<dyn Storage>) -> Result<OpenSpool> {
    config.validate()?;
    let directory = Directory::open_or_create(&config.path)?;
    let places = Places { storage: storage.clone(), dir: directory.path.clone(), spool: directory.spool };
    storage
        .create_dir(&places.journal())
        .with_context(|| format!("creating {}", places.journal().display()))?;
    let ballast = Ballast::new(storage.clone(), &directory.path, config.ballast);
    let options = SledOptions::new(config.effective_sled_cache());
    let mut opened = open_filed(&places, &options, &ballast, directory.fresh)?;

    let (stats, mailbox) = (Arc::new(Stats::default()), Arc::new(Mailbox::default()));
    let segments = segments(&config, &places, &mut opened, &mailbox, &stats);
    let ledger_file = LedgerFile::new(storage, &directory.path);
    let report = settle_disagreement(&mut opened, &segments, &ledger_file, &ballast, &stats)?;
    if directory.fresh {
        segments.pool().fill().with_context(|| format!("preparing {}", places.journal().display()))?;
    }
    // Before any segment is used: its generation must never have been another's.
    opened.ledger.next_generation = segments.reserved_generation();
    ledger_file.write_somehow(&opened.ledger, &ballast)?;
    directory.finish_creation()?;
    ballast.restore();

    let table = Arc::new(Table::new());
    for (id, newest) in &opened.recovered.replayed.newest {
        table.lock(id).index.learn(*id, *newest);
    }
    table.will_file(opened.ledger.high);
    let dead = Arc::new(AtomicBool::new(false));
    let (readers, queue) = Readers::new();
    let next_seq = opened.recovered.replayed.next_seq;
    let (durable, ledger) = (Arc::new(opened.durable), opened.ledger);
    let filing = Arc::new(Filing::default());
    let filer = Filer {
        segments: segments.clone(),
        durable: durable.clone(),
        source: table.clone(),
        filing: filing.clone(),
        events: Arc::new(FilingReports(stats.clone())),
        ledger_file,
        ledger,
        ballast,
        settings: FilerSettings {
            separate_above: config.separate_above,
            checkpoint_after: config.checkpoint_after,
        },
        retry: Retry::default(),
        dead: DeadSegments::default(),
    };
    let parts = Parts {
        config,
        table,
        mailbox,
        segments: segments.clone(),
        durable,
        filing,
        stats,
        readers,
        worker_dead: dead.clone(),
    };
    let shared = Arc::new(Shared::new(parts));
    let directory = Arc::new(directory);
    let crew = start(&shared, filer, Writer::new(segments, next_seq), &queue, directory, Starter::new(dead))
        .inspect_err(|_| Crew::abandon(&shared))
        .context("starting the spool's threads")?;
    Ok(OpenSpool { shared, crew, report })
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
fn keep_free(config: &Config) -> u64 {
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
    let mut report = RecoveryReport {
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
        note(ledger_file.path().with_file_name("journal").as_path(), None, what);
    }
    for damaged in &replayed.damaged {
        let what = format!("the payload of record {} fails its checksum", damaged.seq);
        let path =
            segments.get(damaged.generation).map_or_else(Default::default, |segment| segment.path.clone());
        note(&path, Some(damaged.id), what);
    }
    let sled = ledger_file.path().with_file_name("sled");
    for (id, what) in opened.damaged.drain(..) {
        note(&sled, Some(id), what);
    }
    let mut lost = replayed.gaps.iter().map(|gap| gap.last - gap.first + 1).sum::<u64>();
    let mut refiled = 0;
    if let Some(what) = opened.disagrees.take() {
        let settled =
            settle(&opened.durable, segments, &mut opened.ledger, ledger_file, ballast, &replayed.newest)?;
        (refiled, lost) = (settled.refiled, lost + settled.lost);
        let what = format!("{what}; {} messages were filed anew, {} are lost", settled.refiled, settled.lost);
        note(&sled, None, what);
    }
    for id in without_segment(&opened.durable, segments, &opened.ledger.retained)? {
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

/// Starts every thread there is. Those that write hold the directory: its lock is free when the last of them has ended.
fn start(
    shared: &Arc<Shared>,
    filer: Filer,
    writer: Writer,
    queue: &async_channel::Receiver<Box<dyn FnOnce() + Send>>,
    directory: Arc<Directory>,
    starter: Starter,
) -> Result<Crew> {
    let committer = Committer::new(shared.clone(), writer);
    let committer = starter.start("tidespool-commit", &directory, move || committer.run())?;
    let filer = starter.start("tidespool-filer", &directory, move || filer.run())?;
    let pool = shared.segments.clone();
    let mut others =
        vec![starter.start("tidespool-prewrite", &directory, move || pool.pool().run_prewriter())?];
    let watched = shared.clone();
    others.push(starter.start("tidespool-watch", &directory, move || watch(&watched))?);
    for number in 0..shared.config.read_threads {
        let queue = queue.clone();
        let name = format!("tidespool-read-{number}");
        others.push(starter.start(&name, &directory, move || run_reader(&queue))?);
    }
    let relief: Option<Arc<dyn Relief>> = match shared.config.pressure.enabled {
        true => {
            let relief: Arc<dyn Relief> = Arc::new(SpoolRelief(shared.clone()));
            let sampler = Box::new(SystemSampler::new(shared.config.pressure.memory_limit));
            let monitor = Monitor::start(&shared.config.pressure, sampler, &relief)?;
            // Set here and nowhere else.
            let _ = shared.monitor.set(monitor);
            Some(relief)
        }
        false => None,
    };
    Ok(Crew::new(committer, filer, others, relief, directory, starter))
}
