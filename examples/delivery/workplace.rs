//! The directories of a run. One run at a time can claim them.
//!
//! ```text
//! SPOOL/                0700
//!   delivery.lock       locked while a run uses the directory; marks it as this example's
//!   accepted.jsonl      the log of the run; removed when the run is finished
//!   data/  meta/        the two spools
//!   sink/               where messages arrive, unless --sink is given
//! SINK/
//!   delivery.lock
//!   delivered/  bounced/
//! ```

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::bad_input::BadInput;

/// File name of the run log, in the spool directory.
pub(crate) const NOTES: &str = "accepted.jsonl";

const LOCK_FILE: &str = "delivery.lock";

/// The claimed directories. Dropping this releases them.
#[derive(Debug)]
pub(crate) struct Workplace {
    spool: PathBuf,
    sink: PathBuf,
    spool_claim: Claim,
    sink_claim: Claim,
}

impl Workplace {
    /// Creates and locks both directories. After an error, nothing that it created remains.
    pub(crate) fn claim(spool: &Path, sink: &Path) -> Result<Self, BadInput> {
        let spool_claim = Claim::new(spool, "--spool")?;
        let claimed = Self::claim_sink(spool, sink);
        match claimed {
            Ok((spool, sink, sink_claim)) => Ok(Self { spool, sink, spool_claim, sink_claim }),
            Err(err) => {
                spool_claim.undo();
                Err(err)
            }
        }
    }

    /// Removes what `claim` created. For a run that is rejected before it starts.
    pub(crate) fn abandon(self) {
        self.sink_claim.undo();
        self.spool_claim.undo();
    }

    fn claim_sink(spool: &Path, sink: &Path) -> Result<(PathBuf, PathBuf, Claim), BadInput> {
        let spool = canonical(spool)?;
        if std::path::absolute(sink).is_ok_and(|sink| !may_be_sink(&spool, &sink)) {
            return Err(inside(sink));
        }
        let claim = Claim::new(sink, "--sink")?;
        match canonical(sink) {
            Ok(sink_dir) if may_be_sink(&spool, &sink_dir) => Ok((spool, sink_dir, claim)),
            Ok(_) => {
                claim.undo();
                Err(inside(sink))
            }
            Err(err) => Err(err),
        }
    }

    pub(crate) fn spool(&self) -> &Path {
        &self.spool
    }

    pub(crate) fn sink(&self) -> &Path {
        &self.sink
    }

    pub(crate) fn notes(&self) -> PathBuf {
        self.spool.join(NOTES)
    }

    /// The directory of the store with both spools.
    pub(crate) fn store(&self) -> PathBuf {
        self.spool.join("store")
    }

    /// Removes both spools: those of a finished run, or of a run without a log.
    pub(crate) fn remove_spools(&self) -> Result<(), BadInput> {
        let dir = self.store();
        match std::fs::remove_dir_all(&dir) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                Err(BadInput::io("remove", &dir, &err, "remove it yourself"))
            }
            _ => Ok(()),
        }
    }
}

/// True for a path outside of the spool directory, and for its folder `sink`.
fn may_be_sink(spool: &Path, sink: &Path) -> bool {
    !sink.starts_with(spool) || sink == spool.join("sink")
}

fn inside(sink: &Path) -> BadInput {
    BadInput::new(format!("{} is inside the spool directory: give --sink a folder outside", sink.display()))
}

fn canonical(dir: &Path) -> Result<PathBuf, BadInput> {
    dir.canonicalize().map_err(|err| BadInput::io("use", dir, &err, "give another folder"))
}

/// One locked directory.
#[derive(Debug)]
struct Claim {
    dir: PathBuf,
    /// Holds the lock.
    _file: File,
    made_lock_file: bool,
    /// Directories that `new` created, outermost first.
    made_dirs: Vec<PathBuf>,
}

