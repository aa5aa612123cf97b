//! The memory tier: dirty data, clean copies, and the bytes that both may take.
//!
//! # Layout
//!
//! * `pending` – id → newest dirty version, for one shard (pure).
//! * `budget` – dirty bytes admitted, and who waits for room.
//! * `throttle` – how long a store is held back as the limit nears (pure).
//! * `cache` – clean copies in moka.

mod budget;
mod cache;
mod pending;
mod throttle;

pub(crate) use budget::{Budget, Permit};
pub(crate) use cache::CleanCache;
pub(crate) use pending::{Dirty, Pending, Ticket, Visible};
pub(crate) use throttle::{cannot_meet, hold_back};
