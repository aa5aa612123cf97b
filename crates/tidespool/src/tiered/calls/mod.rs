//! The calls of the spool, one file a verb, and what they share.
//!
//! * `store`, `load`, `remove`, `enumerate` – the calls on messages.
//! * `maintain` – `cleanup` and `compact`. `runs` – a run of upkeep that several callers share.
//! * `reconfigure` – settings that change on a running spool.
//! * `lookup` – finds the newest version of a message, from the top tier down.

pub(super) mod enumerate;
pub(super) mod load;
pub(super) mod lookup;
pub(super) mod maintain;
pub(super) mod reconfigure;
pub(super) mod remove;
pub(super) mod runs;
pub(super) mod store;
