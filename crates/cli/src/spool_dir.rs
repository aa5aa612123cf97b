//! Opening a spool's directory to look into it.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tidespool::inspect::Inspector;

/// Opens the spool in `dir`, and refuses with a clear text what is none.
pub(crate) fn open(dir: &Path) -> Result<Inspector> {
    look_at(dir)?;
    Inspector::open(dir).with_context(|| format!("opening the spool {}", dir.display()))
}

/// Refuses with a clear text what is no directory of a spool. Looked at before it is opened, so that a mistyped path never becomes a spool.
pub(crate) fn look_at(dir: &Path) -> Result<()> {
    let shown = dir.display();
    match std::fs::metadata(dir) {
        Ok(found) if !found.is_dir() => bail!("{shown} is not a directory: give the directory of a spool"),
        Ok(_) => {}
        Err(err) if err.kind() == ErrorKind::NotFound => {
            bail!("{shown} does not exist: give the directory of a spool")
        }
        Err(err) => return Err(err).with_context(|| format!("looking at {shown}")),
    }
    // One that lost its FORMAT file still has one of the others.
    for name in ["FORMAT", "journal", "ledger", "sled"] {
        let path = dir.join(name);
        if path.try_exists().with_context(|| format!("looking for {}", path.display()))? {
            return Ok(());
        }
    }
    bail!("{shown} is not a spool, it has no FORMAT file: give the directory of a spool");
}

/// sled panics on some damaged files. That is caught, and told as damage: what it would print says nothing to those who run a command.
pub(crate) fn silence_panics_of_sled() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let is_sleds = panic.location().is_some_and(|location| location.file().contains("/sled-0."));
        if !is_sleds {
            usual(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_spool_is_told_apart_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let err = open(&missing).unwrap_err().to_string();
        assert!(err.contains(&format!("{} does not exist", missing.display())), "{err}");

        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(open(&file).unwrap_err().to_string().contains("is not a directory"));

        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        assert!(open(&empty).unwrap_err().to_string().contains("is not a spool"));
        assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
        assert!(!missing.exists());
    }
}
