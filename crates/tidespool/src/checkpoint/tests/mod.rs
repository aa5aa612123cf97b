//! Tests of the checkpointer without its thread: real segments, a real index and a real manifest in
//! a temporary directory. The test writes the journal record by record.
//!
//! * `steps`: single steps, in states that are rare in a running spool.
//! * `checkpoints`: the result of a checkpoint, and of a failed one.
//! * `rebuild`: rebuilds of the index.
//! * `damage`: rebuilds with damaged or missing files.
//! * `audit`: the audit of the index of an earlier run.

mod audit;
mod checkpoints;
mod damage;
mod rebuild;
mod steps;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::value_log::retained::place_of_record;
use super::*;
use crate::index::{DiskIndex, IndexEngine, Key, Record, Tally, engines};
use crate::journal::{
    JournalChange, NewestRecord, Pool, PoolEvents, PoolSettings, RESERVED, Role, Segment, Segments, Writer,
    payload_crc,
};
use crate::message_id::MessageId;
use crate::storage::{DiskRoom, OsStorage, Storage, TestCall, TestStorage};

const MIB: u64 = 1 << 20;
const SPOOL: [u8; 16] = [7; 16];

/// The in-memory index of the journal.
#[derive(Default)]
struct TestSource {
    /// The versions of each id, the newest last. A checkpoint removes them.
    versions: Mutex<BTreeMap<MessageId, Vec<NewestRecord>>>,
    /// Removals not yet applied to the index on disk.
    removals: u64,
}

impl TestSource {
    fn newest(&self, id: &MessageId) -> Option<NewestRecord> {
        self.versions.lock().get(id).and_then(|versions| versions.last()).copied()
    }
}

impl LiveIndex for TestSource {
    fn collect(&self, up_to: u64) -> Vec<(Key, NewestRecord)> {
        let versions = self.versions.lock();
        let newest = versions.iter().filter_map(|(id, versions)| Some((Key::of(id), *versions.last()?)));
        newest.filter(|(_, newest)| newest.generation <= up_to).collect()
    }

    fn live_bytes(&self) -> BTreeMap<u64, u64> {
        let mut live = BTreeMap::new();
        let places = self.collect(u64::MAX).into_iter().filter_map(|(_, newest)| newest.place);
        places.for_each(|place| *live.entry(place.generation).or_default() += u64::from(place.len));
        live
    }

    fn survey(&self) -> Survey {
        Survey { live_bytes: 0, removals: self.removals }
    }

    fn is_newest(&self, id: &MessageId, seq: u64) -> bool {
        self.newest(id).is_some_and(|newest| newest.seq == seq)
    }

    fn has_in_memory(&self, id: &MessageId) -> bool {
        self.newest(id).is_some()
    }

    fn will_checkpoint(&self, _: HighKeys) {}

