//! The plan alone, without files: a model of the queues and of the journal executes its steps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::sync::oneshot;

use crate::tiered::commit::flushes::Drains;
use crate::tiered::commit::plan::{Appended, Drain, Facts, Failure, PAUSES, Plan, Step};

const EXPIRE: Duration = Duration::from_secs(60);
/// Tickets in a batch.
const BATCH: usize = 2;

/// A record of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// A flushed version of an id.
    Flushed(usize, u64),
    /// A store that waits for its commit.
    Synced,
    /// A synced store whose caller has given up.
    Abandoned,
    Abort,
    Mark,
}

/// A version that is dirty.
#[derive(Debug, Clone, Copy)]
struct DirtyVersion {
    version: u64,
    at: Instant,
    has_ticket: bool,
}

/// A flush request and what it has to wait for.
#[derive(Debug)]
struct Expected {
    versions: BTreeMap<usize, u64>,
    aborts: usize,
    completed: oneshot::Receiver<()>,
}

/// The time of the model. Its start is late enough for the plan to subtract from it.
#[derive(Debug)]
struct ModelClock(Instant);

impl Default for ModelClock {
    fn default() -> Self {
        Self(Instant::now() + EXPIRE * 10)
    }
}

#[derive(Debug, Default)]
struct World {
    clock: ModelClock,
    // The queues.
    arrivals: usize,
    dirty: BTreeMap<usize, DirtyVersion>,
    /// Ids, versions and drains.
    tickets: VecDeque<(usize, u64, u64)>,
    /// Versions that replaced a due one. They are written whatever replaces them.
    pledged: BTreeSet<u64>,
    /// Pledged versions that were replaced before they had a ticket.
    replaced_pledges: Vec<(usize, u64)>,
    drains: u64,
    replaced: Option<(Instant, u64)>,
    aborts: usize,
    is_dirty: bool,
    /// Much of the limit is used; more than that; more than the limit.
    is_urgent: bool,
    is_flush_urgent: bool,
    is_over_limit: bool,
    /// The first ticket waits for another version of its id.
    has_other_under_way: bool,
    /// The shutdown has begun.
    is_ending: bool,
    starved: bool,
    kicked: bool,
    flushes: Vec<oneshot::Sender<()>>,
    seal: bool,
    // The journal.
    entries: VecDeque<Entry>,
    written: usize,
    jobs: VecDeque<usize>,
    last: u64,
    durable: u64,
    has_room: bool,
    has_settled: bool,
    may_seal: bool,
    appended: Appended,
    mark_at: Option<Instant>,
    completed: Vec<Entry>,
    // What happened.
    published: BTreeMap<usize, u64>,
    aborted: usize,
    abandoned: usize,
    expected: Vec<Expected>,
    version: u64,
    /// The failures of the next writes and syncs.
    failures: VecDeque<Option<Failure>>,
    /// The failure of this turn.
    failed: Option<Failure>,
    /// A failed record has no place until `WriteAgain`.
    in_doubt: bool,
    /// The last turn failed.
    failing: bool,
    /// Pauses since a batch was last written and synced.
    pauses: u32,
    sealed: usize,
    /// A sync has returned the sealed segment.
    is_finished: bool,
}

impl World {
    fn new() -> Self {
        Self { has_room: true, may_seal: true, is_finished: true, ..Self::default() }
    }

    fn store(&mut self, id: usize) {
        self.version += 1;
        let version = DirtyVersion { version: self.version, at: self.clock.0, has_ticket: false };
        let replaced = self.dirty.insert(id, version);
        let lost = replaced.filter(|old| !old.has_ticket && self.pledged.contains(&old.version));
        self.replaced_pledges.extend(lost.map(|old| (id, old.version)));
        self.kicked |= !std::mem::replace(&mut self.is_dirty, true);
    }

    fn flush(&mut self, seal: bool) {
        let (done, completed) = oneshot::channel();
        let mut versions: BTreeMap<_, _> =
            self.dirty.iter().map(|(id, dirty)| (*id, dirty.version)).collect();
        for entry in self.entries.iter().chain(&self.completed) {
            if let Entry::Flushed(id, version) = entry {
                let required = versions.entry(*id).or_default();
                *required = (*required).max(*version);
            }
        }
        self.flushes.push(done);
        self.seal |= seal;
        self.expected.push(Expected { versions, aborts: self.abandoned, completed });
    }

