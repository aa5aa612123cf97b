//! Number and size of clean copies.

use std::ops::{Add, Sub};

/// A number of clean copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Copies {
    pub(crate) entries: u64,
    /// Including the overhead of each.
    pub(crate) bytes: u64,
}

impl Add for Copies {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { entries: self.entries + more.entries, bytes: self.bytes + more.bytes }
    }
}

impl Sub for Copies {
    type Output = Self;

    /// Not below zero: two sums that are taken one after the other may both have changed.
    fn sub(self, less: Self) -> Self {
        Self {
            entries: self.entries.saturating_sub(less.entries),
            bytes: self.bytes.saturating_sub(less.bytes),
        }
    }
}
