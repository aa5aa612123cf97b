//! Records of a torn end. A crash leaves them: they were written last, and were never known to be
//! on stable storage.

use std::collections::BTreeSet;

use super::Damage;
use crate::directory::SpoolNames;
use crate::journal::{RecordKind, Recovered, scan};

/// Returns the records that an opening cuts, as far as they can still be read.
///
/// A flipped bit in the last batch looks the same. The report names the messages, so that an
/// operator who has a copy of them can decide.
pub(super) fn torn_records(recovered: &Recovered, salt: u32, names: &SpoolNames) -> Vec<Damage> {
    let mut reports = Vec::new();
    for segment in &recovered.journal {
        let here = recovered.replayed.torn.iter().filter(|torn| torn.generation == segment.generation);
        let mut offsets: BTreeSet<u64> = here.map(|torn| torn.offset).collect();
        if offsets.is_empty() {
            continue;
        }
        let scanned = scan(&*segment.file, salt, segment.generation, &mut |found| {
            if !offsets.remove(&found.offset) {
                return;
            }
            let what = match (found.header.kind, found.intact) {
                (RecordKind::Put, true) => "a whole message",
                (RecordKind::Put, false) => "a message that is not whole",
                (RecordKind::Remove, _) => "a removal",
                (RecordKind::Abort, _) => "a cancelled store",
                (RecordKind::Mark, _) => "a mark",
            };
            let what = format!("at byte {}, after a torn write: {what}", found.offset);
            reports.push(match found.header.kind {
                RecordKind::Put | RecordKind::Remove => {
                    Damage::of_message(&segment.path, found.header.id, names, what)
                }
                RecordKind::Abort | RecordKind::Mark => Damage::new(&segment.path, what),
            });
        });
        if let Err(error) = scanned {
            let path = segment.path.display();
            tracing::warn!(%error, %path, "the torn end could not be read again");
        }
    }
    reports
}
