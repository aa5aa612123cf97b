//! The settings of a spool that each store reads, up to a million times a second. They are atomics,
//! and none depends on another.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::{Config, Durability};

const MEMORY: u8 = 0;
const PROCESS: u8 = 1;
const SYNCED: u8 = 2;

/// The current values.
#[derive(Debug, Default)]
pub(crate) struct HotSettings {
    /// One atomic: with two flags, a change would pass through a moment in which neither is set.
    durability: AtomicU8,
    max_message_size: AtomicU64,
    store_deadline_us: AtomicU64,
}

impl HotSettings {
    /// The values of the spool `name`.
    pub(crate) fn of(config: &Config, name: &str) -> Self {
        let hot_settings = Self::default();
        hot_settings.set(config, name);
        hot_settings
    }

    pub(crate) fn set(&self, config: &Config, name: &str) {
        let durability = match config.durability_of(name) {
            Durability::Memory => MEMORY,
            Durability::Process => PROCESS,
            Durability::Synced => SYNCED,
        };
        self.durability.store(durability, Ordering::Relaxed);
        self.max_message_size.store(config.max_message_size_of(name), Ordering::Relaxed);
        let us = u64::try_from(config.store_deadline.as_micros()).unwrap_or(u64::MAX);
        self.store_deadline_us.store(us, Ordering::Relaxed);
    }

    pub(crate) fn durability(&self) -> Durability {
        match self.durability.load(Ordering::Relaxed) {
            MEMORY => Durability::Memory,
            PROCESS => Durability::Process,
            _ => Durability::Synced,
        }
    }

    /// In bytes.
    pub(crate) fn max_message_size(&self) -> u64 {
        self.max_message_size.load(Ordering::Relaxed)
    }

    pub(crate) fn store_deadline(&self) -> Duration {
        Duration::from_micros(self.store_deadline_us.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// Both levels protect a message from `kill -9`, and so must every moment of the change.
    #[test]
    fn a_change_of_durability_passes_through_no_weaker_level() {
        let with = |durability| Config::new("/x").durability(durability);
        let hot_settings = HotSettings::of(&with(Durability::Synced), "meta");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..300_000 {
                    hot_settings.set(&with(Durability::Process), "meta");
                    hot_settings.set(&with(Durability::Synced), "meta");
                }
                done.store(true, Ordering::SeqCst);
            });
            while !done.load(Ordering::SeqCst) {
                assert_ne!(hot_settings.durability(), Durability::Memory);
            }
        });
    }
}
