//! The memory-pressure monitor: watches how much memory is in use and asks the spool to give some back.
//!
//! * `level.rs` – normal, low, critical, with hysteresis. Pure.
//! * `cgroup.rs`, `sample.rs` – use and limit, from the control group, the process or the machine.
//! * `pacer.rs` – what to do about a sample, and when to try again. Pure.
//! * `monitor.rs` – the thread.

mod cgroup;
mod level;
mod monitor;
mod pacer;
mod sample;

pub use level::Level;
pub(crate) use monitor::{Monitor, Relief};
pub(crate) use sample::SystemSampler;