    fn forget(&self, checkpointed: &[(Key, NewestRecord)]) {
        for (id, newest) in checkpointed.iter().map(|(key, newest)| (key.message(), newest)) {
            if self.is_newest(&id, newest.seq) {
                self.versions.lock().remove(&id);
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum SourceCall {
    Checkpointed,
    Rewritten,
    Sealing,
    Rebuilt(u64),
    Lost(u64),
}

/// The reported events. The first rewriting settles a segment, which is due from then on.
#[derive(Default)]
struct Reports {
    steps: Mutex<Vec<SourceCall>>,
    settles: Mutex<Option<Arc<Segment>>>,
}

impl CheckpointEvents for Reports {
    fn checkpointed(&self, _: u64, _: u64, _: Duration) {
        self.steps.lock().push(SourceCall::Checkpointed);
    }

    fn recycled(&self) {}

    fn wants_seal(&self) {
        self.steps.lock().push(SourceCall::Sealing);
    }

    fn rewritten(&self, _: u64) {
        self.steps.lock().push(SourceCall::Rewritten);
        if let Some(segment) = self.settles.lock().take() {
            segment.settle();
        }
    }

    fn failed(&self, error: &CheckpointError) {
        panic!("{error}");
    }

    fn found_damage(&self, id: &MessageId, what: &str) {
        panic!("{id}: {what}");
    }

    fn rebuilt(&self, messages: u64, _: Duration) {
        self.steps.lock().push(SourceCall::Rebuilt(messages));
    }

    fn found_loss(&self, messages: u64, _: &str) {
        self.steps.lock().push(SourceCall::Lost(messages));
    }
}

impl PoolEvents for Reports {
    fn segment_free(&self) {}

    fn prewrite_failed(&self, error: &io::Error) {
        panic!("{error}");
    }
}

fn index_of(engine: &Arc<dyn IndexEngine>, dir: &Path) -> DiskIndex {
    DiskIndex::new(&dir.join("index"), engine.clone())
}

struct CheckpointBench {
    checkpointer: Checkpointer,
    requests: Arc<CheckpointRequests>,
    writer: Writer,
    index: Arc<TestSource>,
    /// The appended records that are not synced yet.
    appended: BTreeMap<u64, (MessageId, Appended)>,
    reports: Arc<Reports>,
    disk: TestStorage,
    engine: Arc<dyn IndexEngine>,
    dir: TempDir,
}

#[derive(Debug, Clone, Copy)]
enum Appended {
    Version,
    Abort,
}

impl CheckpointBench {
    /// Creates a bench with a complete, empty index.
    fn new(engine: Arc<dyn IndexEngine>) -> Self {
        Self::with(engine, TestSource::default())
    }

    fn with(engine: Arc<dyn IndexEngine>, index: TestSource) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (reports, index) = (Arc::<Reports>::default(), Arc::new(index));
        let settings = PoolSettings {
            dir: dir.path().to_owned(),
            spool: SPOOL,
            segment_size: MIB,
            capacity: 8 * MIB,
            keep_free: 0,
            next_slot: 0,
        };
        let pool = Arc::new(Pool::new(Arc::new(TestStorage::default()), settings, reports.clone()));
        let segments = Arc::new(Segments::new(pool, SPOOL, 1));
        let durable = Arc::new(index_of(&engine, dir.path()));
        durable.begin().unwrap();
        durable.finish();
        let disk = TestStorage::default();
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let room = Arc::new(DiskRoom::new(Arc::new(TestStorage::default()), dir.path(), 0));
        let liveness =
            LivenessLog::open(storage.clone(), dir.path(), Default::default(), &|_| true).unwrap().0;
        let presence = Presence::anywhere(storage.clone(), dir.path(), segments.clone(), durable.clone());
        let (requests, inbox) = checkpoint_requests();
        let checkpointer = Checkpointer {
            segments: segments.clone(),
            durable,
            presence: Arc::new(presence),
            source: index.clone(),
            inbox,
            events: reports.clone(),
            manifest_file: Arc::new(ManifestFile::new(storage, dir.path())),
            manifest: Manifest::default(),
            liveness,
            rebuilding: Arc::default(),
            ballast: Arc::new(Ballast::new(Arc::new(TestStorage::default()), room, dir.path(), 0)),
            settings: Arc::new(ArcSwap::from_pointee(CheckpointSettings {
                checkpoint_after: Duration::ZERO,
            })),
            retry: Retry::default(),
            dead: DeadSegments::default(),
            reclaim: ReclaimPolicy::default(),
            compaction: None,
            cut_up_to: 0,
            is_manifest_in_doubt: false,
        };
        let writer = Writer::new(segments, 1);
        Self { checkpointer, requests, writer, index, appended: BTreeMap::new(), reports, disk, engine, dir }
    }

    /// Appends a message with these bytes. Returns its sequence number.
    fn put_bytes(&mut self, id: MessageId, data: Vec<u8>) -> u64 {
        let crc = payload_crc(&data);
        self.append(id, JournalChange::Put(Arc::new(data.into_boxed_slice()), crc), Appended::Version)
    }

    /// Appends a message that differs from every other one.
    fn put(&mut self, id: MessageId) -> u64 {
        let next = self.writer.last_seq() + 1;
        self.put_bytes(id, vec![next.to_le_bytes()[0]; 100 + usize::try_from(next % 50).unwrap()])
    }

    /// Appends new messages.
    fn put_new<const N: usize>(&mut self) -> [MessageId; N] {
        ids().map(|id| {
            self.put(id);
            id
        })
    }

    fn remove(&mut self, id: MessageId) {
        self.append(id, JournalChange::Remove, Appended::Version);
    }

    fn abort(&mut self, id: MessageId, of: u64) {
        self.append(id, JournalChange::Abort(of), Appended::Abort);
    }

    fn append(&mut self, id: MessageId, change: JournalChange, appended: Appended) -> u64 {
        let seq = self.writer.append(id, change);
        self.appended.insert(seq, (id, appended));
        seq
    }

    /// Makes a new segment active, in which nothing lives.
    fn activate(&self) -> Arc<Segment> {
        let segments = &self.checkpointer.segments;
        segments.activate(segments.pool().allocate(MIB).unwrap(), Role::Journal, false).0
    }

    /// Seals the active segment, so that the next checkpoint takes it. Returns its generation.
    fn seal(&mut self) -> u64 {
        let pool = self.checkpointer.segments.pool();
        while pool.free() <= RESERVED {
            pool.give(pool.allocate(MIB).unwrap());
        }
        self.writer.write().unwrap();
        let generation = self.writer.active_generation().unwrap();
        self.writer.seal();
        let synced = self.writer.sync().unwrap();
        for durable in synced.records {
            let (id, appended) = self.appended.remove(&durable.seq).unwrap();
            let mut versions = self.index.versions.lock();
            let of_id = versions.entry(id).or_default();
            match appended {
                Appended::Version => of_id.push(durable.newest),
                Appended::Abort => drop(of_id.pop()),
            }
            if of_id.is_empty() {
                versions.remove(&id);
            }
        }
        synced.finished.iter().for_each(|segment| segment.settle());
        generation
    }

    /// Seals the active segment, and checkpoints everything.
    fn checkpoint(&mut self) -> u64 {
        let generation = self.seal();
        self.checkpointer.checkpoint(generation).unwrap();
        generation
    }

    /// Rewrites every segment with dead records.
    fn compact(&mut self) {
        let before = self.checkpointer.segments.next_generation();
        while self.checkpointer.collect_garbage_round(true, before).unwrap() > 0 {}
    }

    fn steps(&self) -> Vec<SourceCall> {
        std::mem::take(&mut self.reports.steps.lock())
    }

    fn generations(&self) -> Vec<u64> {
        self.checkpointer.segments.all().iter().map(|segment| segment.generation).collect()
    }

    /// Returns the records in the index.
    fn indexed(&self) -> BTreeMap<Key, Record> {
        let mut found = BTreeMap::new();
        let visit = &mut |key, record| found.insert(key, record).is_none();
        self.checkpointer.durable.scan_all(visit).unwrap();
        found
    }

    /// Reads every checkpointed message through the index.
    fn messages(&self) -> BTreeMap<MessageId, Vec<u8>> {
        let read = |(key, record): (Key, Record)| {
            let segment = self.checkpointer.segments.get(record.generation).unwrap();
            let (id, place) = (key.message(), place_of_record(&record));
            (id, segment.read_put(self.checkpointer.segments.salt(), &id, place).unwrap().0)
        };
        self.indexed().into_iter().map(read).collect()
    }

    /// Deletes the log, and opens it as the next run does. Returns the reported damage.
    fn lose_log(&mut self) -> Vec<String> {
        std::fs::remove_file(self.checkpointer.liveness.path()).unwrap();
        let (storage, position) = (Arc::new(self.disk.clone()), self.checkpointer.manifest.liveness);
        let opened = LivenessLog::open(storage, self.dir.path(), position, &|_| true).unwrap();
        self.checkpointer.liveness = opened.0;
        opened.1.damage().to_vec()
    }

    /// Returns the ids of the messages, each of which can be read.
    fn ids_indexed(&self) -> Vec<MessageId> {
        self.messages().into_keys().collect()
    }

    /// Returns the generations that the manifest retains.
    fn retained(&self) -> Vec<u64> {
        self.checkpointer.manifest.retained.keys().copied().collect()
    }

    /// Asserts that index, manifest and log agree.
    fn assert_consistent(&self) {
        let mut tally = Tally::default();
        let mut lists = BTreeMap::<u64, Vec<u64>>::new();
        for (key, record) in self.indexed() {
            tally.add(&key, &record.to_bytes());
            lists.entry(record.generation).or_default().push(record.offset);
        }
        lists.values_mut().for_each(|offsets| offsets.sort_unstable());
        let manifest = &self.checkpointer.manifest;
        assert_eq!(manifest.tally, tally);
        let live: BTreeMap<u64, u64> =
            manifest.retained.iter().map(|(generation, segment)| (*generation, segment.live)).collect();
        assert_eq!(live, lists.iter().map(|(generation, list)| (*generation, list.len() as u64)).collect());
        let is_retained = |generation: u64| manifest.retained.contains_key(&generation);
        let liveness =
            LivenessLog::look(&OsStorage, self.dir.path(), manifest.liveness, &is_retained).unwrap();
        assert_eq!(liveness.damage(), <[String; 0]>::default());
        for (generation, list) in lists {
            assert!(liveness.is_exact(generation), "{generation}");
            assert_eq!(liveness.of(generation).unwrap().collect::<Vec<_>>(), list, "{generation}");
        }
    }

    /// Rebuilds the index, and asserts that index, manifest and log are unchanged.
    fn assert_rebuilds(&mut self) {
        let (manifest, indexed) = (self.checkpointer.manifest.clone(), self.indexed());
        assert_eq!(self.checkpointer.rebuilding.progress(), None);
        self.checkpointer.rebuild().unwrap();
        assert_eq!(self.checkpointer.rebuilding.progress(), None);
        assert!(self.checkpointer.durable.is_whole());
        assert_eq!(self.indexed(), indexed);
        assert_eq!(self.checkpointer.manifest, manifest);
        assert_eq!(self.checkpointer.manifest_file.read().unwrap().as_ref(), Some(&manifest));
        self.assert_consistent();
    }
}

fn ids<const N: usize>() -> [MessageId; N] {
    std::array::from_fn(|_| MessageId::random())
}
