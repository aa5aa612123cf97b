//! Opens the directory of a spool for inspection.

use std::io::{self, ErrorKind};
use std::path::Path;

use anyhow::{Context, Result, bail};
use tidespool::inspect::Inspector;

/// Opens the spool in `dir`. Returns a clear error if there is none.
pub(crate) fn open(dir: &Path) -> Result<Inspector> {
    look_at(dir)?;
    Inspector::open(dir).with_context(|| format!("opening the spool {}", dir.display()))
}

/// Returns a clear error if the store in `dir` has no spool of this name.
pub(crate) fn check_name(spool: &Inspector, dir: &Path, name: &str) -> Result<()> {
    let names = spool.spools();
    if names.iter().any(|known| known == name) {
        return Ok(());
    }
    let has =
        if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", names.join(", ")) };
    bail!("{} has no spool {name:?}: {has}", dir.display())
}

/// Returns a clear error if `dir` is not the directory of a spool. Runs before it is opened, so
/// that a mistyped path never becomes a spool.
pub(crate) fn look_at(dir: &Path) -> Result<()> {
    let shown = dir.display();
    match std::fs::metadata(dir) {
        Ok(found) if !found.is_dir() => bail!("{shown} is not a directory: give the directory of a spool"),
        Ok(_) => {}
        Err(err) if err.kind() == ErrorKind::NotFound => match std::fs::read_link(dir) {
            Ok(target) => {
                let target = target.display();
                bail!("{shown} is a symlink to {target}, which does not exist: give the directory of a spool")
            }
            Err(_) => bail!("{shown} does not exist: give the directory of a spool"),
        },
        Err(err) if err.kind() == ErrorKind::NotADirectory => {
            bail!("{shown} lies below a file: give the directory of a spool")
        }
        Err(err) => return Err(looking_at(dir, err)),
    }
    // A spool without its FORMAT file still has one of the others.
    for name in ["FORMAT", "journal", "manifest", "sled"] {
        let path = dir.join(name);
        match path.try_exists() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(err) => return Err(looking_at(&path, err)),
        }
    }
    bail!("{shown} is not a spool, it has no FORMAT file: give the directory of a spool");
}

fn looking_at(path: &Path, err: io::Error) -> anyhow::Error {
    let advice = match err.kind() {
        ErrorKind::PermissionDenied => " (run the command as the user that the spool belongs to)",
        _ => "",
    };
    anyhow::Error::new(err).context(format!("looking at {}{advice}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_paths_are_distinguished_and_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let err = open(&missing).unwrap_err().to_string();
        assert!(err.contains(&format!("{} does not exist", missing.display())), "{err}");

        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(open(&file).unwrap_err().to_string().contains("is not a directory"));
        let below = open(&file.join("spool")).unwrap_err().to_string();
        assert!(below.contains("spool lies below a file: "), "{below}");

        // Regression: a dangling symlink was reported as a path that does not exist, though `ls`
        // shows it.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&missing, &link).unwrap();
        let dangling = open(&link).unwrap_err().to_string();
        assert!(
            dangling.contains("is a symlink to ") && dangling.contains("which does not exist"),
            "{dangling}"
        );

        let denied = looking_at(&missing, ErrorKind::PermissionDenied.into()).to_string();
        assert!(denied.contains("as the user that the spool belongs to"), "{denied}");

        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        assert!(open(&empty).unwrap_err().to_string().contains("is not a spool"));
        assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
        assert!(!missing.exists());
    }
}
