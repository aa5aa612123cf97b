//! The calls of a round: random, and the same for the same seed.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::payload;

/// The number of ids that get most of the calls.
pub(super) const HOT: usize = 3;

/// The number of ids that get few calls.
pub(super) const COLD: usize = 24;

/// The number of ids that each task of the flood replaces repeatedly.
pub(super) const FLOODED: usize = 64;

/// The maximum number of tasks of a flood.
pub(super) const FLOOD_TASKS: usize = 4;

/// The number of ids of a run: first the hot ones, then the cold ones, then those of the flood.
pub(super) const IDS: usize = HOT + COLD + FLOODED * FLOOD_TASKS;

/// The number of calls of one caller in one round.
const STEPS: u64 = 70;

/// The number of concurrent callers.
const CALLERS: usize = 5;

/// The kind of rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shape {
    /// All kinds of calls on a few ids, with continuous upkeep.
    #[default]
    Mixed,
    /// Stores that wait for the disk are overtaken by removes and by stores into memory, during a
    /// flood of replacements. Settings are constant and upkeep is rare: these rounds test the order
    /// in which the spool writes queued changes.
    Overtaking,
}

/// Messages that are replaced continuously, so that there is always dirty data to flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flood {
    pub(super) tasks: usize,
    /// The maximum number of stores of each task.
    pub(super) stores: u64,
    /// The maximum length of its messages in bytes.
    pub(super) len: usize,
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Store {
        slot: usize,
        len: usize,
        forced: bool,
        /// A deadline so short that it may pass.
        deadline: Option<Duration>,
    },
    Remove {
        slot: usize,
    },
    Load {
        slot: usize,
    },
}

/// When the future of a call is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cancel {
    /// Never: it is awaited.
    Never,
    /// After this many polls.
    AfterPolls(u64),
    /// After this time.
    AfterTime(Duration),
}

/// One call of one caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) action: Action,
    /// When its future is dropped.
    pub(super) cancel: Cancel,
    /// The number of yields before the call.
    pub(super) yields: u64,
    /// A call that the caller makes right after the beginning of this one, without waiting for its
    /// result.
    pub(super) beside: Option<Action>,
}

impl Step {
    /// A single call that is awaited.
    pub(super) const fn plain(action: Action) -> Self {
        Self { action, cancel: Cancel::Never, yields: 0, beside: None }
    }
}

/// The end of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// An orderly shutdown. If false, the spool is dropped.
    pub(super) orderly: bool,
    /// End while the callers still work, after this many calls. `None`: when they have ended.
    pub(super) beside: Option<u64>,
    /// Load and enumerate all messages before the end, after the callers have ended.
    pub(super) final_check: bool,
}

/// A round, from one opening to the next.
#[derive(Debug, Clone)]
pub(super) struct Round {
    pub(super) callers: Vec<Vec<Step>>,
    pub(super) flood: Flood,
    pub(super) has_upkeep: bool,
    /// Selects the calls of the upkeep.
    pub(super) upkeep: SmallRng,
    pub(super) end: End,
}

impl Round {
    /// Generates a round, for a spool in which a message of more than `large` bytes is larger than
    /// a segment.
    pub(super) fn new(mut rng: SmallRng, shape: Shape, large: usize) -> Self {
        let callers: Vec<Vec<Step>> = (0..CALLERS).map(|_| steps(&mut rng, shape, large)).collect();
        let calls: u64 = callers.iter().map(|steps| steps.len() as u64).sum();
        let beside = rng.random_bool(0.4).then(|| rng.random_range(calls / 4..calls / 4 * 3));
        let flood = match shape {
            Shape::Mixed => Flood { tasks: usize::from(rng.random_bool(0.6)), stores: 3_000, len: 700 },
            Shape::Overtaking => Flood { tasks: FLOOD_TASKS, stores: 20_000, len: 4_096 },
        };
        Self {
            callers,
            flood,
            has_upkeep: shape == Shape::Mixed,
            upkeep: rng.fork(),
            end: End { orderly: rng.random_bool(0.5), beside, final_check: rng.random_bool(0.6) },
        }
    }
}

fn steps(rng: &mut SmallRng, shape: Shape, large: usize) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    while (steps.len() as u64) < STEPS {
        if shape == Shape::Overtaking && rng.random_bool(0.7) {
            overtake(rng, large, &mut steps);
            continue;
        }
        if rng.random_bool(0.1) {
            give_up(rng, &mut steps);
            continue;
        }
        let slot = slot(rng);
        let action = match rng.random_range(0..100) {
            0..48 => store(rng, slot, large),
            48..66 => Action::Remove { slot },
            _ => Action::Load { slot },
        };
        let is_large = matches!(action, Action::Store { len, .. } if len > large);
        // Replace or remove a message that is being written.
        let second = (is_large && rng.random_bool(0.7)).then(|| second(rng, slot));
        let beside = second.filter(|_| rng.random_bool(0.6));
        steps.push(Step { action, cancel: cancel(rng), yields: rng.random_range(0..4), beside });
        if let Some(second) = second {
            if beside.is_none() {
                steps.push(Step::plain(second));
            }
            steps.push(Step { yields: rng.random_range(0..3), ..Step::plain(Action::Load { slot }) });
        }
    }
    steps
}

