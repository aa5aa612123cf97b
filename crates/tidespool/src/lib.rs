//! A tiered memory-plus-disk message spool.

mod checkpoint;
mod config;
mod durable;
mod health;
pub mod inspect;
mod journal;
mod memory;
mod pressure;
mod stats;
pub mod storage;
mod tiered;

pub use config::{CachePolicy, Config, ConfigError, Durability, HealthConfig, PressureConfig};
pub use pressure::Level as PressureLevel;
pub use stats::{Gauges, Latency, StatsSnapshot};
pub use tidespool_core as core;
pub use tiered::{RecoveryReport, TieredSpool};
