//! The log of a run: which messages were acknowledged, and therefore must arrive. It is kept
//! outside of the spools, because the check at the end compares the spools with it.
//!
//! One JSON object per line. Each line is written with one call, before the message is passed to
//! delivery. Written lines are in the page cache: they survive `kill -9`, not a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tidespool_core::SpoolId;

use crate::bad_input::BadInput;

/// The version of the format that this program writes and reads.
pub(crate) const VERSION: u32 = 1;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    /// The first line.
    Run(Run),
    Accepted(Accepted),
    Lost(Lost),
}

/// The parameters of the run. They decide which messages there are and how each ends, so a restart
/// must not change them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) version: u32,
    pub(crate) messages: u64,
    pub(crate) seed: u64,
    pub(crate) failures: u8,
    /// The file or folder of the input.
    pub(crate) origin: String,
    /// CRC-32C over all messages.
    pub(crate) fingerprint: u32,
    pub(crate) sink: String,
}

/// A message was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accepted {
    pub(crate) id: SpoolId,
    /// The number of the message in the run.
    pub(crate) index: u64,
    /// Time of the acknowledgement in milliseconds since 1970.
    pub(crate) at_ms: i64,
    /// The message was on stable storage when it was acknowledged.
    pub(crate) synced: bool,
}

/// After a kill, an acknowledged message was neither in the sink nor in the spools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lost {
    pub(crate) id: SpoolId,
    /// True for an unsynced message, acknowledged shortly before the kill: the documented risk.
    /// False means that the spool broke a guarantee.
    pub(crate) excused: bool,
}

/// All lines of a run log, read back.
#[derive(Debug)]
pub(crate) struct Notes {
    pub(crate) run: Run,
    pub(crate) accepted: BTreeMap<SpoolId, Accepted>,
    pub(crate) lost: BTreeMap<SpoolId, Lost>,
}

impl Notes {
    /// Reads the log of an unfinished run. Returns it with the length of its complete lines in
    /// bytes.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Option<(Self, u64)>> {
        let text = match std::fs::read(path) {
            Err(err) if is_absent(&err) => return Ok(None),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        Self::parse(&text).map_err(|(line, reason)| {
            let text = format!(
                "{} line {line} cannot be parsed ({reason}): remove the spool directory to start a new run",
                path.display()
            );
            BadInput::new(text).into()
        })
    }

    /// Ignores a torn last line: its message was not yet acknowledged when the run was killed.
    fn parse(text: &[u8]) -> Result<Option<(Self, u64)>, (usize, String)> {
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let mut notes: Option<Self> = None;
        for (number, line) in text[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
            let line = serde_json::from_slice(line).map_err(|err| (number + 1, err.to_string()))?;
            match (line, &mut notes) {
                (Line::Run(run), None) if run.version == VERSION => {
                    notes = Some(Self { run, accepted: BTreeMap::new(), lost: BTreeMap::new() });
                }
                (Line::Accepted(accepted), Some(notes)) => {
                    notes.accepted.insert(accepted.id, accepted);
                }
                (Line::Lost(lost), Some(notes)) => {
                    notes.lost.insert(lost.id, lost);
                }
                _ => return Err((number + 1, "not written by this version".to_owned())),
            }
        }
        Ok(notes.map(|notes| (notes, whole as u64)))
    }

    /// Time of the last logged acknowledgement in milliseconds since 1970. The run was killed then
    /// or later.
    pub(crate) fn last_sign_of_life_ms(&self) -> Option<i64> {
        self.accepted.values().map(|accepted| accepted.at_ms).max()
    }

    /// The indexes of the messages that are not accepted yet.
    pub(crate) fn indexes_to_accept(&self) -> Vec<u64> {
        let done: BTreeSet<u64> = self.accepted.values().map(|accepted| accepted.index).collect();
        (0..self.run.messages).filter(|index| !done.contains(index)).collect()
    }
}

