//! `tidespool get`: prints the bytes of one message.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tidespool::inspect::Inspector;
use tidespool_core::{NotFound, SpoolId};

use crate::output::Outcome;
use crate::spool_dir;

/// Write the bytes of one message, as they were stored, to standard output or a file.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the spool. No process may have it open.
    dir: PathBuf,
    /// The id of the message: 32 hexadecimal digits, as `tidespool ls` shows them.
    id: SpoolId,
    /// The name of the message's spool. Needed only if several spools of the store have the id.
    #[arg(long, value_name = "NAME")]
    spool: Option<String>,
    /// Write to FILE, replacing its content, instead of standard output. A new file has mode 0600.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

const ABSENT: &str = "not found, `tidespool ls` shows what is there";

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<Outcome> {
    let spool = spool_dir::open(&args.dir)?;
    let name = match &args.spool {
        Some(name) => {
            spool_dir::check_name(&spool, &args.dir, name)?;
            name.clone()
        }
        None => only_spool_with(&spool, args)?,
    };
    // Loads the whole message first, so that damage leaves no partial output.
    let data = spool.load(&name, args.id).map_err(|err| {
        let absent = err.root_cause().is::<NotFound>();
        let err = err.context(format!("reading from {}", args.dir.display()));
        if absent { err.context(ABSENT) } else { err }
    })?;
    match &args.output {
        Some(file) => {
            write_private(file, &data).with_context(|| format!("writing {}", file.display()))?;
        }
        None => out.write_all(&data).context("writing to standard output")?,
    }
    Ok(Outcome::Fine)
}

/// Returns the name of the only spool that has the message.
fn only_spool_with(spool: &Inspector, args: &Args) -> Result<String> {
    let mut with = spool.spools_with(args.id);
    match (with.pop(), with.is_empty()) {
        (Some(name), true) => Ok(name),
        (Some(last), false) => {
            with.push(last);
            bail!("several spools have message {}: give --spool with one of {}", args.id, with.join(", "))
        }
        (None, _) => Err(anyhow::Error::new(NotFound { id: args.id })
            .context(format!("reading from {}", args.dir.display()))
            .context(ABSENT)),
    }
}

/// Writes a private file: a new file has mode 0600, whatever the umask. An existing file keeps its
/// mode, and may be a device or a pipe.
fn write_private(path: &Path, data: &[u8]) -> io::Result<()> {
    const MODE: u32 = 0o600;
    let file = match OpenOptions::new().write(true).create_new(true).mode(MODE).open(path) {
        Ok(file) => {
            file.set_permissions(Permissions::from_mode(MODE))?;
            Ok(file)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            // A symlink may point to a new file too.
            OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(path)
        }
        Err(error) => Err(error),
    };
    file?.write_all(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: the umask determined the mode of a new file, 0644 on most machines.
    #[test]
    fn a_new_file_is_private_and_an_old_one_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("message");
        let mode = || path.metadata().unwrap().permissions().mode() & 0o7777;
        write_private(&path, b"a first, long message").unwrap();
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        write_private(&path, b"second").unwrap();
        assert_eq!((mode(), std::fs::read(&path).unwrap()), (0o640, b"second".to_vec()));
    }
}
