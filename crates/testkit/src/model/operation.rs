//! What may happen to a spool.

use proptest::prelude::*;

/// How many ids there are: few, so that operations meet.
pub const SLOTS: u8 = 8;

/// One step of a history. `slot` picks one of [`SLOTS`] ids of all kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Store a new version.
    Store {
        /// Which id.
        slot: u8,
        /// How large.
        size: Size,
        /// Whether it is synced.
        force_sync: bool,
    },
    /// A store whose deadline is over: nothing may change.
    StoreTooLate {
        /// Which id.
        slot: u8,
        /// Whether it is synced.
        force_sync: bool,
    },
    /// A store above `max_message_size`: nothing may change.
    StoreTooLarge {
        /// Which id.
        slot: u8,
    },
    /// A synced store that is dropped after its first poll, then made good by a store or a remove.
    StoreDropped {
        /// Which id.
        slot: u8,
        /// Whether a remove follows, instead of a store.
        then_remove: bool,
    },
    /// Load.
    Load {
        /// Which id.
        slot: u8,
    },
    /// Remove.
    Remove {
        /// Which id.
        slot: u8,
    },
    /// Enumerate everything.
    Enumerate,
    /// Enumerate what was created before this id.
    EnumerateBefore {
        /// Which id.
        slot: u8,
    },
    /// Periodic upkeep.
    Cleanup,
    /// Thorough upkeep.
    Compact,
    /// Everything dirty becomes durable, caches go.
    AdviseLowMemory,
    /// An orderly shutdown, and the next start.
    Reopen,
    /// The files that can be built again from others are lost. Nothing may change, but loads of
    /// what is filed may fail for a while.
    LoseIndex {
        /// In which state the spool is.
        when: Loss,
        /// In which way they are lost.
        how: u8,
    },
}

/// When [`Operation::LoseIndex`] comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// While the spool is running.
    Running,
    /// Between an orderly shutdown and the next start.
    Closed,
    /// Between a drop without a shutdown and the next start. All is durable by then.
    Dropped,
    /// Between an orderly shutdown and the next start, and again right after that start.
    Rebuilding,
}

/// How large a message is. What spools treat differently: nothing, a little, a record that is filed whole or just not
/// any more, a payload that stays in a segment, and one that is larger than a test's segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// No byte.
    Empty,
    /// This many bytes, below 256.
    Tiny(u8),
    /// 4 096 bytes and this many more or less.
    Page(i8),
    /// This many KiB.
    Medium(u8),
    /// 400 KiB.
    Large,
}

impl Size {
    /// In bytes.
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

/// Any operation, those that move messages being the most frequent.
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
