//! Whether the spool takes new messages.
//!
//! * `latch.rs` – a state machine, fed with samples and a clock: when to shut, when to open again. Pure. `window.rs` – errors in its sliding windows.
//! * `gate.rs` – what callers ask, one atomic read, and what they can wait for.
//! * `signal.rs` – why, for the log and for callers.
//! * `space.rs` – when free space is low.

mod gate;
mod latch;
mod signal;
mod space;
#[cfg(test)]
mod tests;
mod window;

pub(crate) use gate::HealthGate;
pub(crate) use latch::{HealthSample, Latch, Transition};
