//! What a round does: random, and the same for the same seed.

use std::time::Duration;

use crate::payload;
use crate::rng::Rng;

/// Ids on which most calls meet.
pub const HOT: usize = 3;

/// Ids that are called now and then.
pub const COLD: usize = 24;

/// Ids that the flood replaces, again and again: so many for each of its tasks.
pub const FLOODED: usize = 64;

/// Tasks of a flood, at most.
pub const FLOOD_TASKS: usize = 4;

/// All ids of a run: the hot ones first, then the cold, then the flooded ones.
pub const IDS: usize = HOT + COLD + FLOODED * FLOOD_TASKS;

/// Calls of one caller in one round.
const STEPS: u64 = 70;

/// Callers beside each other.
const CALLERS: u64 = 5;

/// What the rounds are made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shape {
    /// All kinds of calls on a few ids, and upkeep all the time.
    #[default]
    Mixed,
    /// Stores that wait for the disk are overtaken by removes and by stores into memory, beside a
    /// flood of replacements. Constant settings and little upkeep: the order in which the spool
    /// writes what it has at hand is what counts.
    Overtaking,
}

/// Messages that are replaced all the time, so that there is always something to flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flood {
    /// Tasks beside each other.
    pub tasks: usize,
    /// Stores of each, at most.
    pub stores: u64,
    /// The length of its messages in bytes, at most.
    pub len: u64,
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Store a new version.
    Store {
        /// Which id.
        slot: usize,
        /// Its length in bytes.
        len: usize,
        /// With `force_sync`.
        forced: bool,
        /// With a deadline so short that it may pass.
        deadline: Option<Duration>,
    },
    /// Remove.
    Remove {
        /// Which id.
        slot: usize,
    },
    /// Load.
    Load {
        /// Which id.
        slot: usize,
    },
}

/// What becomes of the future of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Awaited.
    Awaited,
    /// Dropped after so many polls.
    Polled(u64),
    /// Dropped after this time.
    Timed(Duration),
}

/// One call of one caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The call.
    pub action: Action,
    /// What becomes of its future.
    pub fate: Fate,
    /// How often the caller yields before the call.
    pub yields: u64,
    /// A call that the caller makes right after the beginning of this one, without its answer.
    pub beside: Option<Action>,
}

impl Step {
    /// A call that is awaited, by itself.
    #[must_use]
    pub const fn plain(action: Action) -> Self {
        Self { action, fate: Fate::Awaited, yields: 0, beside: None }
    }
}

/// How a round ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// With an orderly shutdown. If not, the spool is dropped.
    pub orderly: bool,
    /// While the callers go on, when they have made so many calls.
    pub beside: Option<u64>,
    /// Everything is loaded and enumerated once more before the end, when the callers have ended.
    pub look: bool,
}

/// From one opening to the next.
#[derive(Debug, Clone)]
pub struct Round {
    /// The calls of each caller.
    pub callers: Vec<Vec<Step>>,
    /// What is replaced beside them.
    pub flood: Flood,
    /// There is upkeep beside them.
    pub has_upkeep: bool,
    /// Chooses the upkeep.
    pub upkeep: Rng,
    /// How it ends.
    pub end: End,
}

impl Round {
    /// The round with this generator, for a spool in which a message of more than `large` bytes is
    /// larger than a segment.
    #[must_use]
    pub fn new(mut rng: Rng, shape: Shape, large: usize) -> Self {
        let steps = |n| steps(&mut rng.fork(n), shape, large);
        let callers: Vec<Vec<Step>> = (0..CALLERS).map(steps).collect();
        let calls: u64 = callers.iter().map(|steps| steps.len() as u64).sum();
        let beside = rng.chance(40).then(|| calls / 4 + rng.below(calls / 2));
        let flood = match shape {
            Shape::Mixed => Flood { tasks: usize::from(rng.chance(60)), stores: 3_000, len: 700 },
            Shape::Overtaking => Flood { tasks: FLOOD_TASKS, stores: 20_000, len: 4_096 },
        };
        Self {
            callers,
            flood,
            has_upkeep: shape == Shape::Mixed,
            upkeep: rng.fork(CALLERS),
            end: End { orderly: rng.chance(50), beside, look: rng.chance(60) },
        }
    }
}

