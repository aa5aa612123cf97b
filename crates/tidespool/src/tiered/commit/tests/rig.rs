//! A test rig: a committer without threads, its callers, and a model of the expected state.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::Config;
use crate::checkpoint::{Ballast, Presence};
use crate::directory::SpoolNames;
use crate::index::{DiskIndex, in_memory};
use crate::journal::{
    Checkpointed, FoundRecord, FreeSegment, PAGE, Pool, PoolSettings, RecordKind, Segments, Writer, recover,
    salt_of, scan,
};
use crate::memory::{Dirty, Lane, Permit, Ticket};
use crate::message_id::MessageId;
use crate::storage::{DiskRoom, OsStorage, Space, Storage, TestCall, TestStorage};
use crate::tiered::calls::lookup;
use crate::tiered::calls::remove::take_out;
use crate::tiered::commit::in_flight::Taken;
use crate::tiered::commit::plan::Plan;
use crate::tiered::commit::{Committer, Syncer, syncer};
use crate::tiered::state::{
    Arrival, CommitState, Outcome, Part, Protection, Reports, Shared, SharedParts, SpoolHome, commit_queue,
};

pub(super) const SMALL: usize = 100;
/// The sync of four of these is handed over to the syncer.
pub(super) const MIDDLE: usize = 40 << 10;
/// Larger than a segment.
pub(super) const LARGE: usize = 300 << 10;

/// The failures of the disk.
#[derive(Debug, Clone, Default)]
pub(super) struct RigDisk {
    pub(super) fails_writes: Arc<AtomicBool>,
    /// Fails only the first batch in a segment. The preparation of the segment succeeds.
    pub(super) fails_batches: Arc<AtomicBool>,
    pub(super) fails_syncs: Arc<AtomicBool>,
    /// No segment can be made.
    pub(super) fails_creating: Arc<AtomicBool>,
    is_full: Arc<AtomicBool>,
    /// A caller that gives up when the free space is asked for.
    gives_up: Arc<Mutex<Option<Arc<CommitState>>>>,
}

impl RigDisk {
    fn enter(&self, call: TestCall) -> io::Result<()> {
        let is_set = |flag: &AtomicBool| flag.load(Ordering::SeqCst);
        let fails = match call {
            // The first batch is written together with the header page.
            TestCall::Write { offset: 0, end } if end > PAGE && is_set(&self.fails_batches) => true,
            TestCall::Write { .. } => is_set(&self.fails_writes),
            TestCall::Sync => is_set(&self.fails_syncs),
            TestCall::Space => {
                if let Some(state) = &*self.gives_up.lock() {
                    state.abandon();
                }
                false
            }
            TestCall::Allocate(_) => is_set(&self.fails_creating),
            TestCall::Open | TestCall::Read { .. } => false,
        };
        match fails {
            true if is_set(&self.is_full) => Err(Errno::NOSPC.into()),
            true => Err(io::Error::other("of this test")),
            false => Ok(()),
        }
    }
}

/// A store or removal, in the order of versions. A removal has no value.
struct DiskEvent {
    value: Option<u64>,
    /// The position in [`CommitterRig::waiting`], for a store that waits for its commit.
    waiting: Option<usize>,
}

/// A store that waits for its commit, or waited.
struct WaitingCaller {
    state: Arc<CommitState>,
    outcome: Option<Outcome>,
}

/// A flush request.
struct RequestedFlush {
    at: Instant,
    /// The number of events of each id at the request.
    before: BTreeMap<MessageId, usize>,
    receiver: oneshot::Receiver<()>,
}

pub(super) struct CommitterRig {
    pub(super) shared: Arc<Shared>,
    pub(super) committer: Committer,
    pub(super) disk: RigDisk,
    files: TestStorage,
    syncer: Arc<Syncer>,
    events: BTreeMap<MessageId, Vec<DiskEvent>>,
    waiting: Vec<WaitingCaller>,
    /// Free segments that the committer can't get.
    held: Vec<FreeSegment>,
    flushes: Vec<RequestedFlush>,
    /// The ids and values of each transaction.
    transactions: Vec<Vec<(MessageId, u64)>>,
    next_value: u64,
    dir: TempDir,
}

