//! A tiered memory-plus-disk message spool.

mod config;
#[allow(dead_code, reason = "wired up with the tiered layer")]
mod durable;
#[allow(dead_code, unused_imports, reason = "wired up with the tiered layer")]
mod health;
pub mod inspect;
#[allow(dead_code, unused_imports, reason = "wired up with the tiered layer")]
mod pressure;
#[allow(dead_code, reason = "wired up with the tiered layer")]
mod stats;
mod tiered;

pub use config::{CachePolicy, Config, ConfigError, Durability, HealthConfig, PressureConfig};
pub use pressure::Level as PressureLevel;
pub use stats::{Gauges, Latency, StatsSnapshot};
pub use tidespool_core as core;
pub use tiered::TieredSpool;
