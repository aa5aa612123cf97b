//! The state of a store that waits for its commit, shared by the committer and the caller.

use std::sync::atomic::{AtomicU8, Ordering};

/// The state of one waiting store, or of a transaction of several. The committer and the caller
/// race for each change: exactly one of them wins.
///
/// ```text
/// WAITING ──append──► APPENDED ──commit──► COMMITTED
///    │                    │
///  cancel              abandon
///    ▼                    ▼
/// CANCELLED           ABANDONED
/// ```
///
/// A cancelled store is never written. The record of an abandoned store may be on disk already: the
/// committer appends an abort behind it.
#[derive(Debug, Default)]
pub(crate) struct CommitState(AtomicU8);

const WAITING: u8 = 0;
const APPENDED: u8 = 1;
const COMMITTED: u8 = 2;
const CANCELLED: u8 = 3;
const ABANDONED: u8 = 4;

impl CommitState {
    /// Called by the committer before it appends the record. Returns false if the caller has
    /// cancelled the store.
    pub(crate) fn append(&self) -> bool {
        self.change(WAITING, APPENDED)
    }

    /// Called by the committer when a record is durable, for each record of a transaction. Returns
    /// false if the caller has abandoned the store.
    pub(crate) fn commit(&self) -> bool {
        self.change(APPENDED, COMMITTED) || self.0.load(Ordering::Acquire) == COMMITTED
    }

    /// Called by a caller that gives up. Returns false if the record is appended, so that the disk
    /// may have it.
    pub(crate) fn cancel(&self) -> bool {
        self.change(WAITING, CANCELLED)
    }

    /// Called by a caller that gives up although the record is appended. Returns false if the
    /// message is stored.
    pub(crate) fn abandon(&self) -> bool {
        self.change(APPENDED, ABANDONED)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire) == CANCELLED
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.load(Ordering::Acquire) == ABANDONED
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_store_is_never_appended() {
        let state = CommitState::default();
        assert!(state.cancel() && state.is_cancelled());
        assert!(!state.append() && !state.commit() && !state.abandon());
    }

    #[test]
    fn an_appended_store_is_either_committed_or_abandoned() {
        let state = CommitState::default();
        assert!(!state.abandon() && !state.commit(), "nothing is appended");
        assert!(state.append() && !state.cancel());
        assert!(state.commit() && !state.abandon() && !state.is_abandoned());
        assert!(state.commit(), "the next record of the transaction");
        let state = CommitState::default();
        assert!(state.append() && state.abandon() && state.is_abandoned());
        assert!(!state.commit() && !state.cancel());
    }
}
