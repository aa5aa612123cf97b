//! The value log: segments that are kept for the messages in them.
//!
//! * `retained` – accounting of the retained segments, and moving survivors into cold ones.
//! * `liveness` – the log of the live records in retained segments.
//! * `living` – the live records of one retained segment.

pub(super) mod liveness;
pub(super) mod living;
pub(super) mod retained;
