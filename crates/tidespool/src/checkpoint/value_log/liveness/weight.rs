//! Estimates how much of a liveness log is useful.

use std::collections::BTreeMap;

use super::record::{LivenessEntry, LivenessKind};
use super::state::Liveness;

/// The size of a segment's list if it were written again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Weight {
    bytes: u64,
    live: u64,
}

/// An estimate for each segment with a list. Holds no data of single records.
#[derive(Debug, Clone, Default)]
pub(super) struct Weights(BTreeMap<u64, Weight>);

impl Weights {
    pub(super) fn of(liveness: &Liveness) -> Self {
        let sizes = liveness.sizes();
        Self(sizes.map(|(generation, bytes, live)| (generation, Weight { bytes, live })).collect())
    }

    pub(super) fn has(&self, generation: u64) -> bool {
        self.0.contains_key(&generation)
    }

    pub(super) fn apply(&mut self, entries: &[LivenessEntry]) {
        for entry in entries {
            let (count, bytes) = (entry.offsets.count(), entry.offsets.bytes().len() as u64);
            match (entry.kind, self.0.get_mut(&entry.generation)) {
                (LivenessKind::First, _) => {
                    self.0.insert(entry.generation, Weight { bytes, live: count });
                }
                (LivenessKind::More, Some(weight)) => {
                    weight.bytes += bytes;
                    weight.live += count;
                }
                (LivenessKind::Dead, Some(weight)) => weight.remove(count),
                (LivenessKind::Gap | LivenessKind::More | LivenessKind::Dead, _) => {}
            }
        }
    }

    /// Returns the useful bytes of the log: the lists of retained segments.
    pub(super) fn useful_bytes(&self, is_retained: &dyn Fn(u64) -> bool) -> u64 {
        /// The kind, the generation, the count and the length.
        const ENTRY_BYTES: u64 = 16;
        let useful = self.0.iter().filter(|(generation, _)| is_retained(**generation));
        useful.map(|(_, weight)| weight.bytes + ENTRY_BYTES).sum()
    }
}

impl Weight {
    fn remove(&mut self, dead: u64) {
        let left = self.live.saturating_sub(dead);
        let share = u128::from(self.bytes) * u128::from(left) / u128::from(self.live.max(1));
        *self = Self { bytes: u64::try_from(share).unwrap_or(self.bytes), live: left };
    }
}
