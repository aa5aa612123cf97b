//! Reads records that are near one another with one call.

use super::index::RecordPlace;
use super::record::{HEADER_LEN, footprint};
use super::segment::Segment;
use crate::message_id::MessageId;
use crate::storage::read_exact_at;

/// The most bytes that one call reads.
const SPAN: u64 = 512 << 10;

/// Payloads above this many bytes are read separately, directly into their own buffer: that saves a
/// copy.
const COPIED_UP_TO: u32 = 16 << 10;

impl Segment {
    /// Reads and checks the payloads of these puts; fastest if they are in file order. `None`: the
    /// read failed, or the record is damaged. [`read_put`](Segment::read_put) returns the reason.
    pub(crate) fn read_puts(&self, salt: u32, puts: &[(MessageId, RecordPlace)]) -> Vec<Option<Vec<u8>>> {
        let alone = |(id, place): &(MessageId, RecordPlace)| {
            self.read_put(salt, id, *place).ok().map(|(payload, _)| payload)
        };
        let mut payloads = Vec::with_capacity(puts.len());
        let mut span = Vec::new();
        let mut rest = puts;
        while let Some(put @ (_, first)) = rest.first() {
            let near = rest.iter().take_while(|(_, place)| is_near(first, place)).count();
            if near < 2 {
                payloads.push(alone(put));
                rest = &rest[1..];
                continue;
            }
            let (together, others) = rest.split_at(near);
            rest = others;
            let end = together.iter().map(|(_, place)| end_of(place)).max().unwrap_or(first.offset);
            span.resize(usize::try_from(end - first.offset).unwrap_or(0), 0);
            if read_exact_at(&*self.file, &mut span, first.offset).is_err() {
                // The file may end in the middle of them.
                payloads.extend(together.iter().map(alone));
                continue;
            }
            payloads.extend(together.iter().map(|(id, place)| {
                let from = usize::try_from(place.offset - first.offset).ok()?;
                let (header, payload) = span.get(from..)?.split_first_chunk::<HEADER_LEN>()?;
                let payload = payload.get(..place.len as usize)?;
                self.check_put(salt, id, *place, header, payload).ok()?;
                Some(payload.to_vec())
            }));
        }
        payloads
    }
}

/// Whether to read `place` in one call with `first`, which is before it.
fn is_near(first: &RecordPlace, place: &RecordPlace) -> bool {
    place.len <= COPIED_UP_TO
        && first.len <= COPIED_UP_TO
        && first.offset <= place.offset
        && end_of(place) - first.offset <= SPAN
}

fn end_of(place: &RecordPlace) -> u64 {
    place.offset + footprint(u64::from(place.len))
}
