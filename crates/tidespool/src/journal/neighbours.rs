//! Reads records that stand near one another with one call: for whoever reads many.

use tidespool_core::SpoolId;

use super::index::RecordPlace;
use super::record::{HEADER_LEN, footprint};
use super::segment::Segment;
use crate::storage::read_exact_at;

/// The most that is read at once, in bytes.
const SPAN: u64 = 512 << 10;

/// Payloads above this many bytes are read by themselves, straight to where they are to be: one copy less.
const BY_ITSELF: u32 = 16 << 10;

impl Segment {
    /// The payloads of these puts, checked; best given in the order in which they stand. `None` where one could not be read or is not what it should
    /// be: [`read_put`](Segment::read_put) says why.
    pub(crate) fn read_puts(&self, salt: u32, puts: &[(SpoolId, RecordPlace)]) -> Vec<Option<Vec<u8>>> {
        let mut payloads = Vec::with_capacity(puts.len());
        let mut span = Vec::new();
        let mut rest = puts;
        while let Some((id, first)) = rest.first() {
            let near = rest.iter().take_while(|(_, place)| is_near(first, place)).count();
            if near < 2 {
                payloads.push(self.read_put(salt, id, *first).ok().map(|(payload, _)| payload));
                rest = &rest[1..];
                continue;
            }
            let (together, others) = rest.split_at(near);
            rest = others;
            let end = together.iter().map(|(_, place)| end_of(place)).max().unwrap_or(first.offset);
            span.resize(usize::try_from(end - first.offset).unwrap_or(0), 0);
            if read_exact_at(&*self.file, &mut span, first.offset).is_err() {
                // The end of the file may be in the middle of them.
                payloads.extend(
                    together
                        .iter()
                        .map(|(id, place)| self.read_put(salt, id, *place).ok().map(|(payload, _)| payload)),
                );
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

/// Whether `place` is to be read together with `first`, which stands before it.
fn is_near(first: &RecordPlace, place: &RecordPlace) -> bool {
    place.len <= BY_ITSELF
        && first.len <= BY_ITSELF
        && first.offset <= place.offset
        && end_of(place) - first.offset <= SPAN
}

fn end_of(place: &RecordPlace) -> u64 {
    place.offset + footprint(u64::from(place.len))
}