    fn abandon(&mut self) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| **entry == Entry::Synced) {
            *entry = Entry::Abandoned;
            (self.aborts, self.abandoned, self.kicked) = (self.aborts + 1, self.abandoned + 1, true);
        }
    }

    fn append(&mut self, entry: Entry) {
        self.last += 1;
        self.entries.push_back(entry);
    }

    /// As `Intake::refill`.
    fn refill(&mut self, cutoff: Option<Instant>) {
        let Some(cutoff) = self.replaced.take().map(|(at, _)| at).max(cutoff) else { return };
        self.drains += 1;
        let pledges = std::mem::take(&mut self.replaced_pledges);
        self.tickets.extend(pledges.into_iter().map(|(id, version)| (id, version, self.drains)));
        for (id, dirty) in self.dirty.iter_mut().filter(|(_, dirty)| !dirty.has_ticket && dirty.at <= cutoff)
        {
            dirty.has_ticket = true;
            self.tickets.push_back((*id, dirty.version, self.drains));
        }
    }

    fn append_batch(&mut self) {
        self.appended = Appended::default();
        if self.written == self.entries.len() {
            let had_work = self.has_work();
            let before = self.entries.len();
            if self.has_room && self.aborts > 0 {
                (0..std::mem::take(&mut self.aborts)).for_each(|_| self.append(Entry::Abort));
            } else if self.has_room {
                (0..std::mem::take(&mut self.arrivals)).for_each(|_| self.append(Entry::Synced));
                self.appended.waits_for_other = self.has_other_under_way && self.has_tickets();
                if !self.appended.waits_for_other {
                    self.take_tickets();
                }
            }
            let is_stuck = had_work && self.entries.len() == before && self.has_work();
            self.appended.blocked = is_stuck && !self.appended.waits_for_other;
        }
        self.appended.aborts_left = self.aborts > 0;
    }

    fn take_tickets(&mut self) {
        let end = self.entries.len() + BATCH;
        while self.entries.len() < end
            && let Some((id, version, drain)) = self.tickets.pop_front()
        {
            let newest = self.dirty.get(&id).copied();
            if newest.is_some_and(|newest| newest.version == version) {
                self.dirty.remove(&id);
            } else if !self.pledged.remove(&version) {
                let at = newest.map_or(self.clock.0, |newest| newest.at);
                let before = self.replaced.unwrap_or((at, drain));
                self.replaced = Some((before.0.max(at), before.1.min(drain)));
                self.pledged.extend(newest.map(|newest| newest.version));
                continue;
            }
            self.append(Entry::Flushed(id, version));
        }
    }

    fn fallible(&mut self) -> Result<(), Failure> {
        let Some(failure) = self.failures.pop_front().flatten() else { return Ok(()) };
        if failure != Failure::NoSegment {
            (self.written, self.in_doubt) = (0, true);
            self.jobs.clear();
        }
        Err(failure)
    }

    /// As `fallible`, for a step that needs no segment.
    fn need_disk(&mut self) -> Result<(), Failure> {
        self.fallible().or_else(|failure| if failure == Failure::NoSegment { Ok(()) } else { Err(failure) })
    }

    fn write(&mut self) -> Result<(), Failure> {
        assert!(!self.in_doubt, "a write before the syncs of the failed segment were given up");
        if self.written < self.entries.len() {
            let result = self.fallible();
            if result == Err(Failure::NoSegment) {
                self.written = self.written.max(self.entries.len() / 2);
            }
            result?;
        }
        self.written = self.entries.len();
        Ok(())
    }

    fn end_sync(&mut self, records: usize) -> Result<(), Failure> {
        self.need_disk()?;
        self.is_finished = true;
        let synced: Vec<_> = self.entries.drain(..records).collect();
        if synced.iter().any(|entry| *entry != Entry::Mark) {
            self.mark_at = Some(self.clock.0 + EXPIRE);
        }
        self.completed.extend(synced);
        (self.written, self.durable) = (self.written - records, self.durable + records as u64);
        Ok(())
    }

    /// The result of the first sync that was handed over.
    fn end_job(&mut self) -> Result<(), Failure> {
        let Some(records) = self.jobs.pop_front() else { return Ok(()) };
        self.kicked = true;
        self.end_sync(records)
    }

    fn sync(&mut self) -> Result<(), Failure> {
        while !self.jobs.is_empty() {
            self.end_job()?;
        }
        self.end_sync(self.written)?;
        self.publish();
        Ok(())
    }

    fn publish(&mut self) {
        for entry in self.completed.drain(..) {
            match entry {
                Entry::Flushed(id, version) => {
                    let before = self.published.insert(id, version).unwrap_or(0);
                    assert!(before < version, "an older version is published last");
                }
                Entry::Abort => self.aborted += 1,
                Entry::Synced | Entry::Abandoned | Entry::Mark => {}
            }
        }
    }

    fn execute(&mut self, step: Step) -> Result<(), Failure> {
        if self.failed.is_some() {
            let may = match step {
                Step::WriteAgain | Step::FreeDiskSpace | Step::RequestCheckpoint | Step::Pause { .. } => true,
                Step::Sync => self.failed == Some(Failure::NoSegment),
                _ => false,
            };
            assert!(may, "{step:?} after {:?}", self.failed);
        }
        match step {
            Step::Append => self.append_batch(),
            Step::Write => self.write()?,
            Step::Sync => {
                self.sync()?;
                if self.failed.is_none() {
                    self.pauses = 0;
                }
            }
            Step::HandOver => {
                let records = self.unsubmitted().0;
                assert!(records > 0 && self.written == self.entries.len());
                assert!(!self.failing, "a sync after a failure runs on the committer's thread");
                self.jobs.push_back(records);
            }
            Step::Publish => {
                if self.failed.is_none() && self.jobs.is_empty() {
                    self.pauses = 0;
                }
                self.publish();
            }
            Step::Seal => {
                assert!(self.may_seal, "removals have no room");
                assert!(self.appended.blocked || self.flushes_are_appended(), "sealed too early");
                (self.sealed, self.is_finished) = (self.sealed + 1, false);
            }
            Step::Complete(flushes) => {
                flushes.into_iter().for_each(|done| done.send(()).unwrap());
                self.check_flushes();
            }
            Step::RequestCheckpoint => {
                let all_synced = self.failed.is_none() || self.written == 0;
                assert!(all_synced, "a checkpoint frees no segment whose records are not durable");
                self.has_room = true;
            }
            Step::Mark => {
                assert!(self.jobs.is_empty(), "a mark proves nothing while a sync is running");
                self.mark_at = None;
                self.append(Entry::Mark);
                self.need_disk()?;
                self.written = self.entries.len();
            }
            Step::WriteAgain => self.in_doubt = false,
            Step::FreeDiskSpace => assert_eq!(self.failed, Some(Failure::Disk { no_room: true })),
            Step::Pause { until, for_room } => {
                assert_eq!(for_room, self.failed == Some(Failure::NoSegment));
                let pause = PAUSES.0 * 2_u32.pow(self.pauses.min(20));
                assert_eq!(until - self.clock.0, pause.min(PAUSES.1));
                self.pauses += 1;
                self.clock.0 = until;
            }
        }
        Ok(())
    }

    /// The records of all flushes are in the journal.
    fn flushes_are_appended(&self) -> bool {
        let is_appended = |(id, version): (&usize, &u64)| {
            let is_it = |entry: &Entry| matches!(entry, Entry::Flushed(other, newer) if other == id && newer >= version);
            self.published.get(id) >= Some(version) || self.entries.iter().any(is_it)
        };
        self.expected.iter().flat_map(|flush| &flush.versions).all(is_appended)
    }

    fn check_flushes(&mut self) {
        for flush in self.expected.extract_if(.., |flush| flush.completed.try_recv().is_ok()) {
            for (id, version) in flush.versions {
                let published = self.published.get(&id).copied().unwrap_or(0);
                assert!(published >= version, "a flush completed without version {version} of {id}");
            }
            assert!(self.aborted >= flush.aborts, "a flush completed without an abort");
        }
    }
}

