//! The lines that the child writes.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidespool_core::SpoolId;

/// Marks a line of the child, among the output of the test harness.
const MARK: &str = "@tidespool ";

/// An intent of the child, or a result. `op` is the number of the operation, the same in both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are arguments of the call, except `op`")]
pub enum Event {
    /// The spool is open.
    Opened,
    /// Intent to store.
    Store {
        op: u64,
        id: SpoolId,
        /// Its version, unique among the stores of this id.
        version: u64,
        len: usize,
        forced: bool,
    },
    /// Intent to remove.
    Remove { op: u64, id: SpoolId },
    /// Operation `op` returned `Ok`.
    Done { op: u64 },
    /// Operation `op` returned an error.
    Failed {
        op: u64,
        /// The error is [`InDoubt`](tidespool_core::InDoubt). Any other error promises that nothing
        /// was left behind.
        in_doubt: bool,
    },
    /// The child detected a broken promise.
    Wrong { what: String },
    /// A sign of life, written at intervals.
    Tick,
}

/// An event and its time. Times never decrease from one line to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Microseconds since the child started. For intents: before the call. For results: after the
    /// call.
    pub at_us: u64,
    /// The event.
    pub event: Event,
}

impl Line {
    fn encode(&self) -> serde_json::Result<String> {
        Ok(format!("{MARK}{}", serde_json::to_string(self)?))
    }

    /// Decodes the line in `text`. Returns `None` if it is not a line of the child, or if the kill
    /// cut it short.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let (_, text) = text.split_once(MARK)?;
        serde_json::from_str(text).ok()
    }
}

/// Writes the child's lines. Each line is one unbuffered write to the standard output, so a kill
/// loses no line already written.
#[derive(Debug)]
pub struct Report {
    out: Mutex<File>,
    began: Instant,
    ops: AtomicU64,
}

impl Report {
    /// Writes to the standard output from now on.
    ///
    /// # Errors
    ///
    /// If there is no standard output.
    pub fn on_stdout() -> std::io::Result<Self> {
        let out = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self { out: Mutex::new(out), began: Instant::now(), ops: AtomicU64::new(0) })
    }

    /// Returns the number of the next operation.
    pub fn next_op(&self) -> u64 {
        self.ops.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes `event`. If the parent has closed the pipe, the process exits.
    pub fn say(&self, event: Event) {
        let mut out = self.out.lock();
        // Read the clock under the lock, so that times and lines have the same order.
        let at_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let line = Line { at_us, event }.encode().expect("an event has no maps");
        if out.write_all(format!("\n{line}\n").as_bytes()).is_err() {
            std::process::exit(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back() {
        let id = SpoolId::new();
        let events = [
            Event::Opened,
            Event::Store { op: 1, id, version: 2, len: 3, forced: true },
            Event::Remove { op: 4, id },
            Event::Done { op: 5 },
            Event::Failed { op: 6, in_doubt: false },
            Event::Failed { op: 7, in_doubt: true },
            Event::Wrong { what: "a b c".to_owned() },
            Event::Tick,
        ];
        for (n, event) in events.into_iter().enumerate() {
            let line = Line { at_us: 17 + n as u64, event };
            let text = line.encode().unwrap();
            assert_eq!(Line::decode(&text), Some(line.clone()));
            assert_eq!(Line::decode(&format!("test x ... {text}\n")), Some(line));
            assert_eq!(Line::decode(&text[..text.len() - 1]), None);
        }
        assert_eq!(Line::decode("running 1 test"), None);
        assert_eq!(Line::decode("@tidespool 12 store 1"), None);
    }
}
