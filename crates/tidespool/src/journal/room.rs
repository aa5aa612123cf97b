//! What fits into the segments that there are. Pure.
//!
//! A record takes its own bytes and those of its entry in the footer. Records and footer each fill
//! whole pages, so [`JournalRoom`] leaves out one page: whatever it says that fits does fit.

use super::footer::{ENTRY_LEN, TRAILER_LEN, footer_len};
use super::record::footprint;
use super::segment::PAGE;

/// Bytes of a segment that a record with such a payload takes, its entry in the footer included.
pub(crate) const fn cost(payload_len: u64) -> u64 {
    footprint(payload_len) + ENTRY_LEN
}

/// What records may cost in a segment of which `left` bytes are not written, and in which `listed`
/// records stand.
pub(super) const fn usable(left: u64, listed: u64) -> u64 {
    left.saturating_sub(PAGE + TRAILER_LEN + listed * ENTRY_LEN)
}

/// What records may cost in a fresh segment of this size.
pub(super) const fn usable_of(segment_size: u64) -> u64 {
    usable(segment_size.saturating_sub(PAGE), 0)
}

/// True if a message of `len` bytes does not fit into a segment of this size, with a footer behind
/// it. It gets a segment of its own, without a footer.
pub(crate) const fn needs_own_segment(len: u64, segment_size: u64) -> bool {
    cost(len) > usable_of(segment_size)
}

/// The size of the segment for one record with such a payload.
pub(super) const fn own_segment_size(payload_len: u64) -> u64 {
    PAGE + footprint(payload_len).next_multiple_of(PAGE)
}

/// Whether records of so many bytes and a footer of so many entries fit into `left` bytes.
pub(super) const fn fits(left: u64, bytes: u64, entries: u64) -> bool {
    bytes.next_multiple_of(PAGE) + footer_len(entries) <= left
}

/// Room for records, filled up in the way in which they will be written: none of them spans two segments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JournalRoom {
    /// In the segment that is being filled.
    pub(super) left: u64,
    /// Segments after it.
    pub(super) free: usize,
    /// Of each of those.
    pub(super) usable: u64,
}

impl JournalRoom {
    /// All of it.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.left + self.free as u64 * self.usable
    }

    /// Takes `cost` bytes, if they fit.
    pub(crate) fn take(&mut self, cost: u64) -> bool {
        if cost > self.left {
            if cost > self.usable || self.free == 0 {
                return false;
            }
            (self.free, self.left) = (self.free - 1, self.usable);
        }
        self.left -= cost;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `JournalRoom` is asked first and the writer packs afterwards.
    #[test]
    fn what_room_admits_fits() {
        for left in (2..40).map(|pages| pages * PAGE) {
            for listed in [0, 1, 100, 300] {
                for len in [0, 1, 100, 4000, 4040, 9000] {
                    let mut room = JournalRoom { left: usable(left, listed), free: 0, usable: 0 };
                    let mut records = 0;
                    while room.take(cost(len)) {
                        records += 1;
                        assert!(fits(left, records * footprint(len), listed + records));
                    }
                    // One page is left out, and two are filled up.
                    let more = records + 1 + 3 * PAGE / cost(len);
                    assert!(!fits(left, more * footprint(len), listed + more), "room is wasted");
                }
            }
        }
    }
}
