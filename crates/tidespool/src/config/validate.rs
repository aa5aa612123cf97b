//! The bounds of every setting, how they depend on other settings, and how a file writes the value.

use std::fmt::Display;
use std::time::Duration;

use super::duration::{self, DAY, HOUR, YEAR};
use super::error::ConfigPlace;
use super::size::{self, GIB, KIB, MIB, TIB};
use super::{Config, ConfigError, HealthConfig, MinFree, SpoolConfig};
use crate::directory::{MAX_NAME, is_name};

/// A journal of fewer segments could not write to a segment while another is being checkpointed.
const MIN_SEGMENTS: u64 = 4;

/// `segment_size` is a multiple of this, because segments are written in whole pages.
const PAGE: u64 = 4 * KIB;

/// One setting of a `Config`.
#[derive(Debug)]
pub(super) struct Setting {
    /// The name with its table, as in `pressure.low`.
    pub(super) path: String,
    /// How a file writes the value. An error text shows this before `allowed`.
    #[cfg_attr(not(feature = "toml"), expect(dead_code, reason = "code needs no form"))]
    pub(super) form: &'static str,
    /// The allowed values, with the settings on which the bounds depend.
    pub(super) allowed: String,
    /// The value, if it is not allowed.
    refused: Option<String>,
}

const SIZE: &str = "a size such as \"256MiB\", or a whole number of bytes, ";
const TIME: &str = "a time with its unit, such as \"500ms\" or \"1m 30s\", ";
const SPACE: &str = "a size such as \"256MiB\", a whole number of bytes, or a percentage such as \"5%\", ";
const COUNT: &str = "a whole number ";
const CAUSES: &str = "a list such as [\"broken\", \"space\"], ";
const NAME: &str = "";
const DURABILITIES: &str = "\"memory\", \"process\" or \"synced\"";

impl Config {
    /// Checks every setting against its bounds and against the other settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] for the first setting that is not allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refused = settings(self).into_iter().find_map(|setting| {
            let Setting { path, allowed, refused, .. } = setting;
            refused.map(|value| ConfigError::Invalid {
                at: ConfigPlace::default(),
                setting: path,
                value,
                allowed,
            })
        });
        refused.map_or(Ok(()), Err)
    }

    /// Checks that a spool that runs with these settings can change to `next`.
    pub(crate) fn validate_change(&self, next: &Self) -> Result<(), ConfigError> {
        let path = |config: &Self| config.path.display().to_string();
        fixed("path", &path(self), &path(next))?;
        fixed("segment_size", &size::show(self.segment_size), &size::show(next.segment_size))?;
        fixed("read_threads", &self.read_threads.to_string(), &next.read_threads.to_string())?;
        fixed("ballast", &size::show(self.ballast), &size::show(next.ballast))
    }
}

/// Returns all settings, in the order in which they are checked.
pub(super) fn settings(config: &Config) -> Vec<Setting> {
    let mut settings = top(config);
    settings.extend(config.pressure.settings().map(Setting::from));
    settings.extend(health(&config.health, config.dirty_expire));
    for (name, spool) in &config.spools {
        settings.extend(of_spool(name, spool));
    }
    settings
}

fn top(config: &Config) -> Vec<Setting> {
    let budget = config.memory_budget;
    let half = bytes("dirty_limit", config.dirty_limit, MIB, budget / 2).and(" (half of memory_budget)");
    let segment = config.segment_size;
    let smallest = segment.saturating_mul(MIN_SEGMENTS);
    let capacity = Setting {
        allowed: format!(
            "from {} ({MIN_SEGMENTS} × segment_size) to {}",
            size::show(smallest),
            size::show(TIB)
        ),
        ..bytes("journal_capacity", Some(config.journal_capacity), smallest, TIB)
    };
    let whole_pages = Setting {
        refused: (!(64 * KIB..=GIB).contains(&segment) || !segment.is_multiple_of(PAGE))
            .then(|| size::show(segment)),
        ..bytes("segment_size", Some(segment), 64 * KIB, GIB)
            .and(&format!(", a multiple of {}", size::show(PAGE)))
    };
    let no_path = config.path.as_os_str().is_empty();
    vec![
        setting("path", NAME, "the directory of the spool", no_path.then_some("\"\"")),
        bytes("memory_budget", Some(budget), 8 * MIB, TIB),
        half,
        time("dirty_expire", Some(config.dirty_expire), Duration::from_millis(10), HOUR),
        setting("durability", NAME, DURABILITIES, None::<u8>),
        bytes("max_message_size", Some(config.max_message_size), KIB, GIB),
        whole_pages,
        capacity,
        time("checkpoint_after", Some(config.checkpoint_after), Duration::ZERO, 7 * DAY),
        time("read_wait", Some(config.read_wait), Duration::ZERO, HOUR),
        bytes("ballast", Some(config.ballast), 0, GIB),
        time("store_deadline", Some(config.store_deadline), Duration::from_millis(1), HOUR),
        time("shutdown_timeout", Some(config.shutdown_timeout), Duration::from_millis(100), HOUR),
        count("read_threads", config.read_threads.into(), 1, 64),
    ]
}

