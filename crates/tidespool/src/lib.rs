//! A tiered memory-plus-disk message spool.

mod config;
#[allow(dead_code, reason = "wired up with the tiered layer")]
mod durable;
#[allow(dead_code, reason = "wired up with the tiered layer")]
mod health;
pub mod inspect;
mod pressure;
mod stats;
mod tiered;

pub use config::Config;
pub use stats::StatsSnapshot;
pub use tidespool_core as core;
pub use tiered::TieredSpool;
