//! Per-id linearizability of a register with store, remove and load. Pure.
//!
//! Each call has one interval, from its beginning to its end, in logical time. A history is legal
//! if one total order of its calls explains every load. The order respects the intervals, and each
//! load returns the value of the last write before it.
//!
//! * An acknowledged write takes effect exactly once, within its interval.
//! * A dropped write takes effect at most once, at any time after its beginning, even after the
//!   drop: the spool may have committed it already. It never takes effect after a write that began
//!   after the drop. So a caller that gives up and stores again gets its last value.
//! * A failed write has no effect while the spool is open. After a crash its value may be found:
//!   the disk may have the record of the message but not the record that aborts it.
//! * At the end of a session ([`Ending`]), no open write can take effect any more.
//!
//! A crash loses writes that are not durable. So it may find any earlier value that is not older
//! than a durable write.
//!
//! # Method
//!
//! The checker processes the beginnings and ends in the order of time. It keeps every possible
//! state of the register: its value, and the open writes that have not taken effect. Open writes
//! take effect as late as possible, when an end needs it (Lowe, "Testing for linearizability",
//! 2017). An open load ends at the first time at which the register has its value; a later time is
//! never better. The number of states grows with the number of concurrent writes, not with the
//! length of the history. [`MAX_OPEN`] and [`MAX_STATES`] bound both.

use std::collections::HashSet;

use crate::oracle::Value;

/// The maximum number of concurrent writes, and of concurrent loads.
pub(super) const MAX_OPEN: usize = 64;

/// The maximum number of states that the checker keeps.
pub(super) const MAX_STATES: usize = 200_000;

/// One call on one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    /// The time of its beginning. All times of a history are different.
    pub(super) began: u64,
    /// The time of its end: the caller had the result, or had dropped the future.
    pub(super) ended: u64,
    pub(super) what: What,
}

/// The request of a call and its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// A load, or an entry of an enumeration, or a missing entry.
    Read(Value),
    /// An acknowledged store or remove. `durable`: it survives the crash at the end.
    Written {
        value: Value,
        /// A crash at the end of this history does not lose it.
        durable: bool,
    },
    /// A store or remove whose future was dropped.
    Dropped(Value),
    /// A store that returned an error.
    Failed(Value),
}

/// How a session ended, and the value after the next opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// An orderly shutdown: the id keeps its final value.
    Orderly(Value),
    /// The spool was dropped, or killed: writes that are not durable may be lost.
    Crash(Value),
}

/// Why a history is not legal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refuted {
    /// No order explains the result of this call.
    Call {
        /// The index of the call in the history.
        place: usize,
        /// Every value that the id may have had just before the end of the call.
        possible: Vec<Value>,
    },
    /// No order explains the value after the session.
    Ending {
        /// Every value that the id may have had at the end.
        possible: Vec<Value>,
    },
    /// Too many concurrent calls: nothing is proven, and the test must be changed.
    TooWide,
}

/// Checks the history of one id, whose value before the first call was `initial`.
///
/// # Errors
///
/// The first end that no order explains.
pub(super) fn check(initial: Value, calls: &[Call], ending: Option<Ending>) -> Result<(), Refuted> {
    let mut search = Search::new(initial, calls, ending);
    for (_, moment) in moments(calls) {
        match moment {
            Moment::Begin(place) => search.begin(place)?,
            Moment::End(place) => search.end(place)?,
        }
    }
    search.finish()
}

#[derive(Clone, Copy)]
enum Moment {
    Begin(usize),
    End(usize),
}

/// Returns the beginnings and ends in the order of time. A dropped or failed write has no end here,
/// because its end constrains nothing.
fn moments(calls: &[Call]) -> Vec<(u64, Moment)> {
    let mut moments = Vec::with_capacity(calls.len() * 2);
    for (place, call) in calls.iter().enumerate() {
        moments.push((call.began, Moment::Begin(place)));
        if matches!(call.what, What::Read(_) | What::Written { .. }) {
            moments.push((call.ended, Moment::End(place)));
        }
    }
    moments.sort_unstable_by_key(|(at, _)| *at);
    moments
}

/// One state that the register may be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    value: Value,
    /// The bits of open writes that have not taken effect and still may.
    writes: u64,
    /// The bits of open loads that have not seen their value.
    reads: u64,
    /// A crash now may find the value that the crash did find.
    may_be_found: bool,
}

struct Search<'a> {
    calls: &'a [Call],
    ending: Option<Ending>,
    /// The value after the crash at the end.
    found: Option<Value>,
    states: HashSet<State>,
    /// The open writes and loads: their indices in the history.
    writes: Slots,
    reads: Slots,
}

impl<'a> Search<'a> {
    fn new(initial: Value, calls: &'a [Call], ending: Option<Ending>) -> Self {
        let found = match ending {
            Some(Ending::Crash(found)) => Some(found),
            Some(Ending::Orderly(_)) | None => None,
        };
        let first = State { value: initial, writes: 0, reads: 0, may_be_found: found == Some(initial) };
        Self {
            calls,
            ending,
            found,
            states: HashSet::from([first]),
            writes: Slots::default(),
            reads: Slots::default(),
        }
    }

