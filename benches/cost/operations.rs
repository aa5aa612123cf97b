//! The operations with limits.

use super::figure::Figure;

/// One operation on messages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation {
    /// The name in the table and in the file of limits.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Length of a message in bytes.
    pub(crate) size: usize,
    /// The number of operations that are counted together.
    ///
    /// The tables of the spool double when they are full. This number is far from those at which
    /// many of their 64 shards double.
    pub(crate) count: u64,
}

/// The kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An unsynced store of a new message.
    Store,
    /// An unsynced store that replaces the same message.
    Resave,
    /// A load of a dirty message.
    LoadDirty,
    /// A load of a clean copy from the cache.
    LoadClean,
    /// A load of a clean copy, without copying the bytes.
    LoadShared,
    /// A remove of a dirty message.
    RemoveYoung,
    /// A remove of a message in the journal, which queues a tombstone.
    RemoveJournaled,
    /// Store, load and remove, unsynced.
    Lifecycle,
    /// Synced stores, one after the other.
    Synced,
    /// Synced stores of [`CALLERS`] concurrent callers.
    SyncedTogether,
    /// A checkpoint of a message in the journal, together with the others of a full segment.
    Checkpoint,
    /// A checkpoint of a mostly empty segment, whose messages are moved, too.
    CheckpointAndRewrite,
    /// A load of a message that is in the journal only.
    ColdJournal,
    /// A load of a checkpointed message.
    ColdCheckpointed,
    /// The health query, which a server makes for every connection.
    Health,
}

/// Callers of [`Kind::SyncedTogether`].
pub(crate) const CALLERS: u64 = 64;

const KIB: usize = 1_024;

/// The count of operations that touch memory only.
const MANY: u64 = 5_376;
/// The count of operations that touch the journal.
const SOME: u64 = 1_280;

const fn operation(name: &'static str, kind: Kind, size: usize, count: u64) -> Operation {
    Operation { name, kind, size, count }
}

/// All operations.
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
    operation("load cold, checkpointed, 512 B", Kind::ColdCheckpointed, 512, SOME),
    operation("load cold, checkpointed, 16 KiB", Kind::ColdCheckpointed, 16 * KIB, SOME),
    operation("unhealthy_reason", Kind::Health, KIB, MANY),
];

impl Operation {
    /// The operation with this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        OPERATIONS.iter().find(|operation| operation.name == name)
    }

    /// The figures with limits.
    pub(crate) fn figures(&self) -> &'static [Figure] {
        use Figure::{Allocated, Allocations, Instructions, Read, Reads, Sled, Syncs, Written};
        match self.kind {
            Kind::Checkpoint | Kind::CheckpointAndRewrite => {
                &[Instructions, Allocations, Allocated, Syncs, Written, Reads, Read, Sled]
            }
            Kind::ColdJournal | Kind::ColdCheckpointed => {
                &[Instructions, Allocations, Allocated, Syncs, Written, Reads, Read]
            }
            _ => &[Instructions, Allocations, Allocated, Syncs, Written],
        }
    }
}
