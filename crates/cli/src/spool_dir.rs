//! Opening a spool's directory to look into it.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tidespool::inspect::Inspector;

/// Opens the spool in `dir`, and refuses with a clear text what is none.
///
/// Looked at before it is opened, so that a mistyped path never becomes a spool.
pub(crate) fn open(dir: &Path) -> Result<Inspector> {
    let shown = dir.display();
    match std::fs::metadata(dir) {
        Ok(found) if !found.is_dir() => bail!("{shown} is not a directory: give the directory of a spool"),
        Ok(_) => {}
        Err(err) if err.kind() == ErrorKind::NotFound => {
            bail!("{shown} does not exist: give the directory of a spool")
        }
        Err(err) => return Err(err).with_context(|| format!("looking at {shown}")),
    }
    let format = dir.join("FORMAT");
    if !format.try_exists().with_context(|| format!("looking for {}", format.display()))? {
        bail!("{shown} is not a spool, it has no FORMAT file: give the directory of a spool");
    }
    Inspector::open(dir).with_context(|| format!("opening the spool {shown}"))
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
