//! Finds the messages of checkpointed segments without an exact list in the liveness log.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::index::Key;
use crate::journal::{FoundRecord, ReadError, RecordKind, Segment};

/// Removals and aborts that concern the messages of some segments.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// The sequence number of the last removal of each id.
    removed: HashMap<Key, u64>,
    /// Sequence numbers of aborted stores.
    aborted: HashSet<u64>,
}

impl Leftovers {
    /// Adds the removals and aborts in `segment`. Skips its puts, because the abort of one of them
    /// may be in a recycled segment.
    pub(crate) fn add(&mut self, segment: &Segment, salt: u32) -> Result<(), ReadError> {
        for entry in segment.listing(salt)?.entries() {
            match entry.kind {
                RecordKind::Remove => self.remove(Key::of(&entry.id), entry.seq),
                RecordKind::Abort => self.aborted.extend(entry.abort_of),
                RecordKind::Put | RecordKind::Mark => {}
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: Key, seq: u64) {
        let last = self.removed.entry(key).or_insert(seq);
        *last = seq.max(*last);
    }
}

/// Returns the newest version of each message in `segments`, intact or not. Omits versions that
/// were removed or aborted according to these segments or to `gone`. An older version never
/// replaces a damaged one.
pub(crate) fn newest_puts<'a>(
    segments: impl Iterator<Item = &'a Segment>,
    salt: u32,
    mut gone: Leftovers,
) -> Result<BTreeMap<Key, FoundRecord>, ReadError> {
    let mut puts = BTreeMap::new();
    for segment in segments {
        for found in segment.records(salt)? {
            let (key, seq) = (Key::of(&found.header.id), found.header.seq);
            match found.header.kind {
                RecordKind::Put => puts.entry(key).or_insert_with(Vec::new).push(found),
                RecordKind::Remove => gone.remove(key, seq),
                RecordKind::Abort => gone.aborted.extend(found.abort_of),
                RecordKind::Mark => {}
            }
        }
    }
    let newest = puts.into_iter().filter_map(|(key, versions): (Key, Vec<FoundRecord>)| {
        let stands = versions.into_iter().filter(|found| !gone.aborted.contains(&found.header.seq));
        // A moved record exists at two places. The intact one is preferred.
        let newest = stands.max_by_key(|found| (found.header.seq, found.intact))?;
        let is_gone = gone.removed.get(&key).is_some_and(|removed| *removed > newest.header.seq);
        (!is_gone).then_some((key, newest))
    });
    Ok(newest.collect())
}
