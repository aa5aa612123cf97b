//! The memory tier: dirty messages, clean copies, and the memory that both may use.
//!
//! # Layout
//!
//! * `pending` – id → newest dirty version, for one shard (pure).
//! * `order` – debug builds check that the versions of an id are written in order (pure).
//! * `budget` – admission of dirty bytes, and the stores that wait for room.
//! * `queue` – the order in which waiting stores are admitted (pure).
//! * `throttle` – how stores are slowed as the limit nears (pure).
//! * `young` – the clean copies that came last, for one shard.
//! * `cache` – older clean copies, in moka. `cache_weights` – what a copy costs there (pure).
//! * `copies` – a number of clean copies and their bytes (pure).
//! * `allowance` – how much memory the spool may use, and its division (pure).
//! * `heap` – returns freed memory to the operating system.

mod allowance;
mod budget;
mod cache;
mod cache_weights;
mod copies;
mod heap;
#[cfg(debug_assertions)]
mod order;
mod pending;
mod queue;
mod throttle;
mod young;

pub(crate) use allowance::{Allowance, Held, MemoryBound};
pub(crate) use budget::{Budget, Permit};
pub(crate) use cache::CleanCache;
pub(crate) use cache_weights::CacheWeights;
pub(crate) use copies::Copies;
pub use heap::keep_the_heap_small;
pub(crate) use heap::{resident, trim};
pub(crate) use pending::{Dirty, Pending, Risks, Ticket, Visible};
pub(crate) use throttle::Lane;
pub(crate) use young::{Inserted, Young, YoungRoom};

/// True if a table is worth shrinking: a burst has left most of it empty.
fn is_sparse(len: usize, capacity: usize) -> bool {
    capacity > 256 && len < capacity / 4
}
