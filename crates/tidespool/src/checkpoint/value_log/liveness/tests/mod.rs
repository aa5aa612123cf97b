//! Tests of the liveness log on a disk that fails, crashes and damages it.

mod damage;
mod disk;
mod model;
mod steps;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::tests::disk::LogDisk;
use super::*;

const DIR: &str = "/spool";

fn try_open(disk: &LogDisk, position: LogPosition) -> Result<(LivenessLog, Liveness), LivenessError> {
    LivenessLog::open(Arc::new(disk.clone()), Path::new(DIR), position, &|_| true)
}

fn open(disk: &LogDisk, position: LogPosition) -> (LivenessLog, Liveness) {
    try_open(disk, position).unwrap()
}

fn new_log() -> (LogDisk, LivenessLog) {
    let disk = LogDisk::default();
    let (log, _) = open(&disk, LogPosition::default());
    (disk, log)
}

fn look(disk: &LogDisk, position: LogPosition) -> Liveness {
    LivenessLog::look(disk, Path::new(DIR), position, &|_| true).unwrap()
}

fn file(number: u64) -> PathBuf {
    Path::new(DIR).join(format!("liveness.{number}"))
}

/// Creates changes from (segment, record) pairs.
fn changes(live: &[(u64, u64)], dead: &[(u64, u64)]) -> LivenessChanges {
    let mut changes = LivenessChanges::default();
    live.iter().for_each(|(generation, record)| changes.live(*generation, record * 8));
    dead.iter().for_each(|(generation, record)| changes.dead(*generation, record * 8));
    changes
}

fn commit(log: &mut LivenessLog, live: &[(u64, u64)], dead: &[(u64, u64)]) -> LogPosition {
    let position = log.append(&changes(live, dead)).unwrap();
    log.committed(position);
    position
}

/// Returns the numbers of the live records of a segment.
fn of(liveness: &Liveness, generation: u64) -> Option<Vec<u64>> {
    let records: Option<Vec<u64>> = liveness.of(generation).map(|all| all.map(|one| one / 8).collect());
    assert_eq!(records.as_ref().map(|all| all.len() as u64), liveness.count(generation));
    records
}