    fn begin(&mut self, place: usize) -> Result<(), Refuted> {
        match self.calls[place].what {
            What::Read(value) => {
                let bit = self.reads.open(place)?;
                self.change(|state| State {
                    reads: if state.value == value { state.reads } else { state.reads | bit },
                    ..state
                });
            }
            // A failed write matters only if a crash may have found it.
            What::Failed(value) if self.found != Some(value) => {}
            What::Failed(_) | What::Dropped(_) | What::Written { .. } => {
                let bit = self.writes.open(place)?;
                self.change(|state| State { writes: state.writes | bit, ..state });
            }
        }
        Ok(())
    }

    fn end(&mut self, place: usize) -> Result<(), Refuted> {
        let (read, write) = (self.reads.bit(place), self.writes.bit(place));
        let reached = self.reach(|state| state.reads & read == 0 && state.writes & write == 0)?;
        if reached.over.is_empty() {
            return Err(Refuted::Call { place, possible: reached.values() });
        }
        self.states = reached.over;
        let open = self.states.iter().fold(0, |open, state| open | state.writes);
        let calls = self.calls;
        self.reads.close(|_, other| other == place);
        // Dropped and failed writes stay open until a later write rules them out in every state.
        self.writes.close(|bit, other| {
            other == place || (open & bit == 0 && !matches!(calls[other].what, What::Written { .. }))
        });
        Ok(())
    }

    fn finish(&self) -> Result<(), Refuted> {
        let reached = match self.ending {
            None => return Ok(()),
            Some(Ending::Orderly(found)) => self.reach(|state| state.value == found)?,
            Some(Ending::Crash(_)) => self.reach(|state| state.may_be_found)?,
        };
        if reached.over.is_empty() {
            return Err(Refuted::Ending { possible: reached.values() });
        }
        Ok(())
    }

    fn change(&mut self, change: impl Fn(State) -> State) {
        self.states = self.states.drain().map(change).collect();
    }

    /// Lets open writes take effect in every order, each time until `is_over` is true.
    fn reach(&self, is_over: impl Fn(&State) -> bool) -> Result<Reached, Refuted> {
        let mut reached = Reached { over: HashSet::new(), all: self.states.clone() };
        let mut left: Vec<State> = self.states.iter().copied().collect();
        while let Some(state) = left.pop() {
            if is_over(&state) {
                reached.over.insert(state);
                continue;
            }
            for (bit, place) in self.writes.iter().filter(|(bit, _)| state.writes & bit != 0) {
                let next = self.take_effect(state, bit, place);
                if reached.all.insert(next) {
                    left.push(next);
                }
            }
            if reached.all.len() > MAX_STATES {
                return Err(Refuted::TooWide);
            }
        }
        Ok(reached)
    }

    /// Returns the state after the write at `place`, with bit `bit`, took effect.
    fn take_effect(&self, state: State, bit: u64, place: usize) -> State {
        let began = self.calls[place].began;
        let (value, lives, durable) = match self.calls[place].what {
            What::Written { value, durable } => (value, true, durable),
            What::Dropped(value) => (value, true, false),
            What::Failed(value) => (value, false, false),
            What::Read(value) => (value, false, false),
        };
        // A write that was dropped or failed before this one began can't take effect after it.
        let stale = self.writes.bits(|other| self.calls[other].ended < began);
        let value_now = if lives { value } else { state.value };
        let read = self.reads.bits(|other| self.calls[other].what == What::Read(value_now));
        State {
            value: value_now,
            writes: state.writes & !bit & !stale,
            reads: state.reads & !read,
            may_be_found: self.found == Some(value) || (state.may_be_found && !durable),
        }
    }
}

/// The result of [`Search::reach`].
struct Reached {
    /// The states in which `is_over` is true.
    over: HashSet<State>,
    /// These states, and every state on the way.
    all: HashSet<State>,
}

impl Reached {
    fn values(&self) -> Vec<Value> {
        let mut values: Vec<Value> = self.all.iter().map(|state| state.value).collect();
        values.sort_unstable_by_key(|value| value.map(|seen| (seen.version, seen.len)));
        values.dedup();
        values
    }
}

/// The open calls. Each has a bit.
#[derive(Default)]
struct Slots(Vec<Option<usize>>);

impl Slots {
    fn open(&mut self, place: usize) -> Result<u64, Refuted> {
        let free = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        if free == MAX_OPEN {
            return Err(Refuted::TooWide);
        }
        if free == self.0.len() {
            self.0.push(None);
        }
        self.0[free] = Some(place);
        Ok(1 << free)
    }

    fn close(&mut self, is_closed: impl Fn(u64, usize) -> bool) {
        for (number, open) in self.0.iter_mut().enumerate() {
            if open.is_some_and(|place| is_closed(1 << number, place)) {
                *open = None;
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        self.0.iter().enumerate().filter_map(|(number, open)| open.map(|place| (1 << number, place)))
    }

    /// Returns the bits of the calls for which `is_so` is true.
    fn bits(&self, is_so: impl Fn(usize) -> bool) -> u64 {
        self.iter().filter(|(_, place)| is_so(*place)).fold(0, |bits, (bit, _)| bits | bit)
    }

    /// Returns the bit of the call at `place`, or 0 if it is not open.
    fn bit(&self, place: usize) -> u64 {
        self.bits(|open| open == place)
    }
}
