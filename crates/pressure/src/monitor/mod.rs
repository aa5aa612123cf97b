//! The memory-pressure monitor: samples memory use and asks the clients to free memory.
//!
//! * `cgroup.rs`, `machine.rs`, `sample.rs` – use and limit of the control group, the machine and
//!   the process.
//! * `thresholds.rs` – normal, low, critical, with hysteresis. Pure.
//! * `pacer.rs` – what to do about a sample, and when to retry. Pure.
//! * `growth.rs` – when memory may grow back. `cadence.rs` – when to sample. Both pure.
//! * `room.rs` – what the clients may use together below a hard limit. Pure.
//! * `clients.rs` – the registered clients, and how an excess is divided among them.
//! * `watch.rs` – the thread. `handle.rs` – its handle. `registration.rs` – the handle of a client.
//!   `state.rs` – what they share.

mod cadence;
mod cgroup;
mod clients;
mod growth;
mod handle;
mod machine;
mod pacer;
mod registration;
mod room;
mod sample;
mod state;
#[cfg(test)]
mod tests;
mod thresholds;
mod watch;

pub use handle::PressureMonitor;
pub use registration::Registration;