impl Facts for World {
    fn now(&self) -> Instant {
        self.clock.0
    }
    fn dirty_expire(&self) -> Duration {
        EXPIRE
    }
    fn is_syncing(&self) -> bool {
        !self.jobs.is_empty()
    }
    fn has_work(&self) -> bool {
        self.arrivals > 0 || !self.tickets.is_empty() || self.aborts > 0 || self.replaced.is_some()
    }
    fn has_tickets(&self) -> bool {
        !self.tickets.is_empty()
    }
    fn next_ticket_at(&self) -> Option<Instant> {
        self.tickets.front().and_then(|(id, ..)| self.dirty.get(id)).map(|dirty| dirty.at)
    }
    fn appended(&self) -> Appended {
        self.appended
    }
    fn unsynced(&self) -> usize {
        self.entries.len()
    }
    fn unsubmitted(&self) -> (usize, u64) {
        let records = self.entries.len() - self.jobs.iter().sum::<usize>();
        // Four records are worth handing over.
        (records, records as u64 * (64 << 10))
    }
    fn has_unsubmitted_changes(&self) -> bool {
        self.entries.iter().skip(self.jobs.iter().sum()).any(|entry| *entry != Entry::Mark)
    }
    fn sequence(&self) -> (u64, u64) {
        (self.last, self.durable)
    }
    fn mark_at(&self) -> Option<Instant> {
        self.mark_at
    }
    fn drains(&self) -> Drains {
        Drains {
            count: self.drains,
            reached: self.tickets.front().map_or(u64::MAX, |(.., drain)| *drain),
            first_replaced: self.replaced.map(|(_, drain)| drain),
        }
    }
    fn has_settled_segment(&self) -> bool {
        self.has_settled
    }
    fn may_seal(&self) -> bool {
        self.may_seal
    }
    fn is_dirty(&self) -> bool {
        self.is_dirty
    }
    fn is_urgent(&self) -> bool {
        self.is_urgent
    }
    fn is_over_limit(&self) -> bool {
        self.is_over_limit
    }
    fn is_flush_urgent(&self) -> bool {
        self.is_flush_urgent
    }
    fn oldest_dirty(&self) -> Option<Instant> {
        self.dirty.values().filter(|dirty| !dirty.has_ticket).map(|dirty| dirty.at).min()
    }
}

