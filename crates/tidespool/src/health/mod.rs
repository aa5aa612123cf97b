//! Decides whether the spool accepts new messages.
//!
//! * `latch.rs` – a state machine of samples and a clock: when the gate shuts and opens. Pure.
//! * `window.rs` – counts errors in a sliding window.
//! * `gate.rs` – the state for callers: one atomic read, and a channel of changes.
//! * `signal.rs` – the reasons, for the log and for callers.
//! * `space.rs` – when free space is low.

mod gate;
mod latch;
mod signal;
mod space;
#[cfg(test)]
mod tests;
mod window;

pub(crate) use gate::{HealthGate, SHUT_DOWN};
pub(crate) use latch::{HealthSample, Latch, Transition};
