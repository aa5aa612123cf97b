//! The mixes by name, and the settings of the spool and the callers in each.

use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tidespool::Config;

use super::callers::Sizes;

/// Where many callers are meant.
const CALLERS: usize = 64;

/// The mixes by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mix {
    /// Messages of 0 to 1 MiB, three times the budget of them live.
    Sizes,
    /// --messages of 512 bytes, younger than their checkpoint; loads at random.
    Small,
    /// 16 KiB each, twice the budget, all of them durable, and loaded again and again.
    Clean,
    /// 16 KiB each, three times the budget, as fast as they are taken, with a dirty_expire of an hour.
    Dirty,
    /// --messages of 1 KiB, all filed in sled; loads at random, an enumeration, removal of half, loads.
    Backlog,
    /// 0 to 64 KiB, stored, loaded and removed, twice the budget live, for a while.
    Churn,
    /// 64 callers, 0 to 16 KiB, every second store synced, for a while.
    Synced,
}

/// What the command line asks for.
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
            // What callers hold is not the spool's: it has to be little beside the budget.
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
            Self::Dirty => config.dirty_expire(Duration::from_hours(1)),
            Self::Backlog => config.checkpoint_after(Duration::ZERO),
            _ => config,
        }
    }

    /// So many messages are `times` the budget.
    pub(super) const fn filling(self, setting: &Setting, times: u64) -> u64 {
        setting.budget * times / self.sizes().mean() as u64
    }
}
