//! Single steps of the checkpoint thread, in states that a running spool seldom comes to.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;
use tidespool_core::SpoolId;

use super::drained::Verdict;
use super::retained::{Retained, locator};
use super::*;
use crate::durable::{Change, Durable, Key, Op, Record, SledOptions};
use crate::journal::{Newest, Pool, PoolEvents, PoolSettings, Role, Segment, Segments, payload_crc};
use crate::storage::OsStorage;
use arc_swap::ArcSwap;

const MIB: u64 = 1 << 20;

/// An index with these entries, and as many removals on their way to it.
#[derive(Default)]
struct Index {
    entries: Vec<(SpoolId, Newest)>,
    removals: u64,
}

impl Source for Index {
    fn collect(&self, up_to: u64) -> Vec<(SpoolId, Newest)> {
        self.entries.iter().filter(|(_, newest)| newest.generation <= up_to).copied().collect()
    }

    fn live_bytes(&self) -> BTreeMap<u64, u64> {
        BTreeMap::new()
    }

    fn survey(&self) -> Survey {
        Survey { live_bytes: 0, removals: self.removals }
    }

    fn is_newest(&self, id: &SpoolId, seq: u64) -> bool {
        self.entries.iter().any(|(other, newest)| other == id && newest.seq == seq)
    }

    fn will_file(&self, _: HighKeys) {}

    fn forget(&self, _: &[(SpoolId, Newest)]) {}
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Filed,
    Rewritten,
    Sealing,
    Lost(u64),
}

/// What was reported. The first rewriting settles a segment: it is to be filed from then on.
#[derive(Default)]
struct Reports {
    steps: Mutex<Vec<Step>>,
    settles: Mutex<Option<Arc<Segment>>>,
}

impl FilingEvents for Reports {
    fn filed(&self, _: u64, _: u64, _: Duration) {
        self.steps.lock().push(Step::Filed);
    }

    fn recycled(&self) {}

    fn wants_seal(&self) {
        self.steps.lock().push(Step::Sealing);
    }

    fn rewritten(&self, _: u64) {
        self.steps.lock().push(Step::Rewritten);
        if let Some(segment) = self.settles.lock().take() {
            segment.settle();
        }
    }

    fn failed(&self, error: &FilingError) {
        panic!("{error}");
    }

    fn found_damage(&self, id: &SpoolId, what: &str) {
        panic!("{id}: {what}");
    }

    fn found_loss(&self, messages: u64, _: &str) {
        self.steps.lock().push(Step::Lost(messages));
    }
}

impl PoolEvents for Reports {
    fn segment_free(&self) {}

    fn prewrite_failed(&self, error: &io::Error) {
        panic!("{error}");
    }
}

struct Bench {
    filer: Filer,
    reports: Arc<Reports>,
    dir: TempDir,
}

impl Bench {
    /// With the records that `ops` put into sled in the ledger.
    fn new(index: Index, ops: Vec<Op>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let reports = Arc::<Reports>::default();
        let settings = PoolSettings {
            dir: dir.path().to_owned(),
            spool: [7; 16],
            segment_size: MIB,
            capacity: 8 * MIB,
            keep_free: 0,
            next_slot: 0,
        };
        let pool = Arc::new(Pool::new(Arc::new(OsStorage), settings, reports.clone()));
        let durable = Durable::open_sled(&dir.path().join("sled"), SledOptions::new(1 << 20)).unwrap();
        let tally = durable.apply(&mut ops.into_iter(), &mut |_, _| {}).unwrap();
        let filer = Filer {
            segments: Arc::new(Segments::new(pool, [7; 16], 1)),
            durable: Arc::new(durable),
            source: Arc::new(index),
            filing: Arc::default(),
            events: reports.clone(),
            ledger_file: LedgerFile::new(Arc::new(OsStorage), dir.path()),
            ledger: Ledger { tally, ..Ledger::default() },
            ballast: Ballast::new(Arc::new(OsStorage), dir.path(), 0),
            settings: Arc::new(ArcSwap::from_pointee(FilerSettings {
                separate_above: 4096,
                checkpoint_after: Duration::ZERO,
            })),
            retry: Retry::default(),
            dead: DeadSegments::default(),
            recount: Recount::after_opening(false),
            drained: Drained::default(),
        };
        Self { filer, reports, dir }
    }

    fn apply(&mut self, ops: Vec<Op>) {
        let delta = self.filer.durable.apply(&mut ops.into_iter(), &mut |_, _| {}).unwrap();
        self.filer.ledger.tally = self.filer.ledger.tally.plus(delta);
    }

    /// Retains a segment with one message in it, as if both were as large as that.
    fn retain(&mut self, size: u64, live_bytes: u64) {
        let (id, data) = (SpoolId::new(), vec![1; 8192]);
        let crc = payload_crc(&data);
        let segments = self.filer.segments.clone();
        let mut writer = crate::journal::ColdWriter::new(&segments, data.len() as u64);
        let place = writer.append(id, 1, &data, crc).unwrap();
        writer.finish().unwrap();
        self.apply(vec![Op { key: Key::of(&id), change: Change::Put(locator(1, place, crc)) }]);
        self.filer.ledger.retained.insert(place.generation, Retained { size, live_bytes, live: 1 });
    }

    fn steps(&self) -> Vec<Step> {
        std::mem::take(&mut self.reports.steps.lock())
    }
}

fn put(key: Key) -> Op {
    Op { key, change: Change::Put(Record::Whole { seq: 1, data: [1; 100].into() }) }
}

