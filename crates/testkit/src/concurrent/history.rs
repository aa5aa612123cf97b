//! Calls as they were made: what each caller asked, when, and what it got.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tidespool_core::SpoolId;

use super::checker::{Call, Value, What};
use crate::payload::Seen;

/// Logical time: one number for each beginning and each end, over all callers.
///
/// A call that ended before another began has the lower numbers. So the numbers order what does not
/// overlap, which is all that linearizability asks for.
#[derive(Debug, Default)]
pub struct Clock(AtomicU64);

impl Clock {
    /// The next moment.
    pub fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// Who made a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// One of the callers of the plan.
    Caller(usize),
    /// A task that replaces its own messages all the time.
    Flood(usize),
    /// An enumeration: each entry is a load of that id, and so is the lack of one.
    Enumeration(u64),
    /// The look at everything when the callers have ended.
    Look,
}

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// To store this.
    Store {
        /// The message.
        seen: Seen,
        /// With `force_sync`.
        forced: bool,
    },
    /// To remove.
    Remove,
    /// To load.
    Load,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The store or remove returned `Ok`.
    Done,
    /// The load returned this.
    Saw(Value),
    /// The store returned an error that promises that it had no effect.
    Failed,
    /// The future was dropped.
    Dropped,
}

/// One call.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Who made it.
    pub who: Who,
    /// On which id.
    pub id: SpoolId,
    /// What was asked.
    pub asked: Asked,
    /// Before it was made.
    pub began: u64,
    /// After it had ended, or the future was dropped.
    pub ended: u64,
    /// The time of `began`.
    pub began_at: Instant,
    /// The time of `ended`.
    pub ended_at: Instant,
    /// What came of it.
    pub outcome: Outcome,
}

impl Entry {
    /// What the id holds after it; `None` for a load.
    #[must_use]
    pub fn writes(&self) -> Option<Value> {
        match self.asked {
            Asked::Store { seen, .. } => Some(Some(seen)),
            Asked::Remove => Some(None),
            Asked::Load => None,
        }
    }

    /// As the checker takes it. `durable`: a crash at the end of the history does not lose it.
    #[must_use]
    pub fn call(&self, durable: bool) -> Call {
        let what = match (self.outcome, self.writes()) {
            (Outcome::Saw(value), _) => What::Read(value),
            (Outcome::Done, Some(value)) => What::Written { value, durable },
            (Outcome::Failed, Some(value)) => What::Failed(value),
            (Outcome::Dropped, Some(value)) => What::Dropped(value),
            // A load is recorded only with what it returned.
            (_, None) => What::Read(None),
        };
        Call { began: self.began, ended: self.ended, what }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7} to {:>7}  ", self.began, self.ended)?;
        let who = match self.who {
            Who::Caller(number) => format!("caller {number}"),
            Who::Flood(task) => format!("flood {task}"),
            Who::Enumeration(number) => format!("enumeration {number}"),
            Who::Look => "look".to_owned(),
        };
        let asked = match self.asked {
            Asked::Store { seen, forced } => {
                format!("store {}{}", shown(Some(seen)), if forced { ", synced" } else { "" })
            }
            Asked::Remove => "remove".to_owned(),
            Asked::Load => "load".to_owned(),
        };
        let outcome = match self.outcome {
            Outcome::Done => "ok".to_owned(),
            Outcome::Saw(value) => shown(value),
            Outcome::Failed => "error".to_owned(),
            Outcome::Dropped => "dropped".to_owned(),
        };
        write!(f, "{who:<15}  {asked:<38}  {outcome}")
    }
}

/// A value in words.
#[must_use]
pub fn shown(value: Value) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Seen { version: Some(version), len }) => format!("version {version} ({len} bytes)"),
        Some(Seen { version: None, len }) => format!("{len} bytes"),
    }
}
