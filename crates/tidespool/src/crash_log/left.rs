//! What the last run left in a spool's directory. An opening and `inspect` read it in the same way.

use std::io;
use std::path::Path;

use super::{CRASH_LOG, Foreign, LogContents, LoggedChange, read};
use crate::storage::{OpenMode, Storage, is_unreadable};

/// What the last run left.
#[derive(Debug, Default)]
pub(crate) struct LastRun {
    /// Changes that were acknowledged and not on stable storage, oldest first.
    pub(crate) kept: Vec<LoggedChange>,
    /// What is wrong with the file, which can't be believed, though it should.
    pub(crate) torn: Option<String>,
    /// Bytes of the file, which may be another spool's or of another boot; 0 where there is none.
    pub(crate) file_bytes: u64,
}

impl LastRun {
    /// Reads the log in the directory of a spool, if there is one. A failure is tried again once.
    pub(crate) fn read(storage: &dyn Storage, dir: &Path, spool: [u8; 16]) -> io::Result<Self> {
        let attempt = || Self::read_once(storage, dir, spool);
        match attempt().or_else(|_| attempt()) {
            // As of a segment that the disk can't read.
            Err(error) if is_unreadable(&error) => {
                Ok(Self { torn: Some(torn(&format!("the disk can't read it: {error}"))), ..Self::default() })
            }
            left => left,
        }
    }

    fn read_once(storage: &dyn Storage, dir: &Path, spool: [u8; 16]) -> io::Result<Self> {
        let file = match storage.open(&dir.join(CRASH_LOG), OpenMode::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            file => file?,
        };
        let left = Self { file_bytes: file.len()?, ..Self::default() };
        Ok(match read(&*file, spool, storage.boot_id()?)? {
            LogContents::Whole(kept) => Self { kept, ..left },
            LogContents::Torn(why) => Self { torn: Some(torn(&why)), ..left },
            LogContents::Foreign(Foreign::OtherBoot | Foreign::OtherSpool | Foreign::Unfinished) => left,
        })
    }
}

fn torn(why: &str) -> String {
    format!(
        "the crash log is not as the last process left it ({why}): what was not on stable storage then is lost"
    )
}
