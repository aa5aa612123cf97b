//! What fits into the segments that there are. Pure.

/// Room for records, filled up in the way in which they will be written: none of them spans two segments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// In the segment that is being filled.
    pub(super) left: u64,
    /// Segments after it.
    pub(super) free: usize,
    /// Of each of those.
    pub(super) usable: u64,
}

impl Room {
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
