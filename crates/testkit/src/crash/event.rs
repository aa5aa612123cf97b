//! The lines that the child writes.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::str::SplitAsciiWhitespace;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tidespool_core::SpoolId;

/// Marks a line of the child, among the output of the test harness.
const MARK: &str = "@tidespool ";

/// An intent of the child, or a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The spool is open.
    Opened,
    /// Intent to store.
    Store {
        /// The number of this operation: its result has the same.
        op: u64,
        /// The message.
        id: SpoolId,
        /// Its version, unique among the stores of this id.
        version: u64,
        /// Its length in bytes.
        len: usize,
        /// With `force_sync`.
        forced: bool,
    },
    /// Intent to remove.
    Remove {
        /// The number of this operation.
        op: u64,
        /// The message.
        id: SpoolId,
    },
    /// Operation `op` returned `Ok`.
    Done {
        /// The number of the operation.
        op: u64,
    },
    /// Operation `op` returned an error.
    Failed {
        /// The number of the operation.
        op: u64,
        /// The error is [`InDoubt`](tidespool_core::InDoubt). Any other error promises that nothing
        /// was left behind.
        in_doubt: bool,
    },
    /// The child detected a broken promise.
    Wrong {
        /// What is wrong.
        what: String,
    },
    /// A sign of life, written at intervals.
    Tick,
}

/// An event and its time. Times never decrease from one line to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Microseconds since the child started. For intents: before the call. For results: after the
    /// call.
    pub at_us: u64,
    /// The event.
    pub event: Event,
}

impl Line {
    fn encode(&self) -> String {
        let at = self.at_us;
        match &self.event {
            Event::Opened => format!("{MARK}{at} opened"),
            Event::Store { op, id, version, len, forced } => {
                format!("{MARK}{at} store {op} {id} {version} {len} {forced}")
            }
            Event::Remove { op, id } => format!("{MARK}{at} remove {op} {id}"),
            Event::Done { op } => format!("{MARK}{at} done {op}"),
            Event::Failed { op, in_doubt } => format!("{MARK}{at} failed {op} {in_doubt}"),
            Event::Wrong { what } => format!("{MARK}{at} wrong {}", what.replace('\n', " / ")),
            Event::Tick => format!("{MARK}{at} tick"),
        }
    }

    /// Decodes the line in `text`. Returns `None` if it is not a line of the child, or if the kill
    /// cut it short.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let (_, text) = text.split_once(MARK)?;
        let mut words = text.split_ascii_whitespace();
        let at_us = number(&mut words)?;
        let event = match words.next()? {
            "opened" => Event::Opened,
            "store" => Event::Store {
                op: number(&mut words)?,
                id: words.next()?.parse().ok()?,
                version: number(&mut words)?,
                len: words.next()?.parse().ok()?,
                forced: words.next()?.parse().ok()?,
            },
            "remove" => Event::Remove { op: number(&mut words)?, id: words.next()?.parse().ok()? },
            "done" => Event::Done { op: number(&mut words)? },
            "failed" => Event::Failed { op: number(&mut words)?, in_doubt: words.next()?.parse().ok()? },
            "wrong" => Event::Wrong { what: words.collect::<Vec<_>>().join(" ") },
            "tick" => Event::Tick,
            _ => return None,
        };
        Some(Self { at_us, event })
    }
}

fn number(words: &mut SplitAsciiWhitespace<'_>) -> Option<u64> {
    words.next()?.parse().ok()
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
        let line = format!("\n{}\n", Line { at_us, event }.encode());
        if out.write_all(line.as_bytes()).is_err() {
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
            assert_eq!(Line::decode(&line.encode()), Some(line.clone()));
            assert_eq!(Line::decode(&format!("test x ... {}", line.encode())), Some(line));
        }
        assert_eq!(Line::decode("running 1 test"), None);
        assert_eq!(Line::decode("@tidespool 12 store 1"), None);
    }
}
