//! The changes of one checkpoint, collected before they are written.

use std::collections::BTreeMap;

use super::offsets::{Offsets, UNIT};
use super::record::{LivenessEntry, LivenessKind};

/// Records that became live and records that died, by segment.
#[derive(Debug, Clone, Default)]
pub(crate) struct LivenessChanges {
    segments: BTreeMap<u64, LivenessChange>,
}

#[derive(Debug, Clone, Default)]
struct LivenessChange {
    /// In units, unsorted.
    live: Vec<u64>,
    dead: Vec<u64>,
}

impl LivenessChanges {
    /// The record at `offset` of a checkpointed segment lives.
    pub(crate) fn live(&mut self, generation: u64, offset: u64) {
        debug_assert!(offset.is_multiple_of(UNIT), "{offset}");
        self.segments.entry(generation).or_default().live.push(offset / UNIT);
    }

    /// The record at `offset` died. A dead record never becomes live again.
    pub(crate) fn dead(&mut self, generation: u64, offset: u64) {
        debug_assert!(offset.is_multiple_of(UNIT), "{offset}");
        self.segments.entry(generation).or_default().dead.push(offset / UNIT);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Returns the changes as log entries. `is_listed`: the log has a list of the segment, or may
    /// have lost it.
    pub(super) fn entries(&self, is_listed: impl Fn(u64) -> bool) -> Vec<LivenessEntry> {
        let mut entries = Vec::new();
        for (&generation, change) in &self.segments {
            let dead = ascending(&change.dead);
            let live = Offsets::from_ascending(ascending(&change.live)).without(&dead);
            let is_first = !is_listed(generation);
            if is_first && !change.live.is_empty() {
                entries.push(LivenessEntry { kind: LivenessKind::First, generation, offsets: live });
            } else if !is_first {
                let dead = Offsets::from_ascending(dead);
                let both = [(LivenessKind::More, live), (LivenessKind::Dead, dead)];
                let both = both.into_iter().filter(|(_, offsets)| offsets.count() > 0);
                entries.extend(both.map(|(kind, offsets)| LivenessEntry { kind, generation, offsets }));
            }
            // Deaths in a segment without a list need no entry.
        }
        entries
    }
}

fn ascending(units: &[u64]) -> Vec<u64> {
    let mut units = units.to_vec();
    units.sort_unstable();
    units.dedup();
    units
}
