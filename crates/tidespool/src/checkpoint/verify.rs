//! Reads every byte of everything that is filed.

use tidespool_core::SpoolId;

use super::FilingError;
use super::retained::{describe, pointed_to};
use crate::durable::{Damaged, Durable, Key, KeyRange, Record};
use crate::journal::{ReadError, Segments};

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

/// Checks each record in sled that is `wanted`, and each payload that one points to.
pub(crate) fn verify_filed(
    segments: &Segments,
    durable: &Durable,
    wanted: &dyn Fn(&SpoolId) -> bool,
    report: &mut dyn FnMut(Finding),
) -> Result<Verified, FilingError> {
    let mut verified = Verified::default();
    let mut failure = None;
    durable.scan(&[KeyRange::ALL], &mut |key, record| {
        if !wanted(&key.id()) {
            return true;
        }
        match check(segments, durable, key, record) {
            Ok(Checked::Whole(bytes)) => {
                verified.messages += 1;
                verified.bytes += bytes;
                true
            }
            Ok(Checked::Damaged(what)) => {
                report(Finding { id: key.id(), what });
                true
            }
            Err(error) => {
                failure = Some(error);
                false
            }
        }
    })?;
    failure.map_or(Ok(verified), Err)
}

enum Checked {
    Whole(u64),
    Damaged(String),
}

fn check(
    segments: &Segments,
    durable: &Durable,
    key: Key,
    record: Result<Record, Damaged>,
) -> Result<Checked, FilingError> {
    let record = match record {
        Ok(record) => record,
        Err(damaged) => return Ok(Checked::Damaged(damaged.reason)),
    };
    let place = match &record {
        Record::Whole { data, .. } => return Ok(Checked::Whole(data.len() as u64)),
        Record::Damaged { reason, .. } => return Ok(Checked::Damaged(reason.clone())),
        Record::Locator { .. } => pointed_to(&record),
    };
    let Some(place) = place else { return Ok(Checked::Whole(0)) };
    let id = key.id();
    let Some(segment) = segments.get(place.generation) else {
        // Replaced, removed or moved since the scan saw it: what is there now will be, or was, seen elsewhere.
        let gone = durable.get(&key)?.as_ref() != Some(&record);
        let missing = format!("{}: the segment is missing", describe(&id, place));
        return Ok(if gone { Checked::Whole(0) } else { Checked::Damaged(missing) });
    };
    match segment.read_put(segments.salt(), &id, place) {
        Ok((data, _)) => Ok(Checked::Whole(data.len() as u64)),
        Err(error @ ReadError::Damaged { .. }) => Ok(Checked::Damaged(error.to_string())),
        Err(error @ ReadError::Io { .. }) => Err(error.into()),
    }
}
