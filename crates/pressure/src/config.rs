//! The settings of the monitor, and their bounds.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::size;

/// How far, as a fraction of the limit, use has to fall below the threshold of a level before that
/// level ends. Without it, use near a threshold would change the level again and again.
pub(crate) const HYSTERESIS: f64 = 0.05;

const MIN_LIMIT: u64 = 8 << 20;
const MAX_LIMIT: u64 = 1 << 50;

/// The settings of a [`PressureMonitor`](crate::PressureMonitor). In the settings file of a spool
/// they are the table `[pressure]`.
///
/// The monitor compares the memory in use with a limit. While too much is in use, it makes its
/// clients free memory, again and again. Of the comparisons that apply, the one nearest to its
/// limit counts:
///
/// | used | limit | applies if |
/// |---|---|---|
/// | the control group's working set | the group's limit | a control group with a limit is in force |
/// | the machine's memory, less the available memory | the machine's memory | no such limit is in force |
/// | the resident memory of this process | [`memory_limit`](Self::memory_limit); 75 % of the machine's memory | it is set; it is not set, and no group's limit is in force |
///
/// Memory is checked every 500 ms. While use rises so fast that it would soon reach the limit, it
/// is checked up to 32 times as often. If some task waited for memory during 10 % of the last 10 s
/// (PSI, `some avg10`), the level is at least low, whatever is in use, until the share is below
/// 5 %. This early sign is that of the control group under version 2, else that of the machine if
/// no group's limit is in force.
///
/// serde reads a size as `"256MiB"` or as an integer of bytes. A setting that is left out has its
/// default. An unknown setting is rejected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PressureConfig {
    /// Whether the monitor checks memory. If not, its thread sleeps and the level is normal. A
    /// spool's `advise_low_memory` works either way.
    ///
    /// Default = true.
    pub enabled: bool,

    /// The limit of this process's resident memory, in bytes. [`low`](Self::low) and
    /// [`critical`](Self::critical) are fractions of it. A control group's limit applies as well,
    /// because the kernel kills a process that exceeds it.
    ///
    /// Default = none if a control group's limit is in force, else 75 % of the physical memory.
    /// Bounds: 8 MiB to 1 PiB.
    #[serde(with = "size", skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,

    /// From this fraction of the limit on, less is used: the excess is freed again and again. A
    /// spool gives memory back down to 8 MiB. Its clean cache shrinks (the newest copies stay), its
    /// dirty limit is lowered in proportion, dirty data is written, and free memory is returned to
    /// the system.
    ///
    /// A level ends when use is below its threshold by 0.05 of the limit: without this hysteresis,
    /// use near a threshold would change the level again and again.
    ///
    /// Default = 0.80. Bounds: above 0.05, below [`critical`](Self::critical).
    pub low: f64,

    /// From this fraction of the limit on, all memory that can be freed is freed at once: a spool
    /// drops all clean copies as well.
    ///
    /// Default = 0.92. Bounds: above [`low`](Self::low), at most 1.
    pub critical: f64,
}

impl Default for PressureConfig {
    fn default() -> Self {
        Self { enabled: true, memory_limit: None, low: 0.80, critical: 0.92 }
    }
}

impl PressureConfig {
    /// Sets [`enabled`](field@Self::enabled).
    #[must_use]
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// Sets [`memory_limit`](field@Self::memory_limit).
    #[must_use]
    pub fn memory_limit(mut self, memory_limit: u64) -> Self {
        self.memory_limit = Some(memory_limit);
        self
    }

    /// Sets [`low`](field@Self::low).
    #[must_use]
    pub fn low(mut self, low: f64) -> Self {
        self.low = low;
        self
    }

    /// Sets [`critical`](field@Self::critical).
    #[must_use]
    pub fn critical(mut self, critical: f64) -> Self {
        self.critical = critical;
        self
    }