fn steps(rng: &mut Rng, shape: Shape, large: usize) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    while (steps.len() as u64) < STEPS {
        if shape == Shape::Overtaking && rng.chance(70) {
            overtake(rng, large, &mut steps);
            continue;
        }
        if rng.chance(10) {
            give_up(rng, &mut steps);
            continue;
        }
        let slot = slot(rng);
        let action = match rng.below(100) {
            0..48 => store(rng, slot, large),
            48..66 => Action::Remove { slot },
            _ => Action::Load { slot },
        };
        let is_large = matches!(action, Action::Store { len, .. } if len > large);
        // What is on its way to the disk is replaced or removed.
        let second = (is_large && rng.chance(70)).then(|| second(rng, slot));
        let beside = second.filter(|_| rng.chance(60));
        steps.push(Step { action, fate: fate(rng), yields: rng.below(4), beside });
        if let Some(second) = second {
            if beside.is_none() {
                steps.push(Step::plain(second));
            }
            steps.push(Step { yields: rng.below(3), ..Step::plain(Action::Load { slot }) });
        }
    }
    steps
}

/// A store that waits for the disk, and right behind it a remove or a store into memory. The loads
/// after it are to agree on which one came last.
fn overtake(rng: &mut Rng, large: usize, steps: &mut Vec<Step>) {
    let slot = HOT + usize::try_from(rng.below(COLD as u64)).unwrap_or(0);
    // Several segments long: it is written while a sync is under way.
    let (len, forced) = if rng.chance(80) { (large * 5, false) } else { (4_000, true) };
    let action = Action::Store { slot, len, forced, deadline: None };
    steps.push(Step { beside: Some(second(rng, slot)), ..Step::plain(action) });
    for yields in [0, 10, 50] {
        steps.push(Step { yields, ..Step::plain(Action::Load { slot }) });
    }
}

/// A store whose caller gives up while the disk has it. When that is over, the message is removed:
/// nothing of it may come back.
fn give_up(rng: &mut Rng, steps: &mut Vec<Step>) {
    let slot = HOT + usize::try_from(rng.below(COLD as u64)).unwrap_or(0);
    let store = |slot| Action::Store { slot, len: 4_000, forced: true, deadline: None };
    let fate = Fate::Timed(Duration::from_micros(rng.below(3_000)));
    steps.push(Step { fate, ..Step::plain(store(slot)) });
    // It is durable after the one before it.
    steps.push(Step::plain(store(if slot > HOT { slot - 1 } else { slot + 1 })));
    steps.push(Step::plain(Action::Remove { slot }));
    steps.push(Step::plain(Action::Load { slot }));
}

/// What overtakes a store.
fn second(rng: &mut Rng, slot: usize) -> Action {
    match rng.below(2) {
        0 => Action::Store { slot, len: 4_000, forced: false, deadline: None },
        _ => Action::Remove { slot },
    }
}

fn slot(rng: &mut Rng) -> usize {
    let (first, count) = if rng.chance(70) { (0, HOT) } else { (HOT, COLD) };
    first + usize::try_from(rng.below(count as u64)).unwrap_or(0)
}

fn store(rng: &mut Rng, slot: usize, large: usize) -> Action {
    let large = large as u64;
    let len = match rng.below(100) {
        0..8 => 0,
        8..45 => rng.below(300),
        45..65 => rng.below(7_000),
        // What nearly fills a segment may be larger than one with what the spool writes beside it.
        65..82 => rng.below(large / 4 * 3),
        _ => large + 1 + rng.below(large),
    };
    let len = usize::try_from(len).unwrap_or(0);
    // Nothing between 1 and the header's length: such messages don't carry their version.
    let len = if (1..payload::HEADER_BYTES).contains(&len) { 0 } else { len };
    let deadline = rng.chance(10).then(|| Duration::from_micros(rng.below(4_000)));
    Action::Store { slot, len, forced: rng.chance(25), deadline }
}

fn fate(rng: &mut Rng) -> Fate {
    match rng.below(100) {
        0..8 => Fate::Polled(rng.below(6)),
        8..12 => Fate::Timed(Duration::from_micros(rng.below(3_000))),
        _ => Fate::Awaited,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_the_plan() {
        let plan = |seed| {
            let round = Round::new(Rng::new(seed), Shape::Mixed, 60_000);
            (round.callers, round.flood, round.end)
        };
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
    }

    #[test]
    fn a_plan_has_every_kind_of_call_size_and_fate() {
        let rounds = (0..4).map(|seed| Round::new(Rng::new(seed), Shape::Mixed, 60_000));
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
        has(&|step| matches!(step.fate, Fate::Polled(0)));
        has(&|step| matches!(step.fate, Fate::Timed(_)));
        has(&|step| step.beside.is_some());
    }
}