fn entries(count: u64) -> Vec<(SpoolId, Newest)> {
    (0..count).map(|seq| (SpoolId::new(), Newest { seq: seq + 10, generation: 9, place: None })).collect()
}

/// Whatever the index holds: while nothing was being changed, sled must have after an error what it had before.
#[test]
fn what_sled_lost_when_it_was_opened_again_is_reported() {
    let keys: Vec<Key> = (0..10).map(|_| Key::of(&SpoolId::new())).collect();
    let index = Index { entries: entries(5), removals: 0 };
    let mut bench = Bench::new(index, keys.iter().copied().map(put).collect());
    let filer = &mut bench.filer;
    let lost = keys[..2].iter().map(|key| Op { key: *key, change: Change::Remove });
    filer.durable.apply(&mut lost.into_iter(), &mut |_, _| {}).unwrap();
    filer.durable.close(Instant::now() + Duration::from_secs(60)).unwrap();

    filer.ensure_open().unwrap();
    assert_eq!(filer.ledger.tally.records, 8);
    assert_eq!(bench.filer.durable.tally().unwrap(), bench.filer.ledger.tally);
    assert_eq!(bench.steps(), [Step::Lost(2)]);
    // And nothing is where nothing is lost.
    bench.filer.durable.close(Instant::now() + Duration::from_secs(60)).unwrap();
    bench.filer.ensure_open().unwrap();
    assert_eq!(bench.steps(), []);
    assert!(bench.filer.recount.is_done());
}

/// Moving many survivors takes long. What is sealed meanwhile is filed before the next of them are moved, or stores would wait for the last.
#[test]
fn segments_are_filed_between_rounds_of_rewriting() {
    let mut bench = Bench::new(Index::default(), Vec::new());
    // Of 40 MiB each, so that they are moved one by one.
    bench.retain(100 * MIB, 40 * MIB);
    bench.retain(100 * MIB, 40 * MIB);
    let segments = &bench.filer.segments;
    let (active, _) = segments.activate(segments.pool().allocate(MIB).unwrap(), Role::Journal, false);
    *bench.reports.settles.lock() = Some(active);
    bench.filer.tidy(false).unwrap();
    assert_eq!(bench.steps(), [Step::Rewritten, Step::Filed, Step::Rewritten]);
}

/// A segment of which nothing can be moved is chosen at every look: it must not cost two ledgers each time.
#[test]
fn a_round_that_moves_nothing_writes_nothing() {
    let mut bench = Bench::new(Index::default(), Vec::new());
    bench.retain(100 * MIB, 40 * MIB);
    for segment in bench.filer.segments.all() {
        segment.file.write_vectored_at(&[io::IoSlice::new(&[9; 8192])], 4096).unwrap();
    }
    let before = bench.filer.ledger.clone();
    bench.filer.tidy(false).unwrap();
    assert_eq!((bench.steps(), &bench.filer.ledger), (Vec::new(), &before));
    assert!(!bench.filer.ledger_file.path().exists());
    assert_eq!(bench.filer.segments.all().len(), 1, "what is damaged stays");
}

/// The removals that are to be filed may not be in the journal yet. Asking again and again would bring them there no sooner.
#[test]
fn the_journals_end_is_asked_for_once_while_it_has_nothing() {
    let mut bench = Bench::new(Index { entries: Vec::new(), removals: 1 }, Vec::new());
    bench.retain(100 * MIB, 8192);
    let filer = &mut bench.filer;
    let mut look = || {
        let Filer { ledger, segments, source, filing, drained, .. } = filer;
        drained.look(&ledger.retained, segments, &**source, filing, ledger.filed_generation, || 0)
    };
    let began = Instant::now();
    assert_eq!(look(), Verdict::Seal);
    let again = (0..1000).filter(|_| look() == Verdict::Seal).count();
    assert!(again as u128 <= began.elapsed().as_millis() / 100, "{again} times");
    assert!(filer.drained.wake_at().is_some());
}

/// Where nothing can be moved, be it for want of room, removals are filed early all the same: they give room.
#[test]
fn removals_are_filed_early_although_survivors_cannot_be_moved() {
    let mut bench = Bench::new(Index { entries: Vec::new(), removals: 1 }, Vec::new());
    bench.retain(100 * MIB, 40 * MIB);
    // In the way of the ledger, without which nothing is moved.
    std::fs::create_dir(bench.dir.path().join("ledger.new")).unwrap();
    assert!(matches!(bench.filer.tend(), Err(FilingError::Ledger(_))));
    assert_eq!(bench.steps(), [Step::Sealing]);
}

/// A count that somebody cut short is made another time, whether there is traffic by then or not.
#[test]
fn a_recount_that_was_cut_short_is_due_again() {
    let ops = (0..300).map(|_| put(Key::of(&SpoolId::new()))).collect();
    let mut bench = Bench::new(Index::default(), ops);
    let filer = &mut bench.filer;
    let (done, _heard) = tokio::sync::oneshot::channel();
    filer.filing.ask(FilingTask::Cleanup(done));
    filer.tend().unwrap();
    assert!(!filer.recount.is_done());
    assert!(filer.wake_at().is_some_and(|at| at > Instant::now()));
    let uncut = Bench::new(Index::default(), Vec::new());
    let mut filer = uncut.filer;
    filer.tend().unwrap();
    assert!(filer.recount.is_done());
    assert_eq!(filer.wake_at(), None);
}