impl Claim {
    fn new(dir: &Path, option: &str) -> Result<Self, BadInput> {
        let remedy = format!("give {option} a folder that can be written to");
        refuse_foreign(dir, option, &remedy)?;
        let made_dirs = missing_parents(dir);
        if let Err(err) = DirBuilder::new().recursive(true).mode(0o700).create(dir) {
            remove_dirs(&made_dirs);
            return Err(BadInput::io("create", dir, &err, &remedy));
        }
        let path = dir.join(LOCK_FILE);
        let made_lock_file = !path.exists();
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|err| {
            remove_dirs(&made_dirs);
            BadInput::io("write to", dir, &err, &remedy)
        })?;
        match file.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _file: file, made_lock_file, made_dirs }),
            Err(TryLockError::WouldBlock) => Err(BadInput::new(format!(
                "{} is in use by another run: wait for its end, or give another folder with {option}",
                dir.display()
            ))),
            Err(TryLockError::Error(err)) => Err(BadInput::io("lock", &path, &err, &remedy)),
        }
    }

    /// Removes what `new` created. Ignores errors: the user has to see the error that led here.
    fn undo(&self) {
        if self.made_lock_file {
            let _ = std::fs::remove_file(self.dir.join(LOCK_FILE));
        }
        remove_dirs(&self.made_dirs);
    }
}

/// Rejects a folder with foreign files: a run that cleans up could delete them.
fn refuse_foreign(dir: &Path, option: &str, remedy: &str) -> Result<(), BadInput> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => {
            if dir.join(LOCK_FILE).exists() || entries.next().is_none() {
                return Ok(());
            }
            Err(BadInput::new(format!(
                "{} is neither empty nor from an earlier run: give {option} a new or an empty folder",
                dir.display()
            )))
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::NotADirectory => Err(BadInput::new(format!(
            "{} is a file or a path below a file: give {option} a folder",
            dir.display()
        ))),
        Err(err) => Err(BadInput::io("read", dir, &err, remedy)),
    }
}

fn missing_parents(dir: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> = dir
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .map(Path::to_owned)
        .collect();
    missing.reverse();
    missing
}

/// Removes the directories that are empty. `remove_dir` keeps all others.
fn remove_dirs(dirs: &[PathBuf]) {
    for dir in dirs.iter().rev() {
        let _ = std::fs::remove_dir(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_cannot_claim_the_same_directories() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, sink) = (dir.path().join("spool"), dir.path().join("sink"));
        let first = Workplace::claim(&spool, &sink).unwrap();
        let other_sink = dir.path().join("other");
        let err = Workplace::claim(&spool, &other_sink).unwrap_err().to_string();
        assert!(err.contains("in use by another run"), "{err}");
        let err = Workplace::claim(&dir.path().join("other-spool"), &sink).unwrap_err().to_string();
        assert!(err.contains("in use by another run"), "{err}");
        assert!(!other_sink.exists() && !dir.path().join("other-spool").exists());
        drop(first);
        Workplace::claim(&spool, &sink).unwrap();
    }

    #[test]
    fn a_rejected_claim_leaves_no_directories() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let spool = dir.path().join("a/b/spool");
        let err = Workplace::claim(&spool, &file).unwrap_err().to_string();
        assert!(err.contains("file is a file"), "{err}");
        assert!(!dir.path().join("a").exists());
        let err = Workplace::claim(&file.join("below"), &spool).unwrap_err().to_string();
        assert!(err.contains("a path below a file"), "{err}");
    }

    #[test]
    fn foreign_folders_are_rejected_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let err = Workplace::claim(dir.path(), &dir.path().join("sink")).unwrap_err().to_string();
        assert!(err.contains("neither empty nor from an earlier run"), "{err}");
    }

    #[test]
    fn the_sink_must_be_outside_of_the_spools() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("spool");
        for sink in [spool.clone(), spool.join("data"), spool.join("data/sink")] {
            assert!(Workplace::claim(&spool, &sink).unwrap_err().to_string().contains("inside the spool"));
            assert!(!spool.exists());
        }
        let claimed = Workplace::claim(&spool, &spool.join("sink")).unwrap();
        claimed.abandon();
        assert!(!spool.exists());
    }
}
