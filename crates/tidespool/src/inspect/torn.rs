//! Records of a torn end: after a crash, what was written last and was not known to be on stable storage.

use std::collections::BTreeSet;

use super::Damage;
use crate::journal::{RecordKind, Recovered, scan};

/// The records that an opening cuts, as far as they can still be read.
///
/// A flipped bit in the last batch looks the same: whoever knows these messages can tell which it was.
pub(super) fn torn_records(recovered: &Recovered, salt: u32) -> Vec<Damage> {
    let mut told = Vec::new();
    for segment in &recovered.journal {
        let here = recovered.replayed.torn.iter().filter(|torn| torn.generation == segment.generation);
        let mut offsets: BTreeSet<u64> = here.map(|torn| torn.offset).collect();
        if offsets.is_empty() {
            continue;
        }
        let path = segment.path.display().to_string();
        let scanned = scan(&*segment.file, salt, segment.generation, &mut |found| {
            if !offsets.remove(&found.offset) {
                return;
            }
            let what = match (found.header.kind, found.intact) {
                (RecordKind::Put, true) => "a whole message",
                (RecordKind::Put, false) => "a message that is not whole",
                (RecordKind::Remove, _) => "a removal",
                (RecordKind::Abort, _) => "a store taken back",
                (RecordKind::Mark, _) => "a mark",
            };
            let id =
                matches!(found.header.kind, RecordKind::Put | RecordKind::Remove).then_some(found.header.id);
            let what = format!("at byte {}, after a torn write: {what}", found.offset);
            told.push(Damage { path: path.clone(), id, what });
        });
        if let Err(error) = scanned {
            tracing::warn!(%error, path, "the torn end could not be read again");
        }
    }
    told
}
