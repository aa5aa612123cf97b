//! The mixes by name, and the settings of the spool and the callers in each.

use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tidespool::Config;

use super::callers::Sizes;

/// The number of callers of a mix with many.
const CALLERS: usize = 64;

/// The mixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mix {
    /// Messages of 0 to 1 MiB, live bytes of three times the budget.
    Sizes,
    /// --messages of 512 bytes, before their checkpoint; loads at random.
    Small,
    /// 16 KiB each, twice the budget, made durable and then loaded repeatedly.
    Clean,
    /// 16 KiB each, three times the budget, stored at full speed with a dirty_expire of an hour.
    Dirty,
    /// --messages of 1 KiB, all checkpointed; loads at random, an enumeration, removal of half,
    /// loads.
    Backlog,
    /// 0 to 64 KiB, stored, loaded and removed for a while, live bytes of twice the budget.
    Churn,
    /// 64 callers, 0 to 16 KiB, every second store synced, for a while.
    Synced,
}

/// The settings of all mixes, from the command line.
#[derive(Debug, Clone, Default)]
pub(super) struct Setting {
    pub(super) budget: u64,
    pub(super) messages: u64,
    pub(super) journal_capacity: u64,
    pub(super) seconds: u64,
    pub(super) seed: u64,
    pub(super) quick: bool,
}

impl Mix {
    pub(super) const fn sizes(self) -> Sizes {
        match self {
            Self::Sizes => Sizes::UpTo(1 << 20),
            Self::Small => Sizes::All(512),
            Self::Clean | Self::Dirty => Sizes::All(16 << 10),
            Self::Backlog => Sizes::All(1 << 10),
            Self::Churn => Sizes::UpTo(64 << 10),
            Self::Synced => Sizes::UpTo(16 << 10),
        }
    }

    pub(super) const fn callers(self) -> usize {
        match self {
            // What callers hold is not memory of the spool: it must be small compared with the
            // budget.
            Self::Sizes => 4,
            Self::Churn => 16,
            _ => CALLERS,
        }
    }

    pub(super) fn config(self, setting: &Setting, dir: &Path) -> Config {
        let config = Config::new(dir.join("spool"))
            .memory_budget(setting.budget)
            .journal_capacity(setting.journal_capacity);
        match self {
            Self::Dirty => config.dirty_expire(Duration::from_secs(3_600)),
            Self::Backlog => config.checkpoint_after(Duration::ZERO),
            _ => config,
        }
    }

    /// Returns how many messages are `times` the budget.
    pub(super) const fn filling(self, setting: &Setting, times: u64) -> u64 {
        setting.budget * times / self.sizes().mean() as u64
    }
}
