use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64};

use futures_lite::future::{block_on, poll_once};

use super::*;

type Admitting = Pin<Box<dyn Future<Output = Permit> + Send>>;

fn budget(limit: u64) -> Arc<Budget> {
    Arc::new(Budget::new(limit))
}

/// A waiter that was polled once and was not admitted.
fn waits(budget: &Arc<Budget>, len: u64, lane: Lane) -> Admitting {
    let waiter = budget.wait(len, lane);
    let mut admitting: Admitting = Box::pin(async move { waiter.admitted().await.unwrap() });
    assert!(got(&mut admitting).is_none());
    admitting
}

fn got(admitting: &mut Admitting) -> Option<Permit> {
    block_on(poll_once(admitting))
}

/// Runs the thread that admits waiters, until it is dropped.
struct Attended(Arc<Budget>, Option<std::thread::JoinHandle<()>>);

impl Attended {
    fn new(budget: &Arc<Budget>) -> Self {
        let attending = budget.clone();
        let hour = Duration::from_secs(3600);
        let thread = std::thread::spawn(move || assert!(attending.attend(Instant::now() + hour, || {})));
        Self(budget.clone(), Some(thread))
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.0.close();
        self.1.take().map(std::thread::JoinHandle::join);
    }
}

/// Waits for the admission, independent of the load of the machine.
async fn admitted(budget: &Arc<Budget>, len: u64, lane: Lane) -> Permit {
    let admitted = budget.wait(len, lane).admitted();
    tokio::time::timeout(Duration::from_secs(60), admitted).await.expect("not admitted").unwrap()
}

fn assert_all_room_is_back(budget: &Arc<Budget>, limit: u64) {
    assert_eq!((budget.dirty(), budget.waiting()), (0, 0));
    assert_eq!(budget.puts.load(Ordering::SeqCst), 0, "no store waits");
    assert!(budget.try_admit(limit - DIRTY_OVERHEAD, Lane::Memory).is_some(), "all room is free");
}

#[test]
fn dropping_a_permit_returns_its_room() {
    let budget = budget(10_000);
    let first = budget.try_admit(9_000, Lane::Memory).unwrap();
    assert_eq!((first.bytes(), budget.dirty()), (9_000 + DIRTY_OVERHEAD, 9_000 + DIRTY_OVERHEAD));
    assert!(budget.try_admit(9_000, Lane::Disk).is_none());
    drop(first);
    assert_all_room_is_back(&budget, 10_000);
}

#[test]
fn a_message_over_the_limit_is_admitted_alone() {
    let budget = budget(10_000);
    let small = budget.try_admit(1, Lane::Memory).unwrap();
    assert!(budget.try_admit(1 << 20, Lane::Memory).is_none());
    let mut waiting = waits(&budget, 1 << 20, Lane::Memory);
    assert!(budget.try_admit(0, Lane::Disk).is_some(), "a small message is ahead, and has room");
    drop(small);
    let huge = got(&mut waiting).unwrap();
    assert_eq!(budget.dirty(), (1 << 20) + DIRTY_OVERHEAD);
    assert!(budget.try_admit(0, Lane::Disk).is_none());
    drop(huge);
    assert_all_room_is_back(&budget, 10_000);
}

#[test]
fn removals_are_counted_and_never_wait() {
    let budget = budget(1_000);
    let full = budget.try_admit(10_000, Lane::Memory).unwrap();
    let waiting = waits(&budget, 1, Lane::Disk);
    let removal = budget.admit_removal();
    assert_eq!((removal.bytes(), budget.dirty()), (DIRTY_OVERHEAD, 10_000 + 2 * DIRTY_OVERHEAD));
    drop((waiting, removal, full));
    assert_all_room_is_back(&budget, 1_000);
}

#[test]
fn a_dropped_waiter_leaves_no_trace_and_unblocks_the_next_ones() {
    let budget = budget(10_000);
    let first = budget.try_admit(8_000, Lane::Disk).unwrap();
    let gone = waits(&budget, 9_000, Lane::Disk);
    let mut next = waits(&budget, 9_500, Lane::Disk);
    assert_eq!(budget.waiting(), 18_500 + 2 * DIRTY_OVERHEAD);
    drop(gone);
    assert!(got(&mut next).is_none());
    drop(first);
    let permit = got(&mut next).unwrap();
    drop((permit, next));
    assert_all_room_is_back(&budget, 10_000);
}

