//! The bounds of each setting and how they depend on one another.

use std::fmt::Display;
use std::time::Duration;

use super::duration::{self, DAY, HOUR};
use super::size::{self, GIB, KIB, MIB, TIB};
use super::{Config, ConfigError, HealthConfig, PressureConfig};

/// sled keeps a value of more than 7 000 bytes badly (see "Living with sled" in ARCHITECTURE.md); what is left of
/// that is for the record's own header.
const MAX_SEPARATE_ABOVE: u64 = 6_656;

/// A journal of fewer segments could not write into one while another is being filed.
pub(super) const MIN_SEGMENTS: u64 = 4;

/// Segments are written in whole pages.
const PAGE: u64 = 4 * KIB;

impl Config {
    /// Checks every setting against its bounds and against the others.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] for the first setting that is not allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.path.as_os_str().is_empty() {
            return Err(invalid("path", "\"\"", "the directory of the spool".to_owned()));
        }
        self.validate_memory()?;
        self.validate_journal()?;
        time("store_deadline", self.store_deadline, Duration::from_millis(1), HOUR)?;
        time("shutdown_timeout", self.shutdown_timeout, Duration::from_millis(100), HOUR)?;
        if !(1..=64).contains(&self.read_threads) {
            return Err(invalid("read_threads", self.read_threads, "from 1 to 64".to_owned()));
        }
        self.pressure.validate()?;
        self.health.validate(self.dirty_expire)
    }

    /// Checks that a spool which runs with these settings can go on with `next`.
    pub(crate) fn validate_change(&self, next: &Self) -> Result<(), ConfigError> {
        let path = |config: &Self| config.path.display().to_string();
        fixed("path", &path(self), &path(next))?;
        fixed("segment_size", &size::show(self.segment_size), &size::show(next.segment_size))?;
        fixed("read_threads", &self.read_threads.to_string(), &next.read_threads.to_string())?;
        fixed("ballast", &size::show(self.ballast), &size::show(next.ballast))
    }

    fn validate_memory(&self) -> Result<(), ConfigError> {
        bytes("memory_budget", self.memory_budget, 8 * MIB, TIB, "")?;
        let budget = self.memory_budget;
        if let Some(limit) = self.dirty_limit {
            bytes("dirty_limit", limit, MIB, budget / 2, " (half of memory_budget)")?;
        }
        if let Some(cache) = self.sled_cache {
            bytes("sled_cache", cache, MIB, budget / 4, " (a quarter of memory_budget)")?;
        }
        time("dirty_expire", self.dirty_expire, Duration::from_millis(10), HOUR)?;
        bytes("max_message_size", self.max_message_size, KIB, GIB, "")
    }

    fn validate_journal(&self) -> Result<(), ConfigError> {
        bytes("segment_size", self.segment_size, 64 * KIB, GIB, "")?;
        if !self.segment_size.is_multiple_of(PAGE) {
            let allowed = format!("a multiple of {}", size::show(PAGE));
            return Err(invalid("segment_size", size::show(self.segment_size), allowed));
        }
        let smallest = self.segment_size * MIN_SEGMENTS;
        if !(smallest..=TIB).contains(&self.journal_capacity) {
            let allowed = format!(
                "from {} ({MIN_SEGMENTS} × segment_size) to {}",
                size::show(smallest),
                size::show(TIB)
            );
            return Err(invalid("journal_capacity", size::show(self.journal_capacity), allowed));
        }
        time("checkpoint_after", self.checkpoint_after, Duration::ZERO, 7 * DAY)?;
        bytes("separate_above", self.separate_above, 0, MAX_SEPARATE_ABOVE, "")?;
        bytes("ballast", self.ballast, 0, GIB, "")
    }
}

