//! Computes what fits into the existing segments. Pure.
//!
//! A record takes its own bytes and an entry in the footer. Records and footer each fill whole
//! pages, so [`JournalRoom`] reserves one page: everything that it admits fits.

use super::footer::{ENTRY_LEN, TRAILER_LEN, footer_len};
use super::record::footprint;
use super::segment::PAGE;

/// Bytes of a segment that a record with a payload of this length takes, with its entry in the
/// footer.
pub(crate) const fn cost(payload_len: u64) -> u64 {
    footprint(payload_len) + ENTRY_LEN
}

/// What further records may cost in a segment with `left` unwritten bytes and `listed` records.
pub(super) const fn usable(left: u64, listed: u64) -> u64 {
    left.saturating_sub(PAGE + TRAILER_LEN + listed * ENTRY_LEN)
}

/// What records may cost in a fresh segment of this size.
pub(super) const fn usable_of(segment_size: u64) -> u64 {
    usable(segment_size.saturating_sub(PAGE), 0)
}

/// True if a message of `len` bytes and a footer do not fit into a segment of this size. The
/// message gets a segment of its own, without a footer.
pub(crate) const fn needs_own_segment(len: u64, segment_size: u64) -> bool {
    cost(len) > usable_of(segment_size)
}

/// The size of a segment for one record with a payload of this length.
pub(super) const fn own_segment_size(payload_len: u64) -> u64 {
    PAGE + footprint(payload_len).next_multiple_of(PAGE)
}

/// Whether records of `bytes` bytes and a footer with `entries` entries fit into `left` bytes.
pub(super) const fn fits(left: u64, bytes: u64, entries: u64) -> bool {
    bytes.next_multiple_of(PAGE) + footer_len(entries) <= left
}

/// Room for records. It is used in the same order as the segments: no record spans two segments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JournalRoom {
    /// Bytes in the active segment.
    pub(super) left: u64,
    /// Segments after it.
    pub(super) free: usize,
    /// Bytes in each of these.
    pub(super) usable: u64,
}

impl JournalRoom {
    /// The sum.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.left + self.free as u64 * self.usable
    }

    /// Returns how many fresh segments of this size these costs need.
    pub(crate) fn segments_for(segment_size: u64, costs: impl Iterator<Item = u64>) -> usize {
        let usable = usable_of(segment_size);
        let mut room = Self { left: 0, free: usize::MAX, usable };
        for cost in costs {
            room.take(cost);
        }
        usize::MAX - room.free
    }

    /// Takes `cost` bytes. False if they do not fit.
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

    #[test]
    fn costs_that_leave_gaps_need_more_segments() {
        let size = 64 << 10;
        let half = usable_of(size) / 2;
        for (costs, segments) in [(vec![], 0), (vec![1], 1), (vec![half, half], 1), (vec![half + 1; 3], 3)] {
            assert_eq!(JournalRoom::segments_for(size, costs.iter().copied()), segments, "{costs:?}");
        }
    }

    /// `JournalRoom` admits records before the writer packs them.
    #[test]
    fn records_that_room_admits_fit() {
        for left in (2..40).map(|pages| pages * PAGE) {
            for listed in [0, 1, 100, 300] {
                for len in [0, 1, 100, 4000, 4040, 9000] {
                    let mut room = JournalRoom { left: usable(left, listed), free: 0, usable: 0 };
                    let mut records = 0;
                    while room.take(cost(len)) {
                        records += 1;
                        assert!(fits(left, records * footprint(len), listed + records));
                    }
                    // One page is reserved, and two are padding.
                    let more = records + 1 + 3 * PAGE / cost(len);
                    assert!(!fits(left, more * footprint(len), listed + more), "room is wasted");
                }
            }
        }
    }
}
