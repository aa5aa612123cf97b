use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::Mode;
use tidespool_core::Spool as _;

use crate::child;
use crate::setup::{assert_holds, block_on, open, put_some, walk};

/// `docs/on-disk-format.md` promises the modes 0700 and 0600 for any umask. Under umask 0777 the
/// files had mode 0000, and an ordinary user could not open the spool again.
#[test]
fn files_are_private_and_usable_under_any_umask() {
    child::run_unprivileged("umask::files_are_private_and_usable_under_any_umask", |dir| {
        for umask in [0o777, 0o277, 0o000, 0o022] {
            rustix::process::umask(Mode::from_bits_truncate(umask));
            let (path, new) = (dir.join(format!("{umask:o}")), dir.join(format!("{umask:o}-repaired")));
            block_on(use_spool(&path, &new, umask));
            rustix::process::umask(Mode::from_bits_truncate(0o022));
        }
    });
}

async fn use_spool(path: &Path, new: &Path, umask: u32) {
    let mut stored = Vec::new();
    // The second round opens the spool that the first has created.
    for round in 0..2 {
        let spool = open(path).await;
        for _ in 0..30 {
            stored.extend(put_some(&spool, true).await);
        }
        spool.compact().await.unwrap();
        check_modes(path, &format!("umask {umask:o}, open, round {round}"));
        assert_holds(&spool, &stored).await;
        spool.shutdown().await.unwrap();
        check_modes(path, &format!("umask {umask:o}, closed, round {round}"));
    }
    let saved = tidespool::inspect::salvage(path, new).unwrap();
    assert!(saved.is_complete() && saved.saved == stored.len() as u64, "{saved:?}");
    check_modes(new, &format!("umask {umask:o}, repaired"));
}

fn check_modes(path: &Path, when: &str) {
    for path in walk(path) {
        let metadata = path.symlink_metadata().unwrap();
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        let mode = metadata.permissions().mode() & 0o7777;
        assert_eq!(mode, expected, "{} has mode {mode:o} ({when})", path.display());
    }
}
