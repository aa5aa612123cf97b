//! The memory tier: dirty data, clean copies, and the bytes that both may take.
//!
//! # Layout
//!
//! * `pending` – id → newest dirty version, for one shard (pure).
//! * `order` – debug builds check that versions are written in their order (pure).
//! * `budget` – dirty bytes admitted, and those who wait for room.
//! * `queue` – the order in which they are served (pure).
//! * `throttle` – how stores are slowed as the limit nears (pure).
//! * `cache` – clean copies in moka.
//! * `allowance` – how much memory there may be, and which part may take what (pure).
//! * `heap` – freed memory, back to the operating system.

mod allowance;
mod budget;
mod cache;
mod heap;
#[cfg(debug_assertions)]
mod order;
mod pending;
mod queue;
mod throttle;

pub(crate) use allowance::{Allowance, Held, MemoryBound};
pub(crate) use budget::{Budget, Permit};
pub(crate) use cache::{CleanCache, Evicted};
pub use heap::keep_the_heap_small;
pub(crate) use heap::{resident, trim};
pub(crate) use pending::{Dirty, Pending, Risks, Ticket, Visible};
pub(crate) use throttle::Lane;