/// One turn, as `Committer::turn`. `ended`: a sync that was handed over has ended.
fn turn(plan: &mut Plan, world: &mut World, ended: bool) {
    let completed = if ended { world.end_job() } else { Ok(()) };
    let flushes = std::mem::take(&mut world.flushes);
    let seal = std::mem::take(&mut world.seal);
    let is_requested = seal || !flushes.is_empty() || world.starved;
    let drain = plan.drain(world, is_requested);
    if drain.is_some() {
        (world.is_dirty, world.is_urgent, world.starved) = (false, false, false);
    }
    let cutoff = drain.map(|drain: Drain| Plan::cutoff(drain, world));
    plan.postpone_flushes(world.drains());
    let oldest = world.oldest_dirty();
    world.refill(cutoff);
    if drain == Some(Drain::Urgent) && (world.is_over_limit || world.is_flush_urgent) {
        let left = world.oldest_dirty();
        let is_enough = if world.is_over_limit { left.is_none() } else { left.is_none() || left > oldest };
        assert!(is_enough, "an urgent flush leaves too much: {world:?}");
    }
    if cutoff.is_some() && plan.set_flush_timer(world) {
        world.is_dirty = true;
    }
    plan.request(flushes, seal, world.drains);
    world.kicked = false;
    world.failed = None;
    match completed {
        Ok(()) => plan.begin(world),
        Err(failure) => fail(plan, world, failure),
    }
    while let Some(step) = plan.next(world) {
        if let Err(failure) = world.execute(step) {
            fail(plan, world, failure);
        }
    }
    assert!(!world.in_doubt);
    world.failing = world.failed.is_some();
    world.check_flushes();
    check_wake(plan, world);
}

/// As `Committer::fail`.
fn fail(plan: &mut Plan, world: &mut World, failure: Failure) {
    world.publish();
    world.failed = Some(failure);
    plan.failed(failure);
}

/// No wake-up is lost: the thread wakes by itself for everything that no event announces.
fn check_wake(plan: &Plan, world: &World) {
    let wake_at = plan.wake_at(world);
    if world.failed.is_some() || (world.has_work() && !world.is_syncing() && !world.appended.blocked) {
        assert!(wake_at.is_some_and(|at| at <= world.clock.0), "work waits: {world:?}");
    } else {
        let sleeps = world.is_ending || wake_at.is_none_or(|at| at > world.clock.0);
        assert!(sleeps, "the thread has nothing to do and does not sleep: {world:?}");
    }
    if world.has_work() || !world.expected.is_empty() {
        assert!(wake_at.is_some() || world.is_syncing(), "work or a flush waits: {world:?}");
    }
    if let Some(oldest) = world.oldest_dirty() {
        let limit = (oldest + EXPIRE / 8 * 5).max(world.clock.0);
        assert!(world.kicked || wake_at.is_some_and(|at| at <= limit), "dirty data waits: {world:?}");
    }
    if world.mark_at.is_some() && !world.is_syncing() {
        assert!(wake_at.is_some(), "a mark waits: {world:?}");
    }
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Store(usize),
    Arrive(usize),
    Abandon,
    Flush {
        seal: bool,
    },
    Turn,
    EndSync,
    /// The next write or sync succeeds, or fails.
    Outcome(Option<Failure>),
    Fill,
    Settle(bool),
    MaySeal(bool),
    Wait(Duration),
    Starve,
    /// How much of the limit is used.
    Pressure {
        is_flush_urgent: bool,
        is_over_limit: bool,
    },
    OtherUnderWay(bool),
    End,
}

