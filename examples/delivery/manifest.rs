//! The notes of a run: what was acknowledged, and so has to arrive. They stand outside the spools, as the oracle by
//! which the spools are judged.
//!
//! One JSON a line, each written with one call before the message is handed to delivery. What was written survives
//! `kill -9` (it is with the operating system), not a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tidespool_core::SpoolId;

use crate::bad_input::BadInput;

/// The form of the notes that this program writes and reads.
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

/// What a restart must not change: it decides which messages there are and how each of them ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) version: u32,
    pub(crate) messages: u64,
    pub(crate) seed: u64,
    pub(crate) failures: u8,
    /// Where the messages are from.
    pub(crate) origin: String,
    /// CRC-32C over all of them.
    pub(crate) fingerprint: u32,
    pub(crate) sink: String,
}

/// A message was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accepted {
    pub(crate) id: SpoolId,
    /// Which message of the run.
    pub(crate) index: u64,
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: i64,
    /// Acknowledged as on stable storage.
    pub(crate) synced: bool,
}

/// After a kill, an acknowledged message was neither in the sink nor in the spools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lost {
    pub(crate) id: SpoolId,
    /// Not synced, and acknowledged within the last moments: the documented risk. Else a promise was broken.
    pub(crate) excused: bool,
}

/// All lines of a run, read back.
#[derive(Debug)]
pub(crate) struct Notes {
    pub(crate) run: Run,
    pub(crate) accepted: BTreeMap<SpoolId, Accepted>,
    pub(crate) lost: BTreeMap<SpoolId, Lost>,
}

impl Notes {
    /// Reads the notes of an unfinished run, if there are any, and how many bytes of the file are whole lines.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Option<(Self, u64)>> {
        let text = match std::fs::read(path) {
            Err(err) if is_absent(&err) => return Ok(None),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        Self::parse(&text).map_err(|(line, reason)| {
            let text = format!(
                "{} line {line} is not understood ({reason}): remove the spool directory to start anew",
                path.display()
            );
            BadInput::new(text).into()
        })
    }

    /// What follows the last newline was being written when the run was killed, and was acknowledged to nobody.
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

    /// When the run last noted anything, in milliseconds since 1970. It was killed at this moment or later.
    pub(crate) fn last_sign_of_life_ms(&self) -> Option<i64> {
        self.accepted.values().map(|accepted| accepted.at_ms).max()
    }

    /// The messages of the run that are still to be accepted.
    pub(crate) fn indexes_to_accept(&self) -> Vec<u64> {
        let done: BTreeSet<u64> = self.accepted.values().map(|accepted| accepted.index).collect();
        (0..self.run.messages).filter(|index| !done.contains(index)).collect()
    }
}

/// A file in the place of the spool directory is found, and named, when the directory is claimed.
fn is_absent(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The file, open for further lines.
#[derive(Debug)]
pub(crate) struct Manifest {
    /// A lock, so that lines do not mix. A line is short, and the write does not wait for the disk.
    file: Mutex<File>,
}

impl Manifest {
    /// Starts the notes of a new run.
    pub(crate) fn create(path: &Path, run: &Run) -> io::Result<Self> {
        let manifest = Self { file: Mutex::new(File::create(path)?) };
        manifest.append(&Line::Run(run.clone()))?;
        Ok(manifest)
    }

    /// Goes on with the notes of an unfinished run, after its first `whole_bytes`.
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
    fn notes_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        assert!(Notes::read(&path).unwrap().is_none());
        let (first, second) = (accepted(0, 10), accepted(2, 30));
        let lost = Lost { id: second.id, excused: true };
        let manifest = Manifest::create(&path, &run()).unwrap();
        for line in [Line::Accepted(first), Line::Accepted(second), Line::Lost(lost)] {
            manifest.append(&line).unwrap();
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
        Manifest::create(&path, &run()).unwrap().append(&Line::Accepted(accepted(0, 1))).unwrap();
        let whole = std::fs::metadata(&path).unwrap().len();
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend_from_slice(b"{\"accepted\":{\"id\":\"1f0");
        std::fs::write(&path, &torn).unwrap();
        let (notes, kept) = Notes::read(&path).unwrap().unwrap();
        assert_eq!((notes.accepted.len(), kept), (1, whole));
        Manifest::reopen(&path, kept).unwrap().append(&Line::Accepted(accepted(1, 2))).unwrap();
        assert_eq!(Notes::read(&path).unwrap().unwrap().0.accepted.len(), 2);
    }

    #[test]
    fn a_torn_first_line_is_no_run() {
        assert!(Notes::parse(b"").unwrap().is_none());
        assert!(Notes::parse(b"{\"run\":{\"ver").unwrap().is_none());
    }

    #[test]
    fn damage_in_the_middle_is_named() {
        let first = serde_json::to_string(&Line::Run(run())).unwrap();
        assert_eq!(Notes::parse(format!("{first}\nwhat\n").as_bytes()).unwrap_err().0, 2);
        let newer = serde_json::to_string(&Line::Run(Run { version: 2, ..run() })).unwrap();
        assert_eq!(Notes::parse(format!("{newer}\n").as_bytes()).unwrap_err().0, 1);
        let orphan = serde_json::to_string(&Line::Accepted(accepted(0, 1))).unwrap();
        assert_eq!(Notes::parse(format!("{orphan}\n").as_bytes()).unwrap_err().0, 1);
    }
}