    /// Checks every setting against its bounds and against the other settings.
    ///
    /// # Errors
    ///
    /// The first setting that is not allowed.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let refused = self.settings().into_iter().find_map(|setting| {
            let Setting { name, allowed, refused, .. } = setting;
            refused.map(|value| InvalidSetting { setting: name, value, allowed })
        });
        refused.map_or(Ok(()), Err)
    }

    /// Returns every setting with its bounds, in the order in which they are checked.
    #[must_use]
    pub fn settings(&self) -> [Setting; 4] {
        let &Self { enabled: _, memory_limit, low, critical } = self;
        // Both conditions are false for NaN, so that NaN is rejected, too.
        let critical_is_allowed = critical > 0.0 && critical <= 1.0;
        let low_is_allowed = low > HYSTERESIS && low < critical;
        [
            Setting {
                name: "pressure.enabled",
                form: "",
                allowed: "true or false".to_owned(),
                refused: None,
            },
            Setting {
                name: "pressure.memory_limit",
                form: "a size such as \"256MiB\", or a whole number of bytes, ",
                allowed: format!("from {} to {}", size::show(MIN_LIMIT), size::show(MAX_LIMIT)),
                refused: memory_limit
                    .filter(|bytes| !(MIN_LIMIT..=MAX_LIMIT).contains(bytes))
                    .map(size::show),
            },
            Setting {
                name: "pressure.critical",
                form: "a number ",
                allowed: "above 0 and at most 1".to_owned(),
                refused: (!critical_is_allowed).then(|| critical.to_string()),
            },
            Setting {
                name: "pressure.low",
                form: "a number ",
                allowed: format!("above {HYSTERESIS} and below pressure.critical ({critical})"),
                refused: (!low_is_allowed).then(|| low.to_string()),
            },
        ]
    }
}

/// One setting of a [`PressureConfig`] with its bounds. For a host that reads its settings from a
/// file, and whose errors name the setting and the allowed values.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// The name with its table, as in `pressure.low`.
    pub name: &'static str,
    /// How a file writes the value. An error text shows this before `allowed`.
    pub form: &'static str,
    /// The allowed values, with the settings on which the bounds depend.
    pub allowed: String,
    /// The value, if it is not allowed.
    pub refused: Option<String>,
}

/// A setting is not allowed. The message names the setting, the value and the allowed values.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{setting} = {value} is not allowed: it must be {allowed}")]
#[non_exhaustive]
pub struct InvalidSetting {
    /// The setting with its table, as in `pressure.low`.
    pub setting: &'static str,
    /// The value, as a file would write it.
    pub value: String,
    /// The allowed values, with the settings on which the bounds depend.
    pub allowed: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_out_of_bounds_is_rejected_with_its_name_its_value_and_the_bounds() {
        let config = PressureConfig::default;
        config().validate().unwrap();
        let below = "above 0.05 and below pressure.critical (0.92)";
        for (config, setting, value, allowed) in [
            (config().memory_limit(1 << 20), "pressure.memory_limit", "1MiB", "from 8MiB to 1024TiB"),
            (config().memory_limit(1), "pressure.memory_limit", "1B", "from 8MiB to 1024TiB"),
            (config().critical(1.01), "pressure.critical", "1.01", "above 0 and at most 1"),
            (config().critical(f64::NAN), "pressure.critical", "NaN", "above 0 and at most 1"),
            (config().low(0.95), "pressure.low", "0.95", below),
            (config().low(0.05), "pressure.low", "0.05", below),
            (config().low(f64::NAN), "pressure.low", "NaN", below),
        ] {
            let error = config.validate().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{setting} = {value} is not allowed: it must be {allowed}")
            );
        }
    }

    #[test]
    fn a_size_is_read_as_text_and_as_a_number_and_written_as_text() {
        for (json, bytes) in [("\"1.5 GiB\"", 1_536 << 20), ("\" 20MB \"", 20_000_000), ("12345", 12_345)] {
            let read: PressureConfig = serde_json::from_str(&format!("{{\"memory_limit\":{json}}}")).unwrap();
            assert_eq!(read, PressureConfig::default().memory_limit(bytes));
            let written = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<PressureConfig>(&written).unwrap(), read, "{written}");
        }
        for json in ["-1", "1.5", "\"5 parsecs\"", "true", "null"] {
            let read = serde_json::from_str::<PressureConfig>(&format!("{{\"memory_limit\":{json}}}"));
            assert!(read.unwrap_err().to_string().contains("a size such as \"256MiB\""), "{json}");
        }
    }
}