/// A file in place of the spool directory counts as absent. `Workplace::claim` reports it later.
fn is_absent(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The log, open for appending.
#[derive(Debug)]
pub(crate) struct RunLog {
    /// The lock keeps lines apart. It is held briefly: a line is short, and the write does not wait
    /// for the disk.
    file: Mutex<File>,
}

impl RunLog {
    /// Creates the log of a new run.
    pub(crate) fn create(path: &Path, run: &Run) -> io::Result<Self> {
        let run_log = Self { file: Mutex::new(File::create(path)?) };
        run_log.append(&Line::Run(run.clone()))?;
        Ok(run_log)
    }

    /// Opens the log of an unfinished run and truncates it after its first `whole_bytes`.
    pub(crate) fn reopen(path: &Path, whole_bytes: u64) -> io::Result<Self> {
        let file = File::options().append(true).open(path)?;
        file.set_len(whole_bytes)?;
        Ok(Self { file: Mutex::new(file) })
    }

    pub(crate) fn append(&self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        Run {
            version: VERSION,
            messages: 4,
            seed: 1,
            failures: 15,
            origin: "here".into(),
            fingerprint: 7,
            sink: "/sink".into(),
        }
    }

    fn accepted(index: u64, at_ms: i64) -> Accepted {
        Accepted { id: SpoolId::new(), index, at_ms, synced: false }
    }

    #[test]
    fn the_log_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        assert!(Notes::read(&path).unwrap().is_none());
        let (first, second) = (accepted(0, 10), accepted(2, 30));
        let lost = Lost { id: second.id, excused: true };
        let run_log = RunLog::create(&path, &run()).unwrap();
        for line in [Line::Accepted(first), Line::Accepted(second), Line::Lost(lost)] {
            run_log.append(&line).unwrap();
        }
        let (notes, whole) = Notes::read(&path).unwrap().unwrap();
        assert_eq!(whole, std::fs::metadata(&path).unwrap().len());
        assert_eq!(notes.run, run());
        assert_eq!(notes.accepted.values().collect::<Vec<_>>(), [&first, &second]);
        assert_eq!(notes.lost.values().collect::<Vec<_>>(), [&lost]);
        assert_eq!(notes.last_sign_of_life_ms(), Some(30));
        assert_eq!(notes.indexes_to_accept(), [1, 3]);
    }

    #[test]
    fn a_torn_last_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        RunLog::create(&path, &run()).unwrap().append(&Line::Accepted(accepted(0, 1))).unwrap();
        let whole = std::fs::metadata(&path).unwrap().len();
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend_from_slice(b"{\"accepted\":{\"id\":\"1f0");
        std::fs::write(&path, &torn).unwrap();
        let (notes, kept) = Notes::read(&path).unwrap().unwrap();
        assert_eq!((notes.accepted.len(), kept), (1, whole));
        RunLog::reopen(&path, kept).unwrap().append(&Line::Accepted(accepted(1, 2))).unwrap();
        assert_eq!(Notes::read(&path).unwrap().unwrap().0.accepted.len(), 2);
    }

    #[test]
    fn a_torn_first_line_means_no_run() {
        assert!(Notes::parse(b"").unwrap().is_none());
        assert!(Notes::parse(b"{\"run\":{\"ver").unwrap().is_none());
    }

    #[test]
    fn damage_in_the_middle_is_reported_with_its_line() {
        let first = serde_json::to_string(&Line::Run(run())).unwrap();
        assert_eq!(Notes::parse(format!("{first}\nwhat\n").as_bytes()).unwrap_err().0, 2);
        let newer = serde_json::to_string(&Line::Run(Run { version: 2, ..run() })).unwrap();
        assert_eq!(Notes::parse(format!("{newer}\n").as_bytes()).unwrap_err().0, 1);
        let orphan = serde_json::to_string(&Line::Accepted(accepted(0, 1))).unwrap();
        assert_eq!(Notes::parse(format!("{orphan}\n").as_bytes()).unwrap_err().0, 1);
    }
}
