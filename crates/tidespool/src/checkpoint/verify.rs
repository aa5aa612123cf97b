//! Reads every byte of every checkpointed message while the spool runs.
//!
//! Takes records from the index a few at a time, and reads their payloads while no scan of the
//! index is open. A disk that hangs in a segment then blocks the verification alone.

use tidespool_core::SpoolId;

use super::CheckpointError;
use super::value_log::retained::{describe, place_of_record};
use crate::index::{DiskIndex, Key, KeyRange, Record};
use crate::journal::{ReadError, Segments};

/// Records taken from the index at a time.
const STEP: usize = 256;

/// A damaged message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) id: SpoolId,
    pub(crate) what: String,
}

/// The messages and bytes that were read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Verified {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// Checks the payload of each indexed record that is `wanted`. Calls `go_on` before each message.
///
/// Messages that are added, replaced, moved or removed meanwhile are not reported. Every message
/// that stays in place is checked.
///
/// # Errors
///
/// [`CheckpointError::Stopped`] if `go_on` returned false; an I/O error.
pub(crate) fn verify_indexed(
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

/// Returns the first records in `range`, at most [`STEP`].
fn next_records(durable: &DiskIndex, range: &KeyRange) -> Result<Vec<(Key, Record)>, CheckpointError> {
    let mut records = Vec::with_capacity(STEP);
    durable.scan(std::slice::from_ref(range), &mut |key, record| {
        records.push((key, record));
        records.len() < STEP
    })?;
    Ok(records)
}

enum Checked {
    /// The payload is intact. Its size in bytes.
    Whole(u64),
    /// The message was removed, or memory has a newer version.
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
        // The record may have been replaced, moved or removed since it was read, so the current one
        // counts. Memory is checked first, because an id leaves memory once the index has its
        // newest record.
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