fn event() -> impl Strategy<Value = Event> {
    let failure = prop_oneof![
        Just(Some(Failure::NoSegment)),
        any::<bool>().prop_map(|no_room| Some(Failure::Disk { no_room })),
        Just(None),
    ];
    prop_oneof![
        6 => (0..3_usize).prop_map(Event::Store),
        4 => (1..6_usize).prop_map(Event::Arrive),
        2 => Just(Event::Abandon),
        3 => any::<bool>().prop_map(|seal| Event::Flush { seal }),
        10 => Just(Event::Turn),
        5 => Just(Event::EndSync),
        3 => failure.prop_map(Event::Outcome),
        1 => Just(Event::Fill),
        1 => any::<bool>().prop_map(Event::Settle),
        1 => any::<bool>().prop_map(Event::MaySeal),
        3 => (0..90_u64).prop_map(|s| Event::Wait(Duration::from_secs(s))),
        1 => Just(Event::Starve),
        2 => any::<(bool, bool)>().prop_map(|(is_flush_urgent, is_over_limit)| Event::Pressure {
            is_flush_urgent,
            is_over_limit,
        }),
        1 => any::<bool>().prop_map(Event::OtherUnderWay),
        1 => Just(Event::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// Syncs end before or after new arrivals, steps fail, callers give up. A flush never completes
    /// early, no wake-up is lost, failures are handled before the next write, and when the failures
    /// end, everything becomes durable and all flushes complete.
    #[test]
    fn everything_becomes_durable_in_any_order_of_events(events in prop::collection::vec(event(), 1..60)) {
        let (mut plan, mut world) = (Plan::new(PAUSES), World::new());
        for event in events {
            match event {
                Event::Store(id) => world.store(id),
                Event::Arrive(count) => world.arrivals += count,
                Event::Abandon => world.abandon(),
                Event::Flush { seal } => world.flush(seal),
                Event::Turn => turn(&mut plan, &mut world, false),
                Event::EndSync => turn(&mut plan, &mut world, true),
                Event::Outcome(failure) => world.failures.push_back(failure),
                Event::Fill => world.has_room = false,
                Event::MaySeal(may) => world.may_seal = may,
                Event::Settle(settled) => world.has_settled = settled,
                Event::Wait(time) => world.clock.0 += time,
                Event::Starve => world.starved = true,
                Event::Pressure { is_flush_urgent, is_over_limit } => {
                    (world.is_urgent, world.kicked) = (true, true);
                    (world.is_flush_urgent, world.is_over_limit) = (is_flush_urgent, is_over_limit);
                }
                Event::OtherUnderWay(is) => world.has_other_under_way = is,
                Event::End => {
                    plan.end_by(world.clock.0 + EXPIRE);
                    world.is_ending = true;
                }
            }
        }
        world.failures.clear();
        (world.has_other_under_way, world.may_seal) = (false, true);
        world.flush(true);
        let sealed = world.sealed;
        // Each turn takes a few tickets, ends a sync, or completes flushes.
        for _ in 0..40 {
            turn(&mut plan, &mut world, true);
        }
        prop_assert!(world.expected.is_empty(), "a flush does not complete: {:?}", world);
        prop_assert!(!world.has_work() && world.dirty.is_empty() && world.sealed > sealed && world.is_finished, "{:?}", world);
        prop_assert!(world.aborted == world.abandoned && !world.has_unsubmitted_changes(), "{:?}", world);
    }
}

/// Without stores, the thread writes one mark and then sleeps.
#[test]
fn one_mark_follows_the_last_change() {
    let (mut plan, mut world) = (Plan::new(PAUSES), World::new());
    world.arrivals = 1;
    turn(&mut plan, &mut world, false);
    assert_eq!(plan.wake_at(&world), Some(world.clock.0 + EXPIRE));
    world.clock.0 += EXPIRE;
    turn(&mut plan, &mut world, false);
    assert_eq!(world.entries, [Entry::Mark]);
    assert_eq!(plan.wake_at(&world), None);
}
