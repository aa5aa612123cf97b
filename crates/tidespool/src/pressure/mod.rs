//! The memory-pressure monitor.

mod level;

pub use level::Level;
