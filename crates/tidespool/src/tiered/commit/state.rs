//! The state of a store that waits for its commit, shared by the committer and the caller.

use std::sync::atomic::{AtomicU8, Ordering};

/// The state of one waiting store. Each change is made once, by the committer or the caller,
/// whichever comes first.
///
/// ```text
/// WAITING ──append──► APPENDED ──commit──► COMMITTED
///    │                    │
///  cancel              abandon
///    ▼                    ▼
/// CANCELLED           ABANDONED
/// ```
///
/// A cancelled store is never written. An abandoned one may be on disk already: its record is
/// followed by an abort.
#[derive(Debug, Default)]
pub(crate) struct CommitState(AtomicU8);

const WAITING: u8 = 0;
const APPENDED: u8 = 1;
const COMMITTED: u8 = 2;
const CANCELLED: u8 = 3;
const ABANDONED: u8 = 4;

impl CommitState {
    /// The committer is about to append the record. False if the caller has cancelled the store.
    pub(crate) fn append(&self) -> bool {
        self.change(WAITING, APPENDED)
    }

    /// The committer has stored the message. False if the caller has abandoned the store.
    pub(crate) fn commit(&self) -> bool {
        self.change(APPENDED, COMMITTED)
    }

    /// The caller gives up. False if the record is appended: the disk may have it.
    pub(crate) fn cancel(&self) -> bool {
        self.change(WAITING, CANCELLED)
    }

    /// The caller gives up although the record is appended. False if the message is stored.
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
        let verdict = CommitState::default();
        assert!(verdict.cancel() && verdict.is_cancelled());
        assert!(!verdict.append() && !verdict.commit() && !verdict.abandon());
    }

    #[test]
    fn what_is_appended_is_committed_or_abandoned_and_not_both() {
        let verdict = CommitState::default();
        assert!(!verdict.abandon() && !verdict.commit(), "nothing is appended");
        assert!(verdict.append() && !verdict.cancel());
        assert!(verdict.commit() && !verdict.abandon() && !verdict.is_abandoned());
        let verdict = CommitState::default();
        assert!(verdict.append() && verdict.abandon() && verdict.is_abandoned());
        assert!(!verdict.commit() && !verdict.cancel());
    }
}
