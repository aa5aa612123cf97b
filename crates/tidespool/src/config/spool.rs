use serde::{Deserialize, Serialize};

use super::setters::setters;
use super::{Config, Durability, size};

/// The settings of one spool of a store: a `[spools.NAME]` table.
///
/// What is left out has the value of the whole store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SpoolConfig {
    /// How safe a message of this spool is when `store` returns: the minimum for every store.
    ///
    /// Default = the `durability` of the store. Bounds: `memory`, `process` or `synced`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,

    /// A message of more bytes is rejected by this spool.
    ///
    /// Default = the `max_message_size` of the store. Bounds: 1 KiB to 1 GiB.
    #[serde(with = "size::option", skip_serializing_if = "Option::is_none")]
    pub max_message_size: Option<u64>,

    /// How much this spool's clean copies in memory are worth, compared with those of the other
    /// spools: all spools of a store share one cache. A copy of a spool with a lower weight than
    /// the highest in the store counts several times. With the weights 4 and 1, a copy of the
    /// second spool counts four times, so that copies of this spool fill at most a quarter of the
    /// older half of the cache. The younger half, for the copies that came last, has no weights
    /// but 0. With equal weights the least recently used copy is dropped, whatever its spool.
    ///
    /// Default = 1. Bounds: 0 to 1 000; 0 keeps no clean copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_weight: Option<u32>,
}

setters! { SpoolConfig {
    durability: some Durability,
    max_message_size: some u64,
    cache_weight: some u32,
}}

impl Config {
    /// Sets the settings of the spool `name`: see [`spools`](field@Self::spools).
    #[must_use]
    pub fn spool(mut self, name: impl Into<String>, settings: SpoolConfig) -> Self {
        self.spools.insert(name.into(), settings);
        self
    }

    /// Returns the durability of the spool `name`: its own, or that of the store.
    #[must_use]
    pub fn durability_of(&self, name: &str) -> Durability {
        self.spools.get(name).and_then(|spool| spool.durability).unwrap_or(self.durability)
    }

    /// Returns the bytes of the largest message of the spool `name`: its own limit, or that of the
    /// store.
    #[must_use]
    pub fn max_message_size_of(&self, name: &str) -> u64 {
        self.spools.get(name).and_then(|spool| spool.max_message_size).unwrap_or(self.max_message_size)
    }

    /// Returns the weight of the spool `name` in the cache: its own, or 1.
    #[must_use]
    pub fn cache_weight_of(&self, name: &str) -> u32 {
        self.spools.get(name).and_then(|spool| spool.cache_weight).unwrap_or(1)
    }

    /// True if acknowledged messages of any spool must survive the death of the process.
    pub(crate) fn needs_crash_log(&self) -> bool {
        let own = self.spools.values().filter_map(|spool| spool.durability);
        own.chain([self.durability]).any(|durability| durability != Durability::Memory)
    }
}
