//! The errors of a store that are not those of a spool.

use thiserror::Error;
use tidespool_core::SpoolId;

use crate::directory::MAX_NAME;

/// Why there is no spool of a name, or why it can't be removed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpoolNameError {
    /// The name is not allowed.
    #[error(
        "{name:?} can't be the name of a spool: a name has 1 to {MAX_NAME} characters from a-z, 0-9, _ and -"
    )]
    NotAllowed {
        /// The name.
        name: String,
    },
    /// The store has the most spools that a store can have.
    #[error("spool {name:?} was not made: the store has {limit} spools, the most that a store can have")]
    TooMany {
        /// The name of the spool that was not made.
        name: String,
        /// The limit.
        limit: usize,
    },
    /// The store has made the most spools that a store can make in its life.
    #[error(
        "spool {name:?} was not made: the store has made {limit} spools, the most in its life; move what it \
         holds into a new store"
    )]
    UsedUp {
        /// The name of the spool that was not made.
        name: String,
        /// The limit.
        limit: u16,
    },
    /// The store has no spool of this name.
    #[error("the store has no spool {name:?}")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The spool still has messages.
    #[error("spool {name:?} was not removed: it has messages, remove them first")]
    NotEmpty {
        /// The name.
        name: String,
    },
}

/// Why [`Tidespool::accept`](crate::Tidespool::accept) refused a list of messages. Nothing was
/// stored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// A spool is of another store.
    #[error("spool {name:?} is of another store: all messages of one accept must be of one store")]
    OtherStore {
        /// The name of the spool.
        name: String,
    },
    /// A message is in the list twice.
    #[error("message {id} of spool {name:?} is in the list twice")]
    Twice {
        /// The name of the spool.
        name: String,
        /// The message.
        id: SpoolId,
    },
    /// The messages together need too much of the journal. Messages larger than a segment do not
    /// count.
    #[error(
        "one accept can have {limit} bytes of messages that are no larger than a segment, and this one has \
         {bytes}: raise journal_capacity, or store some of them apart"
    )]
    TooLarge {
        /// The bytes that the messages take in the journal.
        bytes: u64,
        /// A third of `journal_capacity`.
        limit: u64,
    },
    /// The list is too long.
    #[error("one accept can have at most {limit} messages, and this one has {count}")]
    TooMany {
        /// The number of messages.
        count: usize,
        /// The limit.
        limit: usize,
    },
}
