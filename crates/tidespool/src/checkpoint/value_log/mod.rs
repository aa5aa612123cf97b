//! The value log: segments that are kept for the messages in them, and their garbage collection.
//!
//! * `retained` – accounting of the retained segments, and moving survivors into cold ones.
//! * `garbage` – the steps of the checkpointer that keep the files within their bound.
//! * `liveness` – the log of which records of the retained segments live.
//! * `living` – the live records of one retained segment.

mod garbage;
pub(super) mod liveness;
pub(super) mod living;
pub(super) mod retained;
