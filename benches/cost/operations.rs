//! The operations whose cost is guarded.

use super::figure::Figure;

/// One operation on messages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation {
    /// Its name, in the table and in the file of limits.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Bytes of a message.
    pub(crate) size: usize,
    /// How many of them are counted together.
    ///
    /// The tables of the spool double when they are full. The number stays clear of those at which many of their 64 shards do.
    pub(crate) count: u64,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An unsynced store of a new message.
    Store,
    /// An unsynced store over the same message.
    Resave,
    /// A load of a message that is not written yet.
    LoadDirty,
    /// A load of a clean copy from the cache.
    LoadClean,
    /// The same, without a copy of the bytes.
    LoadShared,
    /// A remove of a message that is not written yet.
    RemoveYoung,
    /// A remove of a message that is in the journal: a tombstone is queued.
    RemoveJournaled,
    /// Store, load and remove, unsynced.
    Lifecycle,
    /// A synced store, one after the other.
    Synced,
    /// Synced stores of [`CALLERS`] callers that wait together.
    SyncedTogether,
    /// A message in the journal that is filed, with the others of a full segment.
    Checkpoint,
    /// The same of a segment that is mostly empty: its messages are moved, too.
    CheckpointAndRewrite,
    /// A load of a message that is only in the journal.
    ColdJournal,
    /// A load of a message that is filed.
    ColdFiled,
    /// Whether the spool is healthy: asked on every connection.
    Health,
}

/// Callers of [`Kind::SyncedTogether`].
pub(crate) const CALLERS: u64 = 64;

const KIB: usize = 1_024;

/// For operations on memory alone.
const MANY: u64 = 5_376;
/// For those that touch the journal.
const SOME: u64 = 1_280;

const fn operation(name: &'static str, kind: Kind, size: usize, count: u64) -> Operation {
    Operation { name, kind, size, count }
}

/// All of them.
pub(crate) const OPERATIONS: &[Operation] = &[
    operation("store 512 B", Kind::Store, 512, MANY),
    operation("store 16 KiB", Kind::Store, 16 * KIB, MANY),
    operation("store again 1 KiB", Kind::Resave, KIB, MANY),
    operation("load dirty 16 KiB", Kind::LoadDirty, 16 * KIB, MANY),
    operation("load hit 16 KiB", Kind::LoadClean, 16 * KIB, SOME),
    operation("load_shared hit 16 KiB", Kind::LoadShared, 16 * KIB, SOME),
    operation("remove young 16 KiB", Kind::RemoveYoung, 16 * KIB, MANY),
    operation("remove journaled 16 KiB", Kind::RemoveJournaled, 16 * KIB, SOME),
    operation("lifecycle 16 KiB", Kind::Lifecycle, 16 * KIB, MANY),
    operation("synced store, 1 caller, 512 B", Kind::Synced, 512, SOME),
    operation("synced store, 1 caller, 16 KiB", Kind::Synced, 16 * KIB, SOME),
    operation("synced store, 64 callers, 512 B", Kind::SyncedTogether, 512, SOME),
    operation("synced store, 64 callers, 16 KiB", Kind::SyncedTogether, 16 * KIB, SOME),
    operation("checkpoint 512 B", Kind::Checkpoint, 512, SOME),
    operation("checkpoint 16 KiB", Kind::Checkpoint, 16 * KIB, SOME),
    operation("checkpoint and rewrite 512 B", Kind::CheckpointAndRewrite, 512, SOME),
    operation("checkpoint and rewrite 16 KiB", Kind::CheckpointAndRewrite, 16 * KIB, SOME),
    operation("load cold, journal, 16 KiB", Kind::ColdJournal, 16 * KIB, SOME),
    operation("load cold, filed, 512 B", Kind::ColdFiled, 512, SOME),
    operation("load cold, filed, 16 KiB", Kind::ColdFiled, 16 * KIB, SOME),
    operation("unhealthy_reason", Kind::Health, KIB, MANY),
];

impl Operation {
    /// The one of this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        OPERATIONS.iter().find(|operation| operation.name == name)
    }

    /// What is guarded of it.
    pub(crate) fn figures(&self) -> &'static [Figure] {
        use Figure::{Allocated, Allocations, Instructions, Read, Reads, Sled, Syncs, Written};
        match self.kind {
            Kind::Checkpoint | Kind::CheckpointAndRewrite => {
                &[Instructions, Allocations, Allocated, Syncs, Written, Reads, Read, Sled]
            }
            Kind::ColdJournal | Kind::ColdFiled => {
                &[Instructions, Allocations, Allocated, Syncs, Written, Reads, Read]
            }
            _ => &[Instructions, Allocations, Allocated, Syncs, Written],
        }
    }
}
