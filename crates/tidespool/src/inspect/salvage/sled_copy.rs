//! sled's files, read from a copy: opening them changes them.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::durable::{DurableStore as _, Key, Opening, SledOptions, SledStore, sled_helpers};
use crate::storage::{OpenMode, Storage};

/// The longest wait for one record, and for opening and closing. In damaged files sled may hang.
const PATIENCE: Duration = Duration::from_secs(60);
/// Records that are read ahead.
const AHEAD: usize = 256;
/// Memory for sled's cache: everything is read twice.
const CACHE: u64 = 16 << 20;
const COPIED_AT_ONCE: usize = 1 << 20;

/// What sled's files still hold.
pub(super) trait Records {
    /// Visits every record that can be read, and says what stood in the way. An error of the visitor ends it.
    fn visit(&mut self, visit: &mut dyn FnMut(Key, &[u8]) -> Result<()>) -> Result<Vec<String>>;
}

/// What is to be said where something stood in the way.
pub(super) fn not_all(wrong: &[String]) -> String {
    match wrong {
        [] => "it did not read the same twice".to_owned(),
        _ => format!("not all of it can be read ({})", wrong.join("; ")),
    }
}

/// sled, as far as it can be read.
pub(super) enum SledCopy {
    Open(Arc<SledStore>),
    /// It is missing, or beyond opening.
    Closed,
    /// It hangs, and is not asked again.
    Hung,
}

impl SledCopy {
    /// Copies sled's files from `from` to `to`, and opens the copy. With what is wrong where it does not open.
    pub(super) fn open(disk: &dyn Storage, from: &Path, to: &Path) -> Result<(Self, Option<String>)> {
        if !from.is_dir() {
            return Ok((Self::Closed, Some("it is missing".to_owned())));
        }
        let copying = || format!("copying {} to {}", from.display(), to.display());
        copy(disk, from, to).with_context(copying)?;
        let open = || {
            let options = SledOptions { open_timeout: PATIENCE, ..SledOptions::new(CACHE) };
            SledStore::open(to, options, Opening::First).map(Arc::new)
        };
        let wrong = match open() {
            Ok(store) => return Ok((Self::Open(store), None)),
            // Of the copy: the name of the file would mislead.
            Err(error) => reason(&error.to_string(), to),
        };
        // Anew: trying may have changed the copy.
        fs::remove_dir_all(to).and_then(|()| copy(disk, from, to)).with_context(copying)?;
        for (path, _) in sled_helpers(to).with_context(copying)? {
            fs::remove_file(path).with_context(copying)?;
        }
        match open() {
            Ok(store) => {
                let what = format!("it opens only without its snapshot and settings ({wrong})");
                Ok((Self::Open(store), Some(what)))
            }
            Err(_) => Ok((Self::Closed, Some(format!("it can't be opened ({wrong})")))),
        }
    }

    /// Closes it. It is a copy: what goes wrong here does not matter.
    pub(super) fn close(self) {
        if let Self::Open(store) = self
            && let Err(error) = store.close(PATIENCE)
        {
            tracing::debug!(%error, "the copy of sled's files did not close");
        }
    }
}

impl Records for SledCopy {
    /// sled is read on a thread of its own: where that one hangs it is left behind, for a thread can't be ended from outside.
    fn visit(&mut self, visit: &mut dyn FnMut(Key, &[u8]) -> Result<()>) -> Result<Vec<String>> {
        let hung = || vec![format!("reading it did not go on within {} s", PATIENCE.as_secs())];
        let store = match self {
            Self::Open(store) => store.clone(),
            Self::Closed => return Ok(Vec::new()),
            Self::Hung => return Ok(hung()),
        };
        let (sender, receiver) = sync_channel::<(Key, Vec<u8>)>(AHEAD);
        let reading = move || {
            // An error: the receiver has gone.
            store.visit_readable(&mut |key, value| sender.send((key, value.to_vec())).is_ok())
        };
        let thread = thread::Builder::new().name("tidespool-salvage".to_owned()).spawn(reading)?;
        loop {
            match receiver.recv_timeout(PATIENCE) {
                Ok((key, value)) => visit(key, &value)?,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    *self = Self::Hung;
                    return Ok(hung());
                }
            }
        }
        Ok(match thread.join() {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => vec![error.to_string()],
            Err(_) => vec!["reading it failed".to_owned()],
        })
    }
}

fn reason(text: &str, copy: &Path) -> String {
    text.replace(&format!("{}: ", copy.display()), "").replace("; it has to be opened again", "")
}

fn copy(disk: &dyn Storage, from: &Path, to: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()? {
            kind if kind.is_dir() => copy(disk, &entry.path(), &target)?,
            kind if kind.is_file() => copy_file(disk, &entry.path(), &target)?,
            _ => {}
        }
    }
    Ok(())
}

/// Not with one call: what the disk can't read is left out, and the rest is copied.
fn copy_file(disk: &dyn Storage, from: &Path, to: &Path) -> io::Result<()> {
    let source = disk.open(from, OpenMode::Read)?;
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let mut block = vec![0; COPIED_AT_ONCE];
    let mut offset = 0;
    loop {
        match source.read_at(&mut block, offset) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                target.write_all(&block[..read])?;
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
