//! Memory pressure: what a spool and a monitor of memory have in common, and the monitor.
//!
//! * `reading.rs` – level and last sample. `relief.rs` – a spool that can free memory.
//! * `monitor/` – samples memory use and asks the spools to free memory. Without the feature
//!   `pressure-monitor`, `unmonitored.rs` takes its place.

#[cfg_attr(not(feature = "pressure-monitor"), path = "unmonitored.rs")]
mod monitor;
mod reading;
mod relief;

pub use monitor::PressureMonitor;
pub(crate) use monitor::Registration;
pub use reading::{Level, PressureReading, Source};
pub(crate) use relief::Relief;