/// Adds a store that waits for the disk, and immediately after it a remove or a store into memory.
/// The loads after them must agree on which came last.
fn overtake(rng: &mut SmallRng, large: usize, steps: &mut Vec<Step>) {
    let slot = rng.random_range(HOT..HOT + COLD);
    // The message is several segments long, so it is written during a sync.
    let (len, forced) = if rng.random_bool(0.8) { (large * 5, false) } else { (4_000, true) };
    let action = Action::Store { slot, len, forced, deadline: None };
    steps.push(Step { beside: Some(second(rng, slot)), ..Step::plain(action) });
    for yields in [0, 10, 50] {
        steps.push(Step { yields, ..Step::plain(Action::Load { slot }) });
    }
}

/// Adds a store whose caller gives up while it is being written. When the write is over, the
/// message is removed, and must not reappear.
fn give_up(rng: &mut SmallRng, steps: &mut Vec<Step>) {
    let slot = rng.random_range(HOT..HOT + COLD);
    let store = |slot| Action::Store { slot, len: 4_000, forced: true, deadline: None };
    let cancel = Cancel::AfterTime(Duration::from_micros(rng.random_range(0..3_000)));
    steps.push(Step { cancel, ..Step::plain(store(slot)) });
    // This store is durable only after the one before it.
    steps.push(Step::plain(store(if slot > HOT { slot - 1 } else { slot + 1 })));
    steps.push(Step::plain(Action::Remove { slot }));
    steps.push(Step::plain(Action::Load { slot }));
}

/// Returns the call that overtakes a store.
fn second(rng: &mut SmallRng, slot: usize) -> Action {
    match rng.random_range(0..2) {
        0 => Action::Store { slot, len: 4_000, forced: false, deadline: None },
        _ => Action::Remove { slot },
    }
}

fn slot(rng: &mut SmallRng) -> usize {
    if rng.random_bool(0.7) { rng.random_range(0..HOT) } else { rng.random_range(HOT..HOT + COLD) }
}

fn store(rng: &mut SmallRng, slot: usize, large: usize) -> Action {
    let len = match rng.random_range(0..100) {
        0..8 => 0,
        8..45 => rng.random_range(0..300),
        45..65 => rng.random_range(0..7_000),
        // A message that almost fills a segment may exceed it, because the spool adds a header.
        65..82 => rng.random_range(0..large / 4 * 3),
        _ => rng.random_range(large + 1..=large * 2),
    };
    // Lengths from 1 to the header's length are not used: such messages don't contain their
    // version.
    let len = if (1..payload::HEADER_BYTES).contains(&len) { 0 } else { len };
    let deadline = rng.random_bool(0.1).then(|| Duration::from_micros(rng.random_range(0..4_000)));
    Action::Store { slot, len, forced: rng.random_bool(0.25), deadline }
}

fn cancel(rng: &mut SmallRng) -> Cancel {
    match rng.random_range(0..100) {
        0..8 => Cancel::AfterPolls(rng.random_range(0..6)),
        8..12 => Cancel::AfterTime(Duration::from_micros(rng.random_range(0..3_000))),
        _ => Cancel::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_the_plan() {
        let plan = |seed| {
            let round = Round::new(SmallRng::seed_from_u64(seed), Shape::Mixed, 60_000);
            (round.callers, round.flood, round.end)
        };
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
    }

    #[test]
    fn a_plan_has_every_kind_of_call_size_and_cancellation() {
        let rounds = (0..4).map(|seed| Round::new(SmallRng::seed_from_u64(seed), Shape::Mixed, 60_000));
        let steps: Vec<Step> = rounds.flat_map(|round| round.callers).flatten().collect();
        let has = |is_so: &dyn Fn(&Step) -> bool| assert!(steps.iter().any(is_so));
        let stores = |is_so: fn(usize) -> bool| {
            has(&|step| matches!(step.action, Action::Store { len, .. } if is_so(len)));
        };
        stores(|len| len == 0);
        stores(|len| len > 60_000);
        let is_between = |len: usize| (45_001..=60_000).contains(&len);
        assert!(
            !steps.iter().any(|step| matches!(step.action, Action::Store { len, .. } if is_between(len)))
        );
        has(&|step| matches!(step.action, Action::Remove { .. }));
        has(&|step| matches!(step.action, Action::Store { deadline: Some(_), .. }));
        has(&|step| matches!(step.cancel, Cancel::AfterPolls(0)));
        has(&|step| matches!(step.cancel, Cancel::AfterTime(_)));
        has(&|step| step.beside.is_some());
    }
}
