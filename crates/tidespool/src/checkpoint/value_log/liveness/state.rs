//! The live records, according to the log.

use std::collections::BTreeMap;

use super::offsets::{Offsets, UNIT};
use super::record::{LivenessEntry, LivenessKind};

/// The live records, by segment. Kept encoded: about two bytes for each record.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    segments: BTreeMap<u64, ListedSegment>,
    damage: Vec<String>,
    has_gap: bool,
}

#[derive(Debug)]
struct ListedSegment {
    offsets: Offsets,
    /// Died, but still in `offsets`: in units, unsorted.
    dead: Vec<u64>,
    is_exact: bool,
}

impl Liveness {
    /// Returns the offsets of the live records of a segment, ascending. `None` if the log has no
    /// list of the segment.
    pub(crate) fn of(&self, generation: u64) -> Option<impl Iterator<Item = u64> + '_> {
        let listed = self.segments.get(&generation)?;
        Some(listed.offsets.units().map(|unit| unit.saturating_mul(UNIT)))
    }

    /// Returns the number of live records of a segment. `None` if the log has no list of the
    /// segment.
    pub(crate) fn count(&self, generation: u64) -> Option<u64> {
        Some(self.segments.get(&generation)?.offsets.count())
    }

    /// Returns true if the list of the segment is complete. If damage may have lost an entry of it,
    /// dead records may be listed and live records may be missing.
    pub(crate) fn is_exact(&self, generation: u64) -> bool {
        self.segments.get(&generation).is_some_and(|listed| listed.is_exact)
    }

    /// The segments that have a list, ascending.
    #[cfg(test)]
    pub(super) fn generations(&self) -> impl Iterator<Item = u64> + '_ {
        self.segments.keys().copied()
    }

    /// Returns the damage as text for an operator. Empty if there is none.
    pub(crate) fn damage(&self) -> &[String] {
        &self.damage
    }

    /// Returns true if entries are missing. Then a segment without a list may have had one.
    pub(crate) const fn has_gap(&self) -> bool {
        self.has_gap
    }

    pub(super) fn note_damage(&mut self, what: String) {
        self.damage.push(what);
    }

    /// Marks that entries are missing at this point: no list so far is certain to be complete.
    pub(super) fn gap(&mut self) {
        self.has_gap = true;
        self.segments.values_mut().for_each(|listed| listed.is_exact = false);
    }

    pub(super) fn apply(&mut self, entry: LivenessEntry) {
        let LivenessEntry { kind, generation, offsets } = entry;
        match kind {
            LivenessKind::First => {
                let listed = ListedSegment { offsets, dead: Vec::new(), is_exact: true };
                self.segments.insert(generation, listed);
            }
            LivenessKind::Gap => self.gap(),
            // Without a first list the other entries of a segment are useless.
            LivenessKind::More | LivenessKind::Dead => {
                let Some(listed) = self.segments.get_mut(&generation) else { return };
                match kind {
                    LivenessKind::Dead => listed.dead.extend(offsets.units()),
                    _ => {
                        listed.settle();
                        listed.offsets = listed.offsets.union(&offsets);
                    }
                }
                // Bounds the memory for deaths, and the work for each of them.
                if listed.dead.len() as u64 > 64 + listed.offsets.count() / 4 {
                    listed.settle();
                }
            }
        }
    }

    /// Applies the remaining deaths. Call this after the last entry.
    pub(super) fn settle(&mut self) {
        self.segments.values_mut().for_each(ListedSegment::settle);
    }

    /// Returns entries that describe this state, for the retained segments.
    pub(super) fn entries(&self, is_retained: &dyn Fn(u64) -> bool) -> Vec<LivenessEntry> {
        let of = |is_exact| {
            let segments = self.segments.iter();
            let segments = segments
                .filter(move |(generation, listed)| listed.is_exact == is_exact && is_retained(**generation));
            segments.map(|(&generation, listed)| LivenessEntry {
                kind: LivenessKind::First,
                generation,
                offsets: listed.offsets.clone(),
            })
        };
        let gap = self.has_gap.then(LivenessEntry::gap);
        of(false).chain(gap).chain(of(true)).collect()
    }

    /// Returns generation, bytes and records of each list.
    pub(super) fn sizes(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.segments.iter().map(|(&generation, listed)| {
            (generation, listed.offsets.bytes().len() as u64, listed.offsets.count())
        })
    }
}

impl ListedSegment {
    fn settle(&mut self) {
        if !self.dead.is_empty() {
            self.dead.sort_unstable();
            self.offsets = self.offsets.without(&self.dead);
            self.dead = Vec::new();
        }
    }
}
