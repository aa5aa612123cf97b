//! Tests whether a file system can hold sled.
//!
//! sled calls `sync_file_range`, and fails with `EINVAL` if a file system (or a sandbox) rejects
//! it. Damaged files cause the same error. An empty sled in its own directory can't be damaged, so
//! it separates the two cases.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::TRIAL_DIR;
use super::lock::SledLock;
use super::worker::{SledThreads, WorkerFailure, WorkerParts};

/// After a failed open of sled in `dir`, returns true if an empty sled beside it fails in the same
/// way.
pub(super) fn refuses_sled(dir: &Path, failure: &WorkerFailure, threads: &SledThreads) -> bool {
    if failure.kind != Some(ErrorKind::InvalidInput) {
        return false;
    }
    // Beside the directory of all indexes.
    let Some(parent) = dir.parent().and_then(Path::parent) else { return false };
    let trial = parent.join(TRIAL_DIR);
    // A killed process may have left files there.
    let _ = fs::remove_dir_all(&trial);
    let config = sled::Config::new().path(&trial).cache_capacity(1 << 20).flush_every_ms(None);
    let path = trial.clone();
    let open = move || {
        let db = config.open()?;
        let tree = db.open_tree("trial")?;
        tree.insert(b"key", b"value")?;
        tree.flush()?;
        Ok(WorkerParts { db, tree, lock: SledLock::of(&path) })
    };
    let refused = match threads.start(&trial, open) {
        Ok(Some((sled, worker))) => {
            drop(sled);
            threads.end(worker);
            false
        }
        Ok(None) => false,
        Err(again) => again.kind == failure.kind,
    };
    // The result is the same whether or not the files can be removed.
    let _ = fs::remove_dir_all(&trial);
    refused
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;

    /// On a file system that supports sled, an open that failed with `EINVAL` means damaged files.
    #[test]
    fn a_file_system_that_supports_sled_is_accepted_and_no_file_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let failed = |kind| WorkerFailure { what: "failed".to_owned(), kind };
        let threads = SledThreads::new(Weak::<()>::new());
        for kind in [None, Some(ErrorKind::InvalidInput), Some(ErrorKind::StorageFull)] {
            let refuses = refuses_sled(&dir.path().join("sled/1"), &failed(kind), &threads);
            assert!(!refuses, "{kind:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
