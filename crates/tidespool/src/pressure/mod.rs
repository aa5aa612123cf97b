//! The memory-pressure monitor: samples memory use and asks the spools to free memory.
//!
//! * `cgroup.rs`, `machine.rs`, `sample.rs` – use and limit of the control group, the machine and
//!   the process.
//! * `level.rs` – normal, low, critical, with hysteresis. Pure.
//! * `pacer.rs` – what to do about a sample, and when to retry. Pure.
//! * `growth.rs` – when memory may grow back. `cadence.rs` – when to sample. Both pure.
//! * `room.rs` – what the spools may use together below a hard limit. Pure.
//! * `spools.rs` – the registered spools, and how an excess is divided among them.
//! * `watch.rs` – the thread. `monitor.rs` – its handle. `registration.rs` – the handle of a spool.

mod cadence;
mod cgroup;
mod growth;
mod level;
mod machine;
mod monitor;
mod pacer;
mod registration;
mod room;
mod sample;
mod spools;
#[cfg(test)]
mod tests;
mod watch;

pub(crate) use level::HYSTERESIS;
pub use level::Level;
pub use monitor::{PressureMonitor, PressureReading};
pub(crate) use registration::Registration;
pub use sample::Source;
pub(crate) use spools::Relief;
