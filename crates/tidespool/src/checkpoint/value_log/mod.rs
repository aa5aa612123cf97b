//! The value log: segments that are kept for the messages in them, and their garbage collection.
//!
//! * `retained` – accounting of the retained segments, and moving survivors into cold ones.
//! * `garbage` – the checkpointer's steps that keep the files within their bound.
//! * `liveness` – the log of the live records in retained segments.
//! * `living` – the live records of one retained segment.

mod garbage;
pub(super) mod liveness;
pub(super) mod living;
pub(super) mod retained;
