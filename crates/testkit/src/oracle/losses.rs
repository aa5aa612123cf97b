use tidespool_core::SpoolId;

use super::Violation;

/// The lost and the kept unsynced stores, by numbers that order the beginnings and the ends of all
/// calls.
#[derive(Debug, Default)]
pub struct Losses {
    /// The newest unsynced store that is still present, by its beginning.
    newest_kept: Option<(u64, SpoolId)>,
    /// The lost unsynced stores that were neither replaced nor removed, by their end.
    lost: Vec<(u64, SpoolId)>,
}

impl Losses {
    /// Records that an unsynced store that began at this time is present.
    pub fn keep(&mut self, at: u64, id: SpoolId) {
        self.newest_kept = self.newest_kept.max(Some((at, id)));
    }

    /// Records that an unsynced store acknowledged at this time is lost, and was neither replaced
    /// nor removed.
    pub fn lose(&mut self, at: u64, id: SpoolId) {
        self.lost.push((at, id));
    }

    /// Returns each store that is lost while a newer one is kept.
    pub fn holes(&self) -> impl Iterator<Item = Violation> + '_ {
        let kept = self.newest_kept;
        self.lost.iter().filter_map(move |&(answered, lost)| {
            kept.filter(|(begun, _)| answered < *begun).map(|(_, kept)| Violation::Hole(lost, kept))
        })
    }
}
