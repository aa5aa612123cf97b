//! What lives, as the log says.

use std::collections::BTreeMap;

use super::offsets::{Offsets, UNIT};
use super::record::{LivenessEntry, LivenessKind};

/// The records that live, by segment. Held encoded: about two bytes a record.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    segments: BTreeMap<u64, ListedSegment>,
    damage: Vec<String>,
    has_gap: bool,
}

#[derive(Debug)]
struct ListedSegment {
    offsets: Offsets,
    /// Died, and not removed from `offsets` yet: in units, in no order.
    dead: Vec<u64>,
    is_exact: bool,
}

impl Liveness {
    /// The offsets of the records of a segment that live, ascending. `None`: the log has no list of
    /// this segment.
    pub(crate) fn of(&self, generation: u64) -> Option<impl Iterator<Item = u64> + '_> {
        let listed = self.segments.get(&generation)?;
        Some(listed.offsets.units().map(|unit| unit.saturating_mul(UNIT)))
    }

    /// How many records of a segment live. `None`: the log has no list of this segment.
    pub(crate) fn count(&self, generation: u64) -> Option<u64> {
        Some(self.segments.get(&generation)?.offsets.count())
    }

    /// True if the list of the segment is complete. False where damage may have cost an entry of
    /// it: records that died may be listed, and records that live may be missing.
    pub(crate) fn is_exact(&self, generation: u64) -> bool {
        self.segments.get(&generation).is_some_and(|listed| listed.is_exact)
    }

    /// The segments that have a list, ascending.
    #[cfg(test)]
    pub(super) fn generations(&self) -> impl Iterator<Item = u64> + '_ {
        self.segments.keys().copied()
    }

    /// What is damaged, as text for an operator. Empty: nothing.
    pub(crate) fn damage(&self) -> &[String] {
        &self.damage
    }

    /// True if entries are missing. Then a segment without a list may have had one.
    pub(crate) const fn has_gap(&self) -> bool {
        self.has_gap
    }

    pub(super) fn note_damage(&mut self, what: String) {
        self.damage.push(what);
    }

    /// Entries are missing here: no list so far is known to be complete.
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
            // Without a first list the segment is unknown, whatever else is said of it.
            LivenessKind::More | LivenessKind::Dead => {
                let Some(listed) = self.segments.get_mut(&generation) else { return };
                match kind {
                    LivenessKind::Dead => listed.dead.extend(offsets.units()),
                    _ => {
                        listed.settle();
                        listed.offsets = listed.offsets.union(&offsets);
                    }
                }
                // Bounds the memory that deaths take, and the work for each of them.
                if listed.dead.len() as u64 > 64 + listed.offsets.count() / 4 {
                    listed.settle();
                }
            }
        }
    }

    /// After the last entry.
    pub(super) fn settle(&mut self) {
        self.segments.values_mut().for_each(ListedSegment::settle);
    }

    /// Entries that say all of this about the segments that are retained.
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

    /// Bytes and records of each list.
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
