//! One setter for each setting, with the same name: `Config::new(path).memory_budget(bytes)`.

use std::path::PathBuf;
use std::time::Duration;

use super::{Config, Durability, HealthConfig, PressureConfig};

/// Generates the setters of a struct. `some` marks an `Option` field, whose setter takes the inner
/// value.
macro_rules! setters {
    ($settings:ident { $($name:ident: $kind:ident $($inner:ident)?,)* }) => {
        impl $settings {
            $($crate::config::builder::setter!($name: $kind $($inner)?);)*
        }
    };
}

macro_rules! setter {
    ($name:ident: some $kind:ident) => {
        #[doc = concat!("Sets [`", stringify!($name), "`](field@Self::", stringify!($name), ").")]
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$name = Some($name);
            self
        }
    };
    ($name:ident: $kind:ident) => {
        #[doc = concat!("Sets [`", stringify!($name), "`](field@Self::", stringify!($name), ").")]
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$name = $name;
            self
        }
    };
}

pub(super) use {setter, setters};

setters! { Config {
    path: PathBuf,
    memory_budget: u64,
    dirty_limit: some u64,
    dirty_expire: Duration,
    durability: Durability,
    store_deadline: Duration,
    max_message_size: u64,
    journal_capacity: u64,
    segment_size: u64,
    checkpoint_after: Duration,
    read_wait: Duration,
    read_threads: u32,
    shutdown_timeout: Duration,
    ballast: u64,
    pressure: PressureConfig,
    health: HealthConfig,
}}