impl PressureConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        time("pressure.interval", self.interval, Duration::from_millis(10), Duration::from_secs(60))?;
        if let Some(limit) = self.memory_limit {
            bytes("pressure.memory_limit", limit, 8 * MIB, 1_024 * TIB, "")?;
        }
        // Written so that NaN, which compares with nothing, is refused too.
        if !(self.critical > 0.0 && self.critical <= 1.0) {
            return Err(invalid("pressure.critical", self.critical, "above 0 and at most 1".to_owned()));
        }
        if !(self.low > 0.0 && self.low < self.critical) {
            let allowed = format!("above 0 and below pressure.critical ({})", self.critical);
            return Err(invalid("pressure.low", self.low, allowed));
        }
        if !(self.hysteresis >= 0.0 && self.hysteresis < self.low) {
            let allowed = format!("at least 0 and below pressure.low ({})", self.low);
            return Err(invalid("pressure.hysteresis", self.hysteresis, allowed));
        }
        if !(0.0..=1.0).contains(&self.stall_ratio) {
            return Err(invalid("pressure.stall_ratio", self.stall_ratio, "from 0 to 1".to_owned()));
        }
        Ok(())
    }
}

impl HealthConfig {
    fn validate(&self, dirty_expire: Duration) -> Result<(), ConfigError> {
        if !(self.dirty_fraction > 0.0 && self.dirty_fraction <= 1.0) {
            return Err(invalid(
                "health.dirty_fraction",
                self.dirty_fraction,
                "above 0 and at most 1".to_owned(),
            ));
        }
        if let Some(age) = self.dirty_age
            && !(dirty_expire..=DAY).contains(&age)
        {
            let allowed =
                format!("from {} (dirty_expire) to {}", duration::show(dirty_expire), duration::show(DAY));
            return Err(invalid("health.dirty_age", duration::show(age), allowed));
        }
        time("health.backlog_latch_after", self.backlog_latch_after, Duration::ZERO, HOUR)?;
        time("health.checkpoint_stall", self.checkpoint_stall, Duration::from_secs(1), DAY)?;
        for (setting, count) in [
            ("health.journal_errors", self.journal_errors),
            ("health.sled_errors", self.sled_errors),
            ("health.read_errors", self.read_errors),
            ("health.damage", self.damage),
        ] {
            if !(1..=1_000).contains(&count) {
                return Err(invalid(setting, count, "from 1 to 1000".to_owned()));
            }
        }
        time("health.error_window", self.error_window, Duration::from_secs(1), DAY)?;
        bytes("health.min_free_bytes", self.min_free_bytes, 0, TIB, "")?;
        if !(0.0..=0.5).contains(&self.min_free_fraction) {
            return Err(invalid(
                "health.min_free_fraction",
                self.min_free_fraction,
                "from 0 to 0.5".to_owned(),
            ));
        }
        if self.min_free_inodes > 1_000_000 {
            let allowed = "from 0 to 1000000".to_owned();
            return Err(invalid("health.min_free_inodes", self.min_free_inodes, allowed));
        }
        time("health.unlatch_after", self.unlatch_after, Duration::ZERO, HOUR)?;
        for times in self.signals.values() {
            let or_zero = Option::unwrap_or_default;
            time("health.signals.*.latch_after", or_zero(times.latch_after), Duration::ZERO, HOUR)?;
            time("health.signals.*.unlatch_after", or_zero(times.unlatch_after), Duration::ZERO, HOUR)?;
        }
        time(
            "health.sample_interval",
            self.sample_interval,
            Duration::from_millis(10),
            Duration::from_secs(10),
        )
    }
}

/// `why_max` says where an upper bound comes from that depends on another setting.
fn bytes(setting: &'static str, value: u64, min: u64, max: u64, why_max: &str) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let allowed = format!("from {} to {}{why_max}", size::show(min), size::show(max));
    Err(invalid(setting, size::show(value), allowed))
}

fn time(setting: &'static str, value: Duration, min: Duration, max: Duration) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let allowed = format!("from {} to {}", duration::show(min), duration::show(max));
    Err(invalid(setting, duration::show(value), allowed))
}

fn fixed(setting: &'static str, now: &str, value: &str) -> Result<(), ConfigError> {
    if now == value {
        return Ok(());
    }
    Err(ConfigError::Fixed { setting, now: now.to_owned(), value: value.to_owned() })
}

fn invalid(setting: &'static str, value: impl Display, allowed: String) -> ConfigError {
    ConfigError::Invalid { setting, value: value.to_string(), allowed }
}
