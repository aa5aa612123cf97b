//! Whether the spool takes new messages.
//!
//! * `latch.rs` – a state machine, fed with samples and a clock: when to shut, when to open again. Pure.
//! * `gate.rs` – what callers ask, one atomic read.
//! * `cause.rs` – why, for the log and for callers.
//! * `space.rs` – free space of the file system.

mod cause;
mod gate;
mod latch;
mod space;
#[cfg(test)]
mod tests;

pub(crate) use gate::HealthGate;
pub(crate) use latch::{Latch, Sample};
pub(crate) use space::Space;
