use std::time::Duration;

/// What every acknowledged store and removal survives, without `force_sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DurabilityLevel {
    /// Nothing, while it is younger than `dirty_expire`.
    Memory,
    /// A kill. Use it also for spools that promise more: these tests only kill the process.
    Kill,
}

/// The promise that the spool is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    /// The minimum durability of a store.
    pub level: DurabilityLevel,
    /// The age from which everything is durable, apart from the time of one commit.
    pub dirty_expire: Duration,
    /// Time that a busy machine may add. The check adds three times the duration of the slowest
    /// synced store in the log, so that a slow disk does not count as a broken promise.
    pub slack: Duration,
}

impl Promise {
    /// Returns whether an acknowledged store survives a kill at any age.
    #[must_use]
    pub fn survives_at_once(self, forced: bool) -> bool {
        forced || self.level == DurabilityLevel::Kill
    }

    /// Returns the age from which everything is durable, if the slowest synced store took
    /// `slowest_sync`.
    #[must_use]
    pub fn young(self, slowest_sync: Duration) -> Duration {
        self.dirty_expire + self.slack + slowest_sync * 3
    }
}