fn health(health: &HealthConfig, dirty_expire: Duration) -> Vec<Setting> {
    let dirty_age = Setting {
        allowed: format!("from {} (dirty_expire) to {}", duration::show(dirty_expire), duration::show(DAY)),
        ..time("health.dirty_age", health.dirty_age, dirty_expire, DAY)
    };
    let latch = |name, time| self::time(name, Some(time), Duration::ZERO, HOUR);
    let unlatch = |name, time| self::time(name, Some(time), Duration::ZERO, YEAR);
    let second = Duration::from_secs(1);
    vec![
        dirty_age,
        setting("health.backlog_refusal", NAME, "\"all\" or \"synced\"", None::<u8>),
        setting(
            "health.reported_causes",
            CAUSES,
            "any of \"broken\", \"space\", \"backlog\", \"pressure\"",
            None::<u8>,
        ),
        latch("health.backlog_latch_after", health.backlog_latch_after),
        unlatch("health.backlog_unlatch_after", health.backlog_unlatch_after),
        latch("health.hard_latch_after", health.hard_latch_after),
        unlatch("health.hard_unlatch_after", health.hard_unlatch_after),
        time("health.checkpoint_stall", Some(health.checkpoint_stall), second, DAY),
        count("health.disk_errors", health.disk_errors.into(), 1, 1_000),
        count("health.damage", health.damage.into(), 1, 1_000),
        space("health.min_free", health.min_free),
        time("health.sample_interval", Some(health.sample_interval), Duration::from_millis(10), 10 * second),
    ]
}

/// Returns the settings of one spool. Of a name that is not allowed, only that.
fn of_spool(name: &str, spool: &SpoolConfig) -> Vec<Setting> {
    if !is_name(name) {
        return vec![setting(SPOOLS, NAME, &names_of_spools(), Some(format!("{name:?}")))];
    }
    let path = |setting| format!("{SPOOLS}.{name}.{setting}");
    vec![
        setting(&path("durability"), NAME, DURABILITIES, None::<u8>),
        bytes(&path("max_message_size"), spool.max_message_size, KIB, GIB),
        count(&path("cache_weight"), spool.cache_weight.unwrap_or(0).into(), 0, 1_000),
    ]
}

/// The table of the spools' settings.
pub(super) const SPOOLS: &str = "spools";

/// The allowed names of the tables in [`SPOOLS`].
pub(super) fn names_of_spools() -> String {
    format!("a table for each spool, by its name: 1 to {MAX_NAME} characters from a-z, 0-9, _ and -")
}

impl From<tidespool_pressure::Setting> for Setting {
    fn from(setting: tidespool_pressure::Setting) -> Self {
        let tidespool_pressure::Setting { name, form, allowed, refused, .. } = setting;
        Self { path: name.to_owned(), form, allowed, refused }
    }
}

impl Setting {
    /// Appends to the text of the allowed values.
    fn and(mut self, more: &str) -> Self {
        self.allowed.push_str(more);
        self
    }
}

fn setting(path: &str, form: &'static str, allowed: &str, refused: Option<impl Display>) -> Setting {
    let refused = refused.map(|value| value.to_string());
    Setting { path: path.to_owned(), form, allowed: allowed.to_owned(), refused }
}

fn bytes(path: &str, value: Option<u64>, min: u64, max: u64) -> Setting {
    let refused = value.filter(|value| !(min..=max).contains(value)).map(size::show);
    setting(path, SIZE, &format!("from {} to {}", size::show(min), size::show(max)), refused)
}

fn time(path: &str, value: Option<Duration>, min: Duration, max: Duration) -> Setting {
    let refused = value.filter(|value| !(min..=max).contains(value)).map(duration::show);
    setting(path, TIME, &format!("from {} to {}", duration::show(min), duration::show(max)), refused)
}

fn space(path: &str, value: Option<MinFree>) -> Setting {
    let refused = value.filter(|value| match value {
        MinFree::Bytes(bytes) => *bytes > TIB,
        // NaN is rejected, too.
        MinFree::Percent(percent) => !(0.0..=50.0).contains(percent),
    });
    setting(path, SPACE, &format!("from 0 to {}, or from 0% to 50%", size::show(TIB)), refused)
}

fn count(path: &str, value: u64, min: u64, max: u64) -> Setting {
    let refused = (!(min..=max).contains(&value)).then_some(value);
    setting(path, COUNT, &format!("from {min} to {max}"), refused)
}

fn fixed(setting: &'static str, now: &str, value: &str) -> Result<(), ConfigError> {
    if now == value {
        return Ok(());
    }
    Err(ConfigError::Fixed { setting, now: now.to_owned(), value: value.to_owned() })
}
