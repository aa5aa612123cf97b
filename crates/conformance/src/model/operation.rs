//! The operations of a history.

use proptest::prelude::*;

/// The number of ids: few, so that operations affect the same ids.
pub const SLOTS: u8 = 8;

/// One step of a history. `slot` selects one of [`SLOTS`] ids of all kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are arguments of the call, except `slot`")]
pub enum Operation {
    /// Store a new version.
    Store { slot: u8, size: Size, force_sync: bool },
    /// A store with a past deadline: nothing may change.
    StoreTooLate { slot: u8, force_sync: bool },
    /// A store above `max_message_size`: nothing may change.
    StoreTooLarge { slot: u8 },
    /// A synced store that is dropped after its first poll, followed by another store or a remove.
    StoreDropped {
        slot: u8,
        /// A remove follows instead of a store.
        then_remove: bool,
    },
    /// Load.
    Load { slot: u8 },
    /// Remove.
    Remove { slot: u8 },
    /// Enumerate all messages.
    Enumerate,
    /// Enumerate the messages created before this id.
    EnumerateBefore { slot: u8 },
    /// Call `cleanup`.
    Cleanup,
    /// Call `compact`.
    Compact,
    /// Call `advise_low_memory`: makes dirty data durable and drops caches.
    AdviseLowMemory,
    /// An orderly shutdown and the next start.
    Reopen,
    /// Lose the files that can be rebuilt from other files. No message may change, but loads of
    /// checkpointed messages may fail temporarily.
    LoseIndex {
        /// The state of the spool at the loss.
        when: Loss,
        /// Selects the kind of damage.
        how: u8,
    },
}

/// When [`Operation::LoseIndex`] happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// While the spool is running.
    Running,
    /// Between an orderly shutdown and the next start.
    Closed,
    /// Between a drop without a shutdown and the next start. All data was made durable before.
    Dropped,
    /// Between an orderly shutdown and the next start, and again right after that start.
    Rebuilding,
}

/// The size of a message, around the sizes that spools may treat differently: empty, small, about a
/// page, part of a segment, and larger than a segment of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// 0 bytes.
    Empty,
    /// This many bytes, below 256.
    Tiny(u8),
    /// 4 096 bytes plus this number.
    Page(i8),
    /// This many KiB.
    Medium(u8),
    /// 400 KiB.
    Large,
}

impl Size {
    /// Returns the size in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Tiny(bytes) => bytes.into(),
            Self::Page(more) => 4096_usize.saturating_add_signed(more.into()),
            Self::Medium(kib) => usize::from(kib) * 1024,
            Self::Large => 400 * 1024,
        }
    }
}

/// Generates any operation. Those that move messages are the most frequent.
pub(super) fn any() -> impl Strategy<Value = Operation> {
    let slot = || 0..SLOTS;
    prop_oneof![
        12 => (slot(), size(), proptest::bool::weighted(0.3))
            .prop_map(|(slot, size, force_sync)| Operation::Store { slot, size, force_sync }),
        1 => (slot(), proptest::bool::ANY)
            .prop_map(|(slot, force_sync)| Operation::StoreTooLate { slot, force_sync }),
        1 => slot().prop_map(|slot| Operation::StoreTooLarge { slot }),
        1 => (slot(), proptest::bool::ANY)
            .prop_map(|(slot, then_remove)| Operation::StoreDropped { slot, then_remove }),
        5 => slot().prop_map(|slot| Operation::Load { slot }),
        6 => slot().prop_map(|slot| Operation::Remove { slot }),
        1 => Just(Operation::Enumerate),
        1 => slot().prop_map(|slot| Operation::EnumerateBefore { slot }),
        1 => Just(Operation::Cleanup),
        1 => Just(Operation::Compact),
        2 => Just(Operation::AdviseLowMemory),
        2 => Just(Operation::Reopen),
        3 => (loss(), proptest::num::u8::ANY).prop_map(|(when, how)| Operation::LoseIndex { when, how }),
    ]
}

fn loss() -> impl Strategy<Value = Loss> {
    prop_oneof![Just(Loss::Running), Just(Loss::Closed), Just(Loss::Dropped), Just(Loss::Rebuilding),]
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![
        1 => Just(Size::Empty),
        6 => proptest::num::u8::ANY.prop_map(Size::Tiny),
        4 => (-2_i8..=2).prop_map(Size::Page),
        4 => (1_u8..100).prop_map(Size::Medium),
        1 => Just(Size::Large),
    ]
}