#[test]
fn room_granted_to_a_dropped_waiter_goes_to_the_next_one() {
    let budget = budget(10_000);
    let first = budget.try_admit(8_000, Lane::Disk).unwrap();
    let granted = waits(&budget, 8_000, Lane::Disk);
    let mut next = waits(&budget, 8_500, Lane::Disk);
    drop(first);
    // The first waiter has the room and was not polled since.
    assert_eq!((budget.dirty(), budget.waiting()), (8_000 + DIRTY_OVERHEAD, 8_500 + DIRTY_OVERHEAD));
    drop(granted);
    drop((got(&mut next).unwrap(), next));
    assert_all_room_is_back(&budget, 10_000);
}

/// Two threads grant room and drop waiters at the same time, repeatedly. No room may be lost.
#[test]
fn concurrent_grant_and_drop_leak_nothing() {
    let budget = budget(10_000);
    for turn in 0..3_000 {
        let full = budget.try_admit(8_500, Lane::Disk).unwrap();
        let gone = waits(&budget, 8_000, Lane::Disk);
        let mut stays = (turn % 2 == 0).then(|| waits(&budget, 8_500, Lane::Disk));
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                drop(full);
            });
            barrier.wait();
            drop(gone);
        });
        if let Some(stays) = &mut stays {
            assert!(got(stays).is_some(), "turn {turn}: no other waiter is left");
        }
        drop(stays);
        assert_eq!((budget.dirty(), budget.waiting()), (0, 0), "turn {turn}");
    }
    assert_all_room_is_back(&budget, 10_000);
}

#[test]
fn a_raised_limit_admits_and_a_lowered_one_waits_until_enough_has_drained() {
    let budget = budget(10_000);
    let [first, second] = [4_000, 4_000].map(|len| budget.try_admit(len, Lane::Disk).unwrap());
    let mut waiting = waits(&budget, 4_000, Lane::Disk);
    budget.set_limit(5_000);
    assert_eq!(budget.limit(), 5_000);
    drop(first);
    assert!(got(&mut waiting).is_none(), "most of 5 000 is dirty");
    budget.set_limit(20_000);
    let third = got(&mut waiting).unwrap();
    budget.set_limit(1_000);
    assert!(budget.try_admit(10, Lane::Disk).is_none());
    drop((second, third));
    assert_all_room_is_back(&budget, 1_000);
}

#[test]
fn the_drain_rate_is_total_bytes_over_total_time() {
    let budget = budget(1_000_000);
    budget.note_drained(64 * 1024 - 1, Duration::from_secs(10));
    assert_eq!(budget.drain_rate(), 0, "a small commit is not measured");
    // Half of the bytes have ten times the rate. The mean of the two rates would be 550 000.
    for _ in 0..50 {
        budget.note_drained(100_000, Duration::from_millis(100));
        budget.note_drained(100_000, Duration::from_millis(1_000));
    }
    assert!((160_000..210_000).contains(&budget.drain_rate()), "{}", budget.drain_rate());
    // Then no commit ends for a while.
    let later = budget.drained_at.load(Ordering::SeqCst) + 60_000_000_000;
    assert!(budget.rate_at(later) < budget.drain_rate() / 5, "{}", budget.rate_at(later));
}

#[test]
fn a_deadline_that_the_rate_or_the_slot_cannot_meet_is_refused_at_once() {
    let budget = budget(1_000_000);
    let second = Duration::from_secs(1);
    let _dirty = budget.try_admit(990_000, Lane::Disk).unwrap();
    assert!(!budget.cannot_meet(500_000, Lane::Disk, second), "no rate is measured");
    budget.note_drained(100_000, second);
    assert!(budget.cannot_meet(500_000, Lane::Disk, second));
    assert!(!budget.cannot_meet(500_000, Lane::Disk, 3 * second));
    // Four seconds of earlier stores.
    let _ahead = waits(&budget, 400_000, Lane::Disk);
    assert!(budget.cannot_meet(500_000, Lane::Disk, 3 * second));
    assert!(!budget.cannot_meet(500_000, Lane::Disk, 6 * second));
    assert!(!budget.cannot_meet(100, Lane::Disk, second), "a small message is admitted before them");
}

#[test]
fn a_deadline_before_the_slot_is_refused_although_there_is_room() {
    let budget = budget(1_000_000);
    budget.note_drained(100_000, Duration::from_secs(1));
    let _dirty = budget.try_admit(800_000, Lane::Memory).unwrap();
    // It takes the free slot. The next slot is later.
    let _slow = budget.try_admit(100_000, Lane::Memory).unwrap();
    assert!(budget.try_admit(1_000, Lane::Memory).is_none());
    assert!(budget.cannot_meet(1_000, Lane::Memory, Duration::from_millis(1)));
    assert!(!budget.cannot_meet(1_000, Lane::Memory, Duration::from_secs(10)));
    assert!(budget.try_admit(1_000, Lane::Disk).is_some(), "synced stores are not slowed yet");
}

