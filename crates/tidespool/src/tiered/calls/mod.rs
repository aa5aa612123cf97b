//! The calls of the spool, one file per call, and their common code.
//!
//! * `store`, `load`, `remove`, `enumerate` – the calls on messages.
//! * `accept` – several stores, of which all happen or none.
//! * `maintain` – `cleanup` and `compact`.
//! * `spools` – opens, makes and removes the spools of a store.
//! * `reconfigure` – changes the settings of a running spool.
//! * `lookup` – finds the newest version of a message, from the top tier down.

pub(super) mod accept;
pub(super) mod enumerate;
pub(super) mod load;
pub(super) mod lookup;
pub(super) mod maintain;
pub(super) mod reconfigure;
pub(super) mod remove;
pub(super) mod spools;
pub(super) mod store;
