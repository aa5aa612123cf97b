//! Reads every byte of everything that is filed, beside the traffic.
//!
//! Records are taken from the index a few at a time, and their payloads are read while no scan of
//! the index is open: a disk that hangs in a segment then holds up the verification alone.

use tidespool_core::SpoolId;

use super::CheckpointError;
use super::value_log::retained::{describe, place_of_record};
use crate::durable::{DiskIndex, Key, KeyRange, Record};
use crate::journal::{ReadError, Segments};

/// Records taken from the index at once.
const STEP: usize = 256;

/// A message that is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) id: SpoolId,
    pub(crate) what: String,
}

/// How much was read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Verified {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// Checks each payload that the index names and that is `wanted`. Asks `go_on` before each message.
///
/// What is filed, replaced, moved or removed meanwhile is no finding. What is there from the
/// beginning to the end is checked.
///
/// # Errors
///
/// [`CheckpointError::Stopped`] where `go_on` ended it; an I/O error.
pub(crate) fn verify_filed(
    segments: &Segments,
    durable: &DiskIndex,
    wanted: &dyn Fn(&SpoolId) -> bool,
    go_on: &dyn Fn() -> bool,
    report: &mut dyn FnMut(Finding),
) -> Result<Verified, CheckpointError> {
    let mut verified = Verified::default();
    let mut left = KeyRange::ALL;
    loop {
        let step = next_records(durable, &left)?;
        let Some((last, _)) = step.last() else { break };
        left = left.after(last);
        for (key, record) in step {
            if !go_on() {
                return Err(CheckpointError::Stopped);
            }
            if !wanted(&key.id()) {
                continue;
            }
            match check(segments, durable, wanted, key, record)? {
                Checked::Whole(bytes) => {
                    verified.messages += 1;
                    verified.bytes += bytes;
                }
                Checked::Gone => {}
                Checked::Damaged(what) => report(Finding { id: key.id(), what }),
            }
        }
    }
    if go_on() { Ok(verified) } else { Err(CheckpointError::Stopped) }
}

/// The first records in `range`, [`STEP`] at most.
fn next_records(durable: &DiskIndex, range: &KeyRange) -> Result<Vec<(Key, Record)>, CheckpointError> {
    let mut records = Vec::with_capacity(STEP);
    durable.scan(std::slice::from_ref(range), &mut |key, record| {
        records.push((key, record));
        records.len() < STEP
    })?;
    Ok(records)
}

enum Checked {
    /// Its payload has so many bytes.
    Whole(u64),
    /// It was removed, or memory has something newer.
    Gone,
    Damaged(String),
}

fn check(
    segments: &Segments,
    durable: &DiskIndex,
    wanted: &dyn Fn(&SpoolId) -> bool,
    key: Key,
    record: Record,
) -> Result<Checked, CheckpointError> {
    let id = key.id();
    let mut record = record;
    loop {
        let what = match look_at(segments, &id, &record)? {
            Checked::Damaged(what) => what,
            checked => return Ok(checked),
        };
        // The record was read a moment ago. If it was replaced, moved or removed since, what is
        // there now counts. Memory comes first: an id leaves it when the index has its newest
        // record.
        if !wanted(&id) {
            return Ok(Checked::Gone);
        }
        let Some(now) = durable.get(&key)? else { return Ok(Checked::Gone) };
        if now == record {
            return Ok(Checked::Damaged(what));
        }
        record = now;
    }
}

fn look_at(segments: &Segments, id: &SpoolId, record: &Record) -> Result<Checked, CheckpointError> {
    let place = place_of_record(record);
    let Some(segment) = segments.get(place.generation) else {
        return Ok(Checked::Damaged(format!("{}: the segment is missing", describe(id, place))));
    };
    match segment.read_put(segments.salt(), id, place) {
        Ok((data, _)) => Ok(Checked::Whole(data.len() as u64)),
        Err(error @ ReadError::Damaged { .. }) => Ok(Checked::Damaged(error.to_string())),
        Err(error @ ReadError::Io { .. }) => Err(error.into()),
    }
}
