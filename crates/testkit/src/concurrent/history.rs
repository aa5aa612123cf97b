//! Recorded calls: request, times and result.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tidespool_core::SpoolId;

use super::checker::{Call, What};
use crate::oracle::{Value, shown};
use crate::payload::Seen;

/// Logical time: one number for each beginning and each end, across all callers.
///
/// A call that ended before another began has lower numbers. So the numbers order calls that do not
/// overlap, as linearizability requires.
#[derive(Debug, Default)]
pub(super) struct Clock(AtomicU64);

impl Clock {
    /// Returns the next time.
    pub(super) fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// The task that made a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// One of the callers of the plan.
    Caller(usize),
    /// A task that replaces its own messages continuously.
    Flood(usize),
    /// An enumeration: each entry is a load of that id, and each missing entry is a load of
    /// nothing.
    Enumeration(u64),
    /// The check of all messages after the callers have ended.
    FinalCheck,
}

/// The request of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Store { seen: Seen, forced: bool },
    Remove,
    Load,
}

/// The result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The store or remove returned `Ok`.
    Done,
    /// The load returned this value.
    Saw(Value),
    /// The store returned an error that promises that it had no effect.
    Failed,
    /// The future was dropped.
    Dropped,
}

/// One call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// The task that made it.
    pub(super) source: Source,
    pub(super) id: SpoolId,
    pub(super) request: Request,
    /// The logical time before the call.
    pub(super) began: u64,
    /// The logical time after the call ended or its future was dropped.
    pub(super) ended: u64,
    /// The wall-clock time of `began`.
    pub(super) began_at: Instant,
    /// The wall-clock time of `ended`.
    pub(super) ended_at: Instant,
    pub(super) outcome: Outcome,
}

impl Entry {
    /// Returns the value that the call writes; `None` for a load.
    pub(super) fn writes(&self) -> Option<Value> {
        match self.request {
            Request::Store { seen, .. } => Some(Some(seen)),
            Request::Remove => Some(None),
            Request::Load => None,
        }
    }

    /// Converts the entry for the checker. `durable`: a crash at the end of the history does not
    /// lose it.
    pub(super) fn call(&self, durable: bool) -> Call {
        let what = match (self.outcome, self.writes()) {
            (Outcome::Saw(value), _) => What::Read(value),
            (Outcome::Done, Some(value)) => What::Written { value, durable },
            (Outcome::Failed, Some(value)) => What::Failed(value),
            (Outcome::Dropped, Some(value)) => What::Dropped(value),
            // Unreachable: a load is recorded only with its value.
            (_, None) => What::Read(None),
        };
        Call { began: self.began, ended: self.ended, what }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7} to {:>7}  ", self.began, self.ended)?;
        let source = match self.source {
            Source::Caller(number) => format!("caller {number}"),
            Source::Flood(task) => format!("flood {task}"),
            Source::Enumeration(number) => format!("enumeration {number}"),
            Source::FinalCheck => "final check".to_owned(),
        };
        let request = match self.request {
            Request::Store { seen, forced } => {
                format!("store {}{}", shown(Some(seen)), if forced { ", synced" } else { "" })
            }
            Request::Remove => "remove".to_owned(),
            Request::Load => "load".to_owned(),
        };
        let outcome = match self.outcome {
            Outcome::Done => "ok".to_owned(),
            Outcome::Saw(value) => shown(value),
            Outcome::Failed => "error".to_owned(),
            Outcome::Dropped => "dropped".to_owned(),
        };
        write!(f, "{source:<15}  {request:<38}  {outcome}")
    }
}
