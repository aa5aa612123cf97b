//! The memory-pressure monitor: watches how much memory is in use and asks the spools to give some back.
//!
//! * `cgroup.rs`, `machine.rs`, `sample.rs` – use and limit, from the control group, the machine and the process.
//! * `level.rs` – normal, low, critical, with hysteresis. Pure.
//! * `pacer.rs` – what to do about a sample, and when to try again. `growth.rs` – when it may grow back. `cadence.rs` –
//!   when to look again. Pure.
//! * `room.rs` – what the spools may take together below a limit that kills. Pure.
//! * `spools.rs` – who is watched, and how an excess is shared among them.
//! * `watch.rs` – the thread. `monitor.rs` – the handle on it. `registration.rs` – a spool's place with it.

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

pub use level::Level;
pub use monitor::{PressureMonitor, PressureReading};
pub(crate) use registration::Registration;
pub use sample::Source;
pub(crate) use spools::Relief;
