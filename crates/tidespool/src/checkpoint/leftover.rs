//! What filed segments still hold, for the case that sled lost its record of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use crate::durable::Key;
use crate::journal::{Found, Kind, Segment, scan};

/// The newest version of each message in `segments`, intact or not, as far as they tell: what they say was taken back or removed since is left out. A
/// version that is damaged is not replaced by an older one.
pub(crate) fn newest_puts<'a>(
    segments: impl Iterator<Item = &'a Segment>,
    salt: u32,
) -> Result<BTreeMap<Key, Found>, (&'a Segment, io::Error)> {
    let (mut puts, mut removed, mut aborted) = (BTreeMap::new(), HashMap::new(), HashSet::new());
    for segment in segments {
        scan(&*segment.file, salt, segment.generation, &mut |found| {
            let (key, seq) = (Key::of(&found.header.id), found.header.seq);
            match found.header.kind {
                Kind::Put => puts.entry(key).or_insert_with(Vec::new).push(found),
                Kind::Remove => {
                    let last = removed.entry(key).or_insert(seq);
                    *last = seq.max(*last);
                }
                Kind::Abort => aborted.extend(found.abort_of),
                Kind::Mark => {}
            }
        })
        .map_err(|source| (segment, source))?;
    }
    let newest = puts.into_iter().filter_map(|(key, versions): (Key, Vec<Found>)| {
        let stands = versions.into_iter().filter(|found| !aborted.contains(&found.header.seq));
        // One that was moved stands at two places: whichever can be read.
        let newest = stands.max_by_key(|found| (found.header.seq, found.intact))?;
        let is_gone = removed.get(&key).is_some_and(|removed| *removed > newest.header.seq);
        (!is_gone).then_some((key, newest))
    });
    Ok(newest.collect())
}
