//! Reads the crash log that the last run left in a spool's directory, for an opening and for
//! `inspect`.

use std::io;
use std::path::Path;

use super::{CRASH_LOG, Foreign, LogContents, LoggedChange, read};
use crate::storage::{OpenMode, Storage, is_unreadable};

/// The crash log of the last run.
#[derive(Debug, Default)]
pub(crate) struct LastRun {
    /// Changes that were acknowledged and not on stable storage, oldest first.
    pub(crate) kept: Vec<LoggedChange>,
    /// Why the log can't be used, although it may be of this spool and this boot.
    pub(crate) torn: Option<String>,
    /// Bytes of the file, also if it is of another spool or another boot. 0 if there is none, or if
    /// the disk can't read it.
    pub(crate) file_bytes: u64,
}

impl LastRun {
    /// Reads the log in the directory of a spool, if there is one. Retries once after an error.
    ///
    /// A log that is not whole is read again: a disk may return wrong bytes once.
    ///
    /// An error says nothing about the log: an opening must fail and leave it as it is.
    pub(crate) fn read(storage: &dyn Storage, dir: &Path, spool: [u8; 16]) -> io::Result<Self> {
        let attempt = || read_once(storage, dir, spool);
        let Some((mut file_bytes, mut contents)) = attempt().or_else(|_| attempt())? else {
            return Ok(Self::default());
        };
        if !contents.is_whole() {
            let again = attempt()?.unwrap_or((0, LogContents::Foreign(Foreign::Unfinished)));
            if !again.1.is_whole() && again.1 != contents {
                return Err(io::Error::other("two reads of it differ: the disk or memory is faulty"));
            }
            (file_bytes, contents) = again;
        }
        let left = Self { file_bytes, ..Self::default() };
        Ok(match contents {
            LogContents::Whole(kept) => Self { kept, ..left },
            LogContents::Torn(why) => Self { torn: Some(torn(&why)), ..left },
            LogContents::Foreign(Foreign::OtherBoot | Foreign::OtherSpool | Foreign::Unfinished) => left,
        })
    }

    /// Reads the log as [`read`](Self::read) does. A log that the disk can't read is torn.
    pub(crate) fn read_or_torn(storage: &dyn Storage, dir: &Path, spool: [u8; 16]) -> io::Result<Self> {
        match Self::read(storage, dir, spool) {
            Err(error) if is_unreadable(&error) => {
                Ok(Self { torn: Some(torn(&format!("the disk can't read it: {error}"))), ..Self::default() })
            }
            left => left,
        }
    }
}

/// Returns the size of the file in bytes and its contents, or `None` if there is no file.
fn read_once(storage: &dyn Storage, dir: &Path, spool: [u8; 16]) -> io::Result<Option<(u64, LogContents)>> {
    let file = match storage.open(&dir.join(CRASH_LOG), OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    Ok(Some((file.len()?, read(&*file, spool, storage.boot_id()?)?)))
}

fn torn(why: &str) -> String {
    format!(
        "the crash log is not as the last process left it ({why}): changes that were not on stable storage are lost"
    )
}
