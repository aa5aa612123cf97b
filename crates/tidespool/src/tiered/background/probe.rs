//! The probe thread: checks free space, missing files and the crash log, and tests whether a small
//! file can be written and read back. If the disk hangs, this thread hangs, but `tide-health`,
//! which samples health, does not.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Config;
use crate::storage::{OpenMode, Storage, at, read_exact_at, write_all_at};
use crate::tiered::state::Shared;

/// Bounds of the interval between two checks of free space and files. In between it is
/// `health.sample_interval`.
const MIN_INTERVAL: Duration = Duration::from_millis(250);
const MAX_INTERVAL: Duration = Duration::from_secs(1);

/// Interval between two attempts to create a crash log.
const RENEW_INTERVAL: Duration = Duration::from_secs(5);

/// Runs the thread until the spool closes.
pub(in crate::tiered) fn run_probe(shared: &Arc<Shared>) {
    let mut look_at = Instant::now();
    let mut renew_at = None;
    while shared.probe.wait(look_at) {
        let config = shared.config.load_full();
        if look_at <= Instant::now() {
            look_at_space(shared, &config);
            if shared.presence.look_around() {
                shared.checkpoint_requests.kick();
            }
            look_at_crash_log(shared, &config, &mut renew_at);
            // A slow disk gets a rest between two looks.
            look_at = Instant::now() + config.health.sample_interval.clamp(MIN_INTERVAL, MAX_INTERVAL);
        }
        if shared.probe.begin() {
            let result = test_disk(&*shared.storage, &config.path);
            if let Err(error) = &result {
                tracing::warn!(%error, "the disk was tested and does not work yet");
            }
            shared.probe.end(result.is_ok());
        }
    }
}

fn look_at_space(shared: &Shared, config: &Config) {
    match shared.storage.space(&config.path) {
        Ok(space) => {
            let health = &config.health;
            // A quota that `statvfs` does not show: detected by a failed write, until a test write
            // succeeds.
            let is_used_up = health.checks_space() && shared.ballast.room().is_still_used_up();
            shared.probe.note_low_space(is_used_up || space.is_short(health));
            shared.segments.pool().note_space(&space);
        }
        // Keep the last values.
        Err(error) => {
            tracing::debug!(%error, path = %config.path.display(), "the free space of the file system is unknown");
        }
    }
}

/// Replaces a lost or broken crash log, and creates one if there was no room before.
fn look_at_crash_log(shared: &Shared, config: &Config, renew_at: &mut Option<Instant>) {
    let loss = shared.protection.loss();
    // The directory is checked after the log: both may have moved between two checks.
    if loss.is_some() && shared.protection.has_named_file() && shared.presence.finds_away() {
        // The log moved with its directory, and an opening of the moved directory finds it. A log
        // that was deleted, or that another spool replaced, protects nothing.
        return;
    }
    if let Some(loss) = loss {
        shared.stats.crash_log_lost();
        let path = shared.protection.path();
        tracing::error!(path = %path.display(), %loss, "the crash log is lost: all dirty messages are written now");
    }
    let is_due = renew_at.is_none_or(|at| at <= Instant::now());
    if loss.is_none() && !(is_due && shared.protection.is_missing(config)) {
        return;
    }
    *renew_at = match shared.protection.renew(config) {
        Ok(()) => None,
        Err(error) => {
            // Only the first attempt: a warning every 5 s would be too many.
            if renew_at.is_none() {
                tracing::warn!(%error, "there is no crash log: what must survive the process is synced");
            }
            Some(Instant::now() + RENEW_INTERVAL)
        }
    };
}

const PATTERN: &[u8] = b"tidespool was here";

/// Writes, syncs and reads a small file in the spool's directory.
fn test_disk(storage: &dyn Storage, dir: &Path) -> io::Result<()> {
    let path = dir.join("probe");
    let result = write_and_read(storage, &path);
    let removed = match storage.remove_file(&path) {
        // A cleaner of temporary files has deleted it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    result.and(removed).map_err(|error| at(&path, error))
}

fn write_and_read(storage: &dyn Storage, path: &Path) -> io::Result<()> {
    let file = storage.open(path, OpenMode::Create)?;
    write_all_at(&*file, &mut [IoSlice::new(PATTERN)], 0)?;
    file.sync_data()?;
    // Read from the disk, if the system drops its page cache.
    file.forget_cached();
    let mut back = [0; PATTERN.len()];
    read_exact_at(&*file, &mut back, 0)?;
    if back == PATTERN { Ok(()) } else { Err(io::Error::other("the bytes read differ from those written")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{OsStorage, TestCall, TestStorage};

    #[test]
    fn the_test_succeeds_on_a_working_disk_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("probe"), "of a killed process, and longer than what is written")
            .unwrap();
        test_disk(&OsStorage, dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(test_disk(&OsStorage, &dir.path().join("missing")).is_err());
    }

    /// A cleaner of temporary files deleted the probe file first. That kept the gate of a healthy
    /// spool shut.
    #[test]
    fn a_probe_file_deleted_by_another_program_is_no_disk_error() {
        let cleaned = TestStorage::with(|path, call| match call {
            TestCall::Write { .. } => std::fs::remove_file(path),
            _ => Ok(()),
        });
        let dir = tempfile::tempdir().unwrap();
        test_disk(&cleaned, dir.path()).unwrap();
    }
}