#[test]
fn a_lack_of_room_is_reported_once() {
    let budget = budget(10_000);
    let first = budget.try_admit(9_000, Lane::Disk).unwrap();
    let reported = Arc::new(AtomicBool::new(false));
    let mut waiting = waits(&budget, 9_000, Lane::Disk);
    assert!(!budget.attend(Instant::now(), || reported.store(true, Ordering::SeqCst)));
    assert!(reported.swap(false, Ordering::SeqCst));
    assert!(!budget.attend(Instant::now(), || reported.store(true, Ordering::SeqCst)));
    assert!(!reported.load(Ordering::SeqCst), "not reported again");
    drop(first);
    assert!(got(&mut waiting).is_some());
}

/// One waiter watched the clock for all others, whenever its future was polled. A caller that
/// polled its store once and then did something else (`select!` with a long branch) blocked all
/// waiters behind it, although there was room and they were due. The test covers a waiter that is
/// due, one that lacks room, and one that has its room and was not polled since.
#[tokio::test]
async fn no_waiter_depends_on_another_being_polled() {
    let budget = budget(1_000_000);
    let _attended = Attended::new(&budget);
    budget.note_drained(100_000, Duration::from_secs(1));
    let dirty = budget.try_admit(800_000, Lane::Memory).unwrap();
    // The next slot is later.
    let slow = budget.try_admit(50_000, Lane::Memory).unwrap();
    let due = waits(&budget, 1_000, Lane::Memory);
    let behind = admitted(&budget, 1_000, Lane::Memory).await;
    assert_eq!(budget.waiting(), 0, "the waiter that was not polled has its room, too");

    let lacks_room = waits(&budget, 400_000, Lane::Disk);
    let last = waits(&budget, 410_000, Lane::Memory);
    drop(dirty);
    let after = admitted(&budget, 1_000, Lane::Memory).await;
    assert_eq!(budget.waiting(), 0);
    // It keeps the room that it was granted, and no more.
    let all = admitted(&budget, 100_000, Lane::Disk);
    let all = tokio::join!(all, async { drop(lacks_room) }).0;
    drop((due, behind, slow, last, after, all));
    assert_all_room_is_back(&budget, 1_000_000);
}

/// There are far more callers than room, and some give up. All others must be admitted, and all
/// room must be returned.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_overload_every_store_is_admitted_and_the_limit_holds() {
    const LIMIT: u64 = 100_000;
    let budget = budget(LIMIT);
    let _attended = Attended::new(&budget);
    budget.note_drained(1 << 30, Duration::from_secs(1));
    let (most, served) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..64_u64 {
        let (budget, most, served) = (budget.clone(), most.clone(), served.clone());
        callers.spawn(async move {
            let lane = if n % 4 == 0 { Lane::Disk } else { Lane::Memory };
            for turn in 0..50 {
                let len = if n == 0 { 2 * LIMIT } else { 1_000 + 100 * n };
                let permit = match budget.try_admit(len, lane) {
                    Some(permit) => permit,
                    None => {
                        let mut waiting = Box::pin(budget.wait(len, lane).admitted());
                        if (n + turn) % 5 == 0 {
                            drop(poll_once(&mut waiting).await);
                            continue;
                        }
                        waiting.await.unwrap()
                    }
                };
                served.fetch_add(1, Ordering::Relaxed);
                if n > 0 {
                    most.fetch_max(budget.dirty(), Ordering::Relaxed);
                }
                tokio::task::yield_now().await;
                drop(permit);
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert!(served.load(Ordering::Relaxed) >= 64 * 40);
    assert!(most.load(Ordering::Relaxed) <= LIMIT, "{most:?}");
    assert_all_room_is_back(&budget, LIMIT);
}

/// Removals had no bound: 68 MiB of them waited for the disk beside a dirty limit of 32 MiB.
#[test]
fn many_removals_wait_until_there_are_fewer() {
    let budget = Arc::new(Budget::new(80 * DIRTY_OVERHEAD));
    let mut removals: Vec<Permit> = (0..50).map(|_| budget.admit_removal()).collect();
    assert!(!budget.has_many_removals());
    removals.push(budget.admit_removal());
    assert!(budget.has_many_removals());
    let mut first = pin!(budget.fewer_removals());
    let mut second = pin!(budget.fewer_removals());
    for waiting in [&mut first, &mut second] {
        assert!(block_on(poll_once(waiting)).is_none());
    }
    removals.pop();
    assert!(block_on(poll_once(&mut first)).is_some());
    assert!(block_on(poll_once(&mut second)).is_some());
    // With few removals a caller does not wait.
    assert!(block_on(poll_once(&mut pin!(budget.fewer_removals()))).is_some());
}
