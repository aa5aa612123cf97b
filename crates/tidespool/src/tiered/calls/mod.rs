//! The calls of the spool, one file per call, and their common code.
//!
//! * `store`, `load`, `remove`, `enumerate` – the calls on messages.
//! * `accept` – several stores, of which all happen or none.
//! * `list` – all messages without their payloads. `walk` – what it shares with `enumerate`.
//!   `scan` – the stream at the receiving end.
//! * `unpaired` – the ids of one spool that another spool does not have.
//! * `maintain` – `cleanup` and `compact`.
//! * `spools` – opens, makes and removes the spools of a store.
//! * `reconfigure` – changes the settings of a running spool.
//! * `lookup` – finds the newest version of a message, from the top tier down.

pub(super) mod accept;
pub(super) mod enumerate;
pub(super) mod list;
pub(super) mod load;
pub(super) mod lookup;
pub(super) mod maintain;
pub(super) mod reconfigure;
pub(super) mod remove;
pub(super) mod scan;
pub(super) mod spools;
pub(super) mod store;
pub(super) mod unpaired;
pub(super) mod walk;