impl CommitterRig {
    pub(super) fn new() -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        let (dir, disk) = (tempfile::tempdir().unwrap(), RigDisk::default());
        let config = Config::new(dir.path()).dirty_expire(HOUR).memory_budget(1 << 30).dirty_limit(256 << 20);
        let failing = disk.clone();
        let files = TestStorage::with(move |_, call| failing.enter(call));
        let storage: Arc<dyn Storage> = Arc::new(files.clone());
        let (commit_queue, receiver) = commit_queue();
        storage.create_dir(&dir.path().join("journal")).unwrap();
        let settings = PoolSettings::new(dir.path().join("journal"), [7; 16], 256 << 10, 1 << 30);
        let room = Arc::new(DiskRoom::new(storage.clone(), dir.path(), 0));
        let ballast = Arc::new(Ballast::new(storage.clone(), room.clone(), dir.path(), 0));
        let reports = Arc::new(Reports::new(commit_queue.clone(), Arc::default(), room));
        let pool = Arc::new(Pool::new(storage.clone(), settings, reports.clone()));
        let segments = Arc::new(Segments::new(pool, [7; 16], 1));
        let disk_index = Arc::new(DiskIndex::new(&dir.path().join("index"), in_memory()));
        disk_index.begin().unwrap();
        disk_index.finish();
        let presence = Presence::anywhere(storage.clone(), dir.path(), segments.clone(), disk_index.clone());
        let protection = Protection::new(storage.clone(), dir.path(), [7; 16], commit_queue);
        let protection = Arc::new(protection);
        let mut names = SpoolNames::default();
        names.add_found(MessageId::random().spool());
        let parts = SharedParts {
            opened_as: dir.path().to_owned(),
            names,
            home: Arc::new(SpoolHome::in_no_directory(storage.clone(), dir.path())),
            ballast,
            storage,
            reports,
            segments: segments.clone(),
            disk_index,
            presence: Arc::new(presence),
            protection,
            crash_log_size: 0,
            first_seq: 1,
            worker_dead: Arc::default(),
            config,
        };
        let (shared, syncer) = (Arc::new(Shared::new(parts)), Arc::<Syncer>::default());
        let writer = Writer::new(segments, 1);
        let mut committer = Committer::new(shared.clone(), syncer.clone(), receiver, writer);
        committer.plan = Plan::new((Duration::ZERO, Duration::ZERO));
        let mut rig = Self {
            shared,
            committer,
            disk,
            files,
            syncer,
            events: BTreeMap::new(),
            waiting: Vec::new(),
            held: Vec::new(),
            flushes: Vec::new(),
            transactions: Vec::new(),
            next_value: 1,
            dir,
        };
        rig.feed();
        rig
    }

    fn note(&mut self, id: MessageId, value: Option<u64>, waiting: Option<usize>) {
        self.events.entry(id).or_default().push(DiskEvent { value, waiting });
    }

    fn put(&mut self, len: usize, lane: Lane) -> (u64, Arc<Dirty>) {
        let value = self.next_value;
        self.next_value += 1;
        let mut data = vec![0; len];
        data[..8].copy_from_slice(&value.to_le_bytes());
        let permit: Permit = self.shared.budget.try_admit(len as u64, lane).unwrap();
        (value, Arc::new(Dirty::put(Arc::new(data.into_boxed_slice()), None, permit)))
    }

    /// A store that is acknowledged from memory.
    pub(super) fn store(&mut self, id: MessageId) {
        let (value, dirty) = self.put(SMALL, Lane::Memory);
        let ticket = Ticket { version: self.shared.table.next_version(), at: Instant::now(), id };
        self.shared.table.lock(&id).pending.insert(ticket, dirty, None);
        self.note(id, Some(value), None);
    }

    /// Two such stores at the same time. The slow one gets its version first and its time last.
    pub(super) fn store_at_once(&mut self, slow: MessageId, quick: MessageId) {
        let [first, second] = [slow, quick].map(|id| {
            let (value, dirty) = self.put(SMALL, Lane::Memory);
            (id, value, dirty, self.shared.table.next_version())
        });
        for (id, value, dirty, version) in [second, first] {
            let at = Instant::now();
            self.shared.table.lock(&id).pending.insert(Ticket { version, at, id }, dirty, None);
            self.note(id, Some(value), None);
            if id == quick {
                // Its ticket is drained before the other store is inserted.
                let executor = &mut self.committer.executor;
                executor.intake.refill(&self.shared.table, &executor.receiver, Vec::new(), Some(at));
            }
        }
    }

    /// A store that waits for its commit.
    pub(super) fn wait(&mut self, id: MessageId, len: usize) {
        self.accept(&[(id, len)]);
    }

    /// A transaction of several stores.
    pub(super) fn accept(&mut self, messages: &[(MessageId, usize)]) {
        let (ids, stores): (Vec<MessageId>, Vec<(u64, Arc<Dirty>)>) =
            messages.iter().map(|(id, len)| (*id, self.put(*len, Lane::Disk))).unzip();
        let (values, dirty): (Vec<u64>, Vec<Arc<Dirty>>) = stores.into_iter().unzip();
        let (state, at) = (Arc::<CommitState>::default(), Instant::now());
        let mut shards = self.shared.table.lock_all(ids.iter());
        ids.iter().for_each(|id| shards.get(id).unwrap().pending.set_under_way(*id));
        let count = ids.len();
        self.shared.commit_queue.arrive(|| {
            let first = self.shared.table.next_versions(count as u64);
            let stores = ids.iter().zip(dirty).zip(first..).enumerate();
            stores.map(|(number, ((id, dirty), version))| {
                let part = Part::of(number, count);
                Arrival { id: *id, version, dirty, at, state: state.clone(), part }
            })
        });
        drop(shards);
        self.waiting.push(WaitingCaller { state, outcome: None });
        for (id, value) in ids.iter().zip(&values) {
            self.note(*id, Some(*value), Some(self.waiting.len() - 1));
        }
        self.transactions.push(ids.into_iter().zip(values).collect());
    }

    /// The caller of the `nth` waiting store gives up.
    pub(super) fn give_up(&mut self, nth: usize) {
        let waiting: Vec<_> = self.waiting.iter().filter(|waiting| waiting.outcome.is_none()).collect();
        if let Some(one) = waiting.get(nth % waiting.len().max(1))
            && !one.state.cancel()
            && one.state.abandon()
        {
            self.shared.commit_queue.note_abandoned();
        }
    }

    /// The caller of the `nth` waiting store gives up when the free space is asked for.
    pub(super) fn give_up_at_report(&mut self, nth: usize) {
        *self.disk.gives_up.lock() = Some(self.waiting[nth].state.clone());
    }

    /// The outcome of the `nth` waiting store.
    pub(super) fn outcome(&self, nth: usize) -> Option<Outcome> {
        self.waiting[nth].outcome
    }

    pub(super) fn remove(&mut self, id: MessageId) {
        let spool = self.shared.spools.all()[0].clone();
        take_out(&self.shared, &spool, id.id()).unwrap();
        self.note(id, None, None);
    }

    pub(super) fn flush(&mut self) {
        let before = self.events.iter().map(|(id, events)| (*id, events.len())).collect();
        self.flushes.push(RequestedFlush {
            at: Instant::now(),
            before,
            receiver: self.shared.commit_queue.flush(false),
        });
    }

    pub(super) fn turn(&mut self) {
        self.gather();
        self.commit();
    }

    /// Runs the first half of a turn.
    pub(super) fn gather(&mut self) {
        let executor = &self.committer.executor;
        let work = executor.receiver.wait(Some(Instant::now()), executor.writer.is_syncing());
        if let Err(error) = self.committer.gather(work) {
            self.committer.fail(&error);
        }
        self.run_steps();
    }

    /// Runs the second half of a turn.
    pub(super) fn commit(&mut self) {
        if self.committer.plan.is_failing() || self.shared.segments.pool().free() == 0 {
            // The committer may block on the syncer, which has no thread here.
            self.end_syncs();
        }
        self.committer.plan.begin(&self.committer.executor);
        self.run_steps();
        self.check_flushes();
    }

    fn run_steps(&mut self) {
        self.committer.run_steps();
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.outcome.is_none()) {
            waiting.outcome = waiting.state.outcome().and_then(Result::ok);
        }
    }

    /// Runs the queued syncs. The committer takes their results at its next turn.
    pub(super) fn end_syncs(&mut self) {
        while let Some(job) = self.syncer.try_next() {
            self.shared.commit_queue.synced(syncer::run(job, &self.shared));
        }
    }

    /// Leaves no free space, and makes writes that fail say so. Or ends both.
    pub(super) fn set_full(&mut self, is_full: bool) {
        self.disk.is_full.store(is_full, Ordering::SeqCst);
        let full = Space { total_bytes: 1 << 40, ..Space::default() };
        self.files.set_space(is_full.then_some(full));
    }

    /// Takes all free segments.
    pub(super) fn starve(&mut self) {
        while let Some(free) = self.shared.segments.pool().take(0) {
            self.held.push(free);
        }
    }

    /// Returns one of the segments of [`starve`](Self::starve).
    pub(super) fn feed_one(&mut self) {
        let free = self.held.pop().unwrap();
        self.shared.segments.pool().give(free);
    }

    /// Returns the segments of [`starve`](Self::starve), and fills the pool as its thread does.
    pub(super) fn feed(&mut self) {
        self.held.drain(..).for_each(|free| self.shared.segments.pool().give(free));
        let fails = self.disk.fails_writes.swap(false, Ordering::SeqCst);
        let syncs = self.disk.fails_syncs.swap(false, Ordering::SeqCst);
        self.shared.segments.pool().fill().unwrap();
        self.disk.fails_writes.store(fails, Ordering::SeqCst);
        self.disk.fails_syncs.store(syncs, Ordering::SeqCst);
    }

    /// Checks the completed flushes: nothing is dirty that was dirty at the request, and the
    /// durable version of each id is not older than its version at the request.
    pub(super) fn check_flushes(&mut self) {
        let intake = self.committer.executor.intake.next_ticket().map(|ticket| ticket.at);
        let taken = self.committer.executor.in_flight.taken().iter().filter_map(|taken| match taken {
            Taken::Ticketed(ticket, _) => Some(ticket.at),
            _ => None,
        });
        let oldest = taken.chain(intake).chain(self.shared.table.oldest_dirty()).min();
        let mut flushes = std::mem::take(&mut self.flushes);
        for flush in flushes.extract_if(.., |flush| flush.receiver.try_recv().is_ok()) {
            assert!(oldest.is_none_or(|oldest| oldest > flush.at), "a flush returned too early");
            for (id, before) in flush.before {
                self.check_durable(&id, before);
            }
        }
        self.flushes = flushes;
    }

    /// Checks that the durable version of `id` is not older than the last of its first `before`
    /// events that took effect at once.
    fn check_durable(&self, id: &MessageId, before: usize) {
        let events = &self.events[id];
        let Some(last) = events[..before].iter().rposition(|event| event.waiting.is_none()) else { return };
        let durable = self.durable(id);
        let is_there = events[last..].iter().any(|event| event.value == durable);
        assert!(is_there, "{id} is durable as {durable:?} after a flush");
    }

    /// Returns the version of `id` that a crash would leave.
    pub(super) fn durable(&self, id: &MessageId) -> Option<u64> {
        let place = self.shared.table.lock(id).index.get(id)?.place?;
        let data = lookup::read(&self.shared, id, place).unwrap().unwrap();
        Some(u64::from_le_bytes(data[..8].try_into().unwrap()))
    }

    /// True if all requested flushes have completed.
    pub(super) fn all_flushes_are_done(&self) -> bool {
        self.flushes.is_empty()
    }

    /// Checks that a load of each id returns the newest version whose store returned `Ok`.
    pub(super) fn check_loads(&self) {
        let stored = |event: &&DiskEvent| {
            let outcome = |nth: usize| self.waiting[nth].outcome;
            event.waiting.is_none_or(|nth| !matches!(outcome(nth), None | Some(Outcome::Refused)))
        };
        for (id, events) in &self.events {
            let expected = events.iter().rev().find(stored).and_then(|event| event.value);
            let found = lookup::on_disk(&self.shared, id).unwrap();
            let found = found.map(|found| u64::from_le_bytes(found.data[..8].try_into().unwrap()));
            assert_eq!(found, expected, "of {id}");
        }
    }

    /// Checks what a kill at this moment would leave in the journal. If one message of a
    /// transaction is the one of the transaction, each other one is, too, or is a later one.
    pub(super) fn check_recovery(&self) {
        let files: Arc<dyn Storage> = Arc::new(OsStorage);
        let journal = self.dir.path().join("journal");
        let found = recover(&files, &journal, [7; 16], &Checkpointed::default(), false).unwrap();
        let value_of = |id: &MessageId| {
            let place = found.replayed.newest.get(id)?.place?;
            let segment = found.journal.iter().find(|segment| segment.generation == place.generation)?;
            let (data, _) = segment.read_put(salt_of([7; 16]), id, place).unwrap();
            Some(u64::from_le_bytes(data[..8].try_into().unwrap()))
        };
        for transaction in &self.transactions {
            let Some((one, _)) = transaction.iter().find(|(id, value)| value_of(id) == Some(*value)) else {
                continue;
            };
            for (id, value) in transaction {
                let found = value_of(id);
                let mut events = self.events[id].iter().skip_while(|event| event.value != Some(*value));
                assert!(events.any(|event| event.value == found), "{one} without {id}, which is {found:?}");
            }
        }
    }

    /// Returns for each abort in the journal, in their order, whether its transaction continues.
    pub(super) fn aborts(&self) -> Vec<bool> {
        let mut found = BTreeMap::new();
        for segment in self.shared.segments.all() {
            let salt = self.shared.segments.salt();
            let visit = &mut |record: FoundRecord| {
                if record.header.kind == RecordKind::Abort {
                    found.insert(record.header.seq, record.header.continues);
                }
            };
            scan(&*segment.file, salt, segment.generation, visit).unwrap();
        }
        found.into_values().collect()
    }

    /// Runs turns until everything is durable, on a disk that works. Checks the loads then.
    pub(super) fn drain(&mut self) {
        for fails in [
            &self.disk.fails_writes,
            &self.disk.fails_batches,
            &self.disk.fails_syncs,
            &self.disk.fails_creating,
        ] {
            fails.store(false, Ordering::SeqCst);
        }
        self.set_full(false);
        for _ in 0..1_000 {
            self.feed();
            self.end_syncs();
            self.flush();
            self.turn();
            if self.committer.executor.is_drained() {
                self.check_loads();
                return;
            }
        }
        panic!("the committer does not drain");
    }
}
