use std::io;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::duration::YEAR;
use super::size::{GIB, KIB, MIB, TIB};
use super::validate::{Setting, settings};
use super::{
    BacklogRefusal, Config, ConfigError, Durability, HealthCause, HealthConfig, MinFree, PressureConfig,
    SpoolConfig,
};

fn config() -> Config {
    Config::new("/spool")
}

/// Checks that `config` is rejected for this setting with this value.
#[track_caller]
fn refused(config: &Config, given: &str, allowed: &str) {
    let err = config.validate().unwrap_err();
    let ConfigError::Invalid { setting, .. } = &err else { panic!("{err}") };
    assert_eq!(Some(setting.as_str()), given.split(' ').next());
    assert_eq!(err.to_string(), format!("{given} is not allowed: it must be {allowed}"));
}

#[test]
fn the_defaults_are_valid_and_equal_a_file_with_only_a_path() {
    config().validate().unwrap();
    assert_eq!(Config::from_toml("path = \"/spool\"").unwrap(), config());
    assert_eq!(config().effective_dirty_limit(), 32 * MIB);
    assert_eq!(config().sled_cache(), 16 * MIB);
    assert_eq!(config().enumerate_wait(), Duration::from_secs(60));
    assert_eq!(config().effective_dirty_age(), Duration::from_secs(5));
}

#[test]
fn the_smallest_budget_is_valid_with_its_derived_defaults() {
    let small = config().memory_budget(8 * MIB);
    small.validate().unwrap();
    assert_eq!(small.effective_dirty_limit(), MIB);
    assert_eq!(small.sled_cache(), MIB);
    let dirty = small.effective_dirty_limit();
    small.dirty_limit(dirty).validate().unwrap();
}

#[test]
fn sizes_and_times_are_read_in_every_form() {
    let toml = r#"
        path = "/spool"
        memory_budget = 536870912
        dirty_limit = "100 MiB"
        segment_size = "65536"
        max_message_size = "20MB"
        dirty_expire = "1s 500ms"
        store_deadline = "2min"
        checkpoint_after = "0s"
        durability = "synced"
        pressure = { memory_limit = "1.5GiB", low = 0.5 }
        health = { dirty_age = "1h", min_free = "7 %" }
    "#;
    let expected = config()
        .memory_budget(512 * MIB)
        .dirty_limit(100 * MIB)
        .segment_size(64 * KIB)
        .max_message_size(20_000_000)
        .dirty_expire(Duration::from_millis(1_500))
        .store_deadline(Duration::from_secs(120))
        .checkpoint_after(Duration::ZERO)
        .durability(Durability::Synced)
        .pressure(PressureConfig::default().memory_limit(1_536 * MIB).low(0.5))
        .health(
            HealthConfig::default().dirty_age(Duration::from_secs(3_600)).min_free(MinFree::Percent(7.0)),
        );
    assert_eq!(Config::from_toml(toml).unwrap(), expected);
    for bytes in ["4096", "\"4KiB\""] {
        let config = Config::from_toml(&format!("path = \"/x\"\nhealth.min_free = {bytes}")).unwrap();
        assert_eq!(config.health.min_free, Some(MinFree::Bytes(4_096)));
    }
}

/// A config in which no setting has its default.
fn everything_set() -> Config {
    config()
        .path(PathBuf::from("/other"))
        .memory_budget(1)
        .dirty_limit(2)
        .dirty_expire(Duration::from_secs(3))
        .durability(Durability::Memory)
        .store_deadline(Duration::from_secs(4))
        .max_message_size(5)
        .journal_capacity(6)
        .segment_size(7)
        .checkpoint_after(Duration::from_secs(8))
        .read_wait(Duration::from_secs(9))
        .read_threads(11)
        .shutdown_timeout(Duration::from_secs(12))
        .ballast(13)
        .pressure(PressureConfig::default().enabled(false).memory_limit(15).low(0.16).critical(0.17))
        .health(
            HealthConfig::default()
                .dirty_age(Duration::from_secs(20))
                .backlog_latch_after(Duration::from_secs(21))
                .backlog_refusal(BacklogRefusal::Synced)
                .reported_causes(vec![HealthCause::Pressure])
                .backlog_unlatch_after(Duration::from_secs(23))
                .hard_latch_after(Duration::from_secs(24))
                .hard_unlatch_after(Duration::from_secs(25))
                .checkpoint_stall(Duration::from_secs(22))
                .disk_errors(221)
                .damage(223)
                .min_free(MinFree::Percent(0.7))
                .sample_interval(Duration::from_secs(27)),
        )
        .spool(
            "meta",
            SpoolConfig::default().durability(Durability::Process).max_message_size(28).cache_weight(29),
        )
}

/// The defaults, and the settings of a spool.
fn with_a_spool() -> Config {
    config().spool("meta", SpoolConfig::default())
}

#[test]
fn every_setter_sets_its_own_field() {
    let all = everything_set();
    // As text, so that a field that no setter sets still shows its default here.
    let expected = r#"path = "/other"
memory_budget = "1B"
dirty_limit = "2B"
dirty_expire = "3s"
durability = "memory"
store_deadline = "4s"
max_message_size = "5B"
journal_capacity = "6B"
segment_size = "7B"
checkpoint_after = "8s"
read_wait = "9s"
read_threads = 11
shutdown_timeout = "12s"
ballast = "13B"

[pressure]
enabled = false
memory_limit = "15B"
low = 0.16
critical = 0.17

[health]
dirty_age = "20s"
backlog_refusal = "synced"
reported_causes = ["pressure"]
backlog_latch_after = "21s"
backlog_unlatch_after = "23s"
hard_latch_after = "24s"
hard_unlatch_after = "25s"
checkpoint_stall = "22s"
disk_errors = 221
damage = 223
min_free = "0.7%"
sample_interval = "27s"

[spools.meta]
durability = "process"
max_message_size = "28B"
cache_weight = 29
"#;
    assert_eq!(all.to_toml().unwrap(), expected);
}

#[test]
fn an_unknown_setting_is_rejected_with_its_full_name_and_the_known_settings() {
    for (text, expected) in [
        (
            "path = \"/x\"\n  memory_bugdet = 1",
            "2, column 3: unknown setting memory_bugdet; there are: path, ",
        ),
        ("[pressure]\nlowest = 0.1", "2, column 1: unknown setting pressure.lowest; there are: enabled, "),
        ("health.disk_error = 3", "1, column 8: unknown setting health.disk_error; there are: dirty_age, "),
        (
            "[health.damage_of]\nlatch = 1",
            "1, column 9: unknown setting health.damage_of; there are: dirty_age, ",
        ),
        (
            "[spools.meta]\nweight = 4",
            "2, column 1: unknown setting spools.meta.weight; there are: durability, max_message_size, cache_weight",
        ),
        ("path = \"/x\"\nspool.meta = {}", "2, column 1: unknown setting spool; there are: path, "),
        ("[no.such.table]\nx = 1", "1, column 2: unknown setting no; there are: path, memory_budget, "),
    ] {
        let error = Config::from_toml(text).unwrap_err();
        assert!(matches!(error, ConfigError::Unknown { .. }), "{error}");
        assert!(error.to_string().starts_with(&format!("line {expected}")), "{error}");
    }
}

/// The error for `-1` had no bounds, a bad time in a table did not name the table, 9999999999999TiB
/// was shown as a number of bytes, and no error named the file.
///
/// Tries every setting with values of each wrong kind and values beyond any bounds. New settings
/// are covered, because the list comes from `settings`.
#[test]
fn each_error_names_the_file_the_place_the_setting_the_value_and_the_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("spool.toml");
    let mut rejected_of = std::collections::BTreeMap::new();
    for Setting { path, allowed, .. } in settings(&with_a_spool()) {
        for value in [
            "-1",
            "-0.5",
            "1.5",
            "1e300",
            "nan",
            "inf",
            "0",
            "99999999999999999999",
            "\"\"",
            "\"nonsense\"",
            "\"5 parsecs\"",
            "\"-1s\"",
            "\"9999999999999TiB\"",
            "\"-3MiB\"",
            "\"9999999999days\"",
            "\"1\"",
            "true",
            "[1, 2]",
            "1979-05-27",
            "{ a = 1 }",
        ] {
            let (table, name) = path
                .rsplit_once('.')
                .map_or((String::new(), path.as_str()), |(table, name)| (format!("[{table}]\n"), name));
            // A valid setting comes before it, so that the error is not on the first line.
            let text = match name {
                "path" => format!("durability = \"synced\"\npath = {value} # why"),
                name => format!("path = \"/x\"\n{table}{name} = {value} # why"),
            };
            std::fs::write(&file, &text).unwrap();
            let Err(error) = Config::from_toml_file(&file) else { continue };
            let line = text.lines().count();
            let place = format!("{}:{line}:{}: ", file.display(), name.len() + 4);
            let text = error.to_string();
            assert!(text.starts_with(&place), "{path} = {value}: {text}");
            if matches!(error, ConfigError::Syntax { .. }) {
                assert_eq!(value, "99999999999999999999", "{path}: {text}");
                continue;
            }
            assert!(
                text.contains(&format!("{path} = {value} is not allowed: it must be ")),
                "{path} = {value}: {text}"
            );
            assert!(text.ends_with(&allowed), "{path} = {value}: the bounds are {allowed}: {text}");
            *rejected_of.entry(path.clone()).or_insert(0) += 1;
        }
    }
    for Setting { path, .. } in settings(&with_a_spool()) {
        let least = if path == "path" { 8 } else { 13 };
        assert!(rejected_of.get(&path).is_some_and(|refused| *refused >= least), "{path}: {rejected_of:?}");
    }
}

/// A setting that is missing from the list would have no bounds and be unknown in a file.
#[test]
fn every_setting_is_in_the_list() {
    fn leaves(table: &toml::Table, prefix: &str, found: &mut Vec<String>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(table) => leaves(table, &format!("{prefix}{key}."), found),
                _ => found.push(format!("{prefix}{key}")),
            }
        }
    }
    let mut found = Vec::new();
    leaves(&everything_set().to_toml().unwrap().parse().unwrap(), "", &mut found);
    found.sort_unstable();
    let mut listed: Vec<String> = settings(&with_a_spool()).into_iter().map(|setting| setting.path).collect();
    listed.sort_unstable();
    assert_eq!(found, listed);
}

#[test]
fn a_value_in_place_of_a_table_is_rejected_with_the_settings_of_the_table() {
    for (text, setting) in
        [("pressure = 3", "pressure"), ("health = \"1s\"", "health"), ("spools.meta = 3", "spools.meta")]
    {
        let error = Config::from_toml(&format!("path = \"/x\"\n{text}")).unwrap_err().to_string();
        assert!(error.starts_with("line 2, column "), "{error}");
        let expected = format!(
            "{setting} = {} is not allowed: it must be a table of settings: ",
            text.split_once("= ").unwrap().1
        );
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn a_spool_has_its_own_settings_and_the_others_of_the_store() {
    let text = r#"
        path = "/spool"
        durability = "memory"
        max_message_size = "2MiB"
        [spools.meta]
        durability = "synced"
        cache_weight = 4
        [spools.data]
        max_message_size = "1GiB"
        [spools.other-1]
    "#;
    let read = Config::from_toml(text).unwrap();
    let from_code = config()
        .durability(Durability::Memory)
        .max_message_size(2 * MIB)
        .spool("meta", SpoolConfig::default().durability(Durability::Synced).cache_weight(4))
        .spool("data", SpoolConfig::default().max_message_size(GIB))
        .spool("other-1", SpoolConfig::default());
    assert_eq!(read, from_code);
    assert_eq!(Config::from_toml(&read.to_toml().unwrap()).unwrap(), read);
    let of = |name| (read.durability_of(name), read.max_message_size_of(name), read.cache_weight_of(name));
    assert_eq!(of("meta"), (Durability::Synced, 2 * MIB, 4));
    assert_eq!(of("data"), (Durability::Memory, GIB, 1));
    assert_eq!(of("no-such-spool"), (Durability::Memory, 2 * MIB, 1));
}

#[test]
fn one_spool_that_survives_the_process_needs_a_crash_log() {
    let memory = config().durability(Durability::Memory);
    assert!(config().needs_crash_log());
    assert!(!memory.needs_crash_log());
    let with = |durability| memory.clone().spool("meta", SpoolConfig::default().durability(durability));
    assert!(!with(Durability::Memory).needs_crash_log());
    assert!(with(Durability::Process).needs_crash_log() && with(Durability::Synced).needs_crash_log());
    let data = SpoolConfig::default().durability(Durability::Memory);
    assert!(config().spool("data", data).needs_crash_log(), "the other spools survive");
}

#[test]
fn names_of_spools_are_those_that_a_spool_can_have() {
    let allowed = "a table for each spool, by its name: 1 to 32 characters from a-z, 0-9, _ and -";
    let with = |name: &str| config().spool(name, SpoolConfig::default());
    with(&"x".repeat(32)).validate().unwrap();
    for name in ["", "Meta", "a b", "a.b", "..", &"x".repeat(33)] {
        refused(&with(name), &format!("spools = {name:?}"), allowed);
        let text = format!("path = \"/x\"\n[spools.{name:?}]\ncache_weight = 1");
        let error = Config::from_toml(&text).unwrap_err().to_string();
        let expected = format!("line 2, column 9: spools = {name:?} is not allowed: it must be {allowed}");
        assert_eq!(error, expected);
    }
    let error = Config::from_toml("path = \"/x\"\nspools = 3").unwrap_err().to_string();
    assert_eq!(error, format!("line 2, column 10: spools = 3 is not allowed: it must be {allowed}"));
}

#[test]
fn settings_of_a_spool_have_the_bounds_of_the_store_and_may_change() {
    let with = |spool| config().spool("meta", spool);
    let default = SpoolConfig::default;
    let size = "from 1KiB to 1GiB";
    refused(&with(default().max_message_size(0)), "spools.meta.max_message_size = 0B", size);
    refused(&with(default().max_message_size(2 * GIB)), "spools.meta.max_message_size = 2GiB", size);
    refused(&with(default().cache_weight(1_001)), "spools.meta.cache_weight = 1001", "from 0 to 1000");
    with(default().cache_weight(0).max_message_size(KIB)).validate().unwrap();
    config().validate_change(&with(default().durability(Durability::Synced).cache_weight(2))).unwrap();
}

#[test]
fn dependent_bounds_use_the_values_in_the_file() {
    let error = Config::from_toml("path = \"/x\"\nmemory_budget = \"16MiB\"\ndirty_limit = -1").unwrap_err();
    assert!(error.to_string().ends_with("from 1MiB to 8MiB (half of memory_budget)"), "{error}");
    let ConfigError::Invalid { at, setting, value, .. } = error else { panic!("{error}") };
    assert_eq!((at.line, at.column, at.file), (Some(3), Some(15), None));
    assert_eq!((setting.as_str(), value.as_str()), ("dirty_limit", "-1"));
    // `dirty_limit` is rejected, although the line below sets its bounds.
    let error =
        Config::from_toml("path = \"/x\"\ndirty_limit = \"100MiB\"\nmemory_budget = \"64MiB\"").unwrap_err();
    assert!(error.to_string().starts_with("line 2, column 15: dirty_limit = \"100MiB\" is not"), "{error}");
}

#[test]
fn invalid_toml_is_rejected_with_its_line() {
    for text in ["path = \"/x\"\nmemory_budget = ", "path = \"/x\"\npath = \"/y\"", "path = \"/x\"\n[health"]
    {
        let error = Config::from_toml(text).unwrap_err();
        assert!(matches!(error, ConfigError::Syntax { .. }), "{error}");
        assert!(error.to_string().starts_with("line 2, column "), "{error}");
    }
}

#[test]
fn an_error_shows_a_value_in_one_short_line() {
    let error = Config::from_toml(&format!("path = \"/x\"\nread_threads = [\n{}]", "1,\n".repeat(1000)))
        .unwrap_err()
        .to_string();
    assert!(error.lines().count() == 1 && error.len() < 300 && error.contains("[ 1, 1, "), "{error}");
}

#[test]
fn a_value_of_the_wrong_kind_is_rejected_with_an_example_and_the_bounds() {
    for (line, allowed) in [
        ("memory_budget = -1", "a size such as \"256MiB\", or a whole number of bytes, from 8MiB to 1TiB"),
        ("dirty_expire = 500", "a time with its unit, such as \"500ms\" or \"1m 30s\", from 10ms to 1h"),
        ("durability = \"disk\"", "\"memory\", \"process\" or \"synced\""),
        ("read_threads = -1", "a whole number from 1 to 64"),
        ("pressure.critical = \"half\"", "a number above 0 and at most 1"),
        ("pressure.enabled = 1", "true or false"),
        (
            "health.reported_causes = \"space\"",
            "a list such as [\"broken\", \"space\"], any of \"broken\", \"space\", \"backlog\", \"pressure\"",
        ),
        (
            "health.reported_causes = [ \"disk\" ]",
            "a list such as [\"broken\", \"space\"], any of \"broken\", \"space\", \"backlog\", \"pressure\"",
        ),
        (
            "health.reported_causes = [ \"shut_down\" ]",
            "a list such as [\"broken\", \"space\"], any of \"broken\", \"space\", \"backlog\", \"pressure\"",
        ),
        (
            "health.min_free = \"half\"",
            "a size such as \"256MiB\", a whole number of bytes, or a percentage such as \"5%\", \
             from 0 to 1TiB, or from 0% to 50%",
        ),
    ] {
        let error = Config::from_toml(&format!("path = \"/x\"\n{line}")).unwrap_err().to_string();
        assert!(error.ends_with(&format!(": {line} is not allowed: it must be {allowed}")), "{error}");
    }
    let error = Config::from_toml("path = 7").unwrap_err().to_string();
    assert!(error.ends_with("path = 7 is not allowed: it must be the directory of the spool"), "{error}");
}

#[test]
fn a_missing_path_is_rejected() {
    let err = Config::from_toml("memory_budget = \"64MiB\"").unwrap_err();
    assert_eq!(err.to_string(), "path = \"\" is not allowed: it must be the directory of the spool");
    let err = Config::from_toml("path = \"\"").unwrap_err();
    assert!(err.to_string().starts_with("line 1, column 8: path = \"\" is not allowed"), "{err}");
    refused(&Config::new(""), "path = \"\"", "the directory of the spool");
}

#[test]
fn sizes_out_of_bounds_are_rejected() {
    refused(&config().memory_budget(8 * MIB - 1), "memory_budget = 8388607B", "from 8MiB to 1TiB");
    refused(&config().memory_budget(2 * TIB), "memory_budget = 2TiB", "from 8MiB to 1TiB");
    refused(&config().max_message_size(0), "max_message_size = 0B", "from 1KiB to 1GiB");
    refused(&config().max_message_size(2 * GIB), "max_message_size = 2GiB", "from 1KiB to 1GiB");
    refused(&config().read_wait(Duration::from_secs(3_601)), "read_wait = 1h 1s", "from 0s to 1h");
    refused(&config().ballast(2 * GIB), "ballast = 2GiB", "from 0B to 1GiB");
    let pages = "from 64KiB to 1GiB, a multiple of 4KiB";
    refused(&config().segment_size(32 * KIB), "segment_size = 32KiB", pages);
    refused(&config().segment_size(64 * KIB + 1), "segment_size = 65537B", pages);
    let free = |min_free| config().health(HealthConfig::default().min_free(min_free));
    let allowed = "from 0 to 1TiB, or from 0% to 50%";
    refused(&free(MinFree::Bytes(2 * TIB)), "health.min_free = 2TiB", allowed);
    refused(&free(MinFree::Percent(50.5)), "health.min_free = 50.5%", allowed);
    refused(&free(MinFree::Percent(f64::NAN)), "health.min_free = NaN%", allowed);
    let limit = config().pressure(PressureConfig::default().memory_limit(MIB));
    refused(&limit, "pressure.memory_limit = 1MiB", "from 8MiB to 1024TiB");
}

#[test]
fn errors_name_the_setting_on_which_a_bound_depends() {
    let half = "from 1MiB to 128MiB (half of memory_budget)";
    refused(&config().dirty_limit(129 * MIB), "dirty_limit = 129MiB", half);
    refused(&config().dirty_limit(KIB), "dirty_limit = 1KiB", half);
    let four = "from 128MiB (4 × segment_size) to 1TiB";
    refused(&config().journal_capacity(127 * MIB), "journal_capacity = 127MiB", four);
    refused(&config().journal_capacity(2 * TIB), "journal_capacity = 2TiB", four);
    config().dirty_limit(128 * MIB).journal_capacity(128 * MIB).validate().unwrap();
}

#[test]
fn times_out_of_bounds_are_rejected() {
    let ms = Duration::from_millis;
    let day = Duration::from_secs(86_400);
    refused(&config().dirty_expire(ms(9)), "dirty_expire = 9ms", "from 10ms to 1h");
    refused(&config().store_deadline(Duration::ZERO), "store_deadline = 0s", "from 1ms to 1h");
    refused(&config().checkpoint_after(8 * day), "checkpoint_after = 8days", "from 0s to 7days");
    refused(&config().shutdown_timeout(ms(1)), "shutdown_timeout = 1ms", "from 100ms to 1h");
    let default = HealthConfig::default;
    for (health, given, allowed) in [
        (default().dirty_age(ms(499)), "dirty_age = 499ms", "from 500ms (dirty_expire) to 1day"),
        (default().backlog_latch_after(day), "backlog_latch_after = 1day", "from 0s to 1h"),
        (default().checkpoint_stall(ms(1)), "checkpoint_stall = 1ms", "from 1s to 1day"),
        (default().hard_latch_after(day), "hard_latch_after = 1day", "from 0s to 1h"),
        (default().hard_unlatch_after(2 * YEAR), "hard_unlatch_after = 2years", "from 0s to 1year"),
        (default().backlog_unlatch_after(2 * YEAR), "backlog_unlatch_after = 2years", "from 0s to 1year"),
        (default().sample_interval(ms(1)), "sample_interval = 1ms", "from 10ms to 10s"),
    ] {
        refused(&config().health(health), &format!("health.{given}"), allowed);
    }
}

#[test]
fn numbers_out_of_bounds_are_rejected() {
    refused(&config().read_threads(0), "read_threads = 0", "from 1 to 64");
    refused(&config().read_threads(65), "read_threads = 65", "from 1 to 64");
    let health = |health| config().health(health);
    let default = HealthConfig::default;
    refused(&health(default().disk_errors(0)), "health.disk_errors = 0", "from 1 to 1000");
    refused(&health(default().disk_errors(1_001)), "health.disk_errors = 1001", "from 1 to 1000");
    refused(&health(default().damage(0)), "health.damage = 0", "from 1 to 1000");
    let pressure = |pressure| config().pressure(pressure);
    let default = PressureConfig::default;
    for critical in [1.01, f64::NAN] {
        let given = format!("pressure.critical = {critical}");
        refused(&pressure(default().critical(critical)), &given, "above 0 and at most 1");
    }
    for low in [0.95, f64::NAN, 0.05] {
        let given = format!("pressure.low = {low}");
        refused(&pressure(default().low(low)), &given, "above 0.05 and below pressure.critical (0.92)");
    }
}

#[test]
fn settings_are_read_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("spool.toml");
    let wanted = config().memory_budget(64 * MIB).dirty_limit(3 * MIB);
    std::fs::write(&file, wanted.to_toml().unwrap()).unwrap();
    assert_eq!(Config::from_toml_file(&file).unwrap(), wanted);

    let missing = dir.path().join("missing.toml");
    let err = Config::from_toml_file(&missing).unwrap_err();
    assert!(err.to_string().contains(&missing.display().to_string()), "{err}");
    assert!(matches!(err, ConfigError::Read { kind: io::ErrorKind::NotFound, .. }), "{err}");
}

proptest! {
    #[test]
    fn every_size_and_time_round_trips_through_a_file(
        bytes in prop_oneof![any::<u64>(), (0..64u32, 0..2_000u64).prop_map(|(shift, n)| n << (shift % 50))],
        nanos in any::<u64>(),
    ) {
        let config = config().memory_budget(bytes).dirty_limit(bytes).dirty_expire(Duration::from_nanos(nanos));
        let back: Config = toml::from_str(&config.to_toml().unwrap()).unwrap();
        prop_assert_eq!(back, config);
    }

    #[test]
    fn no_text_panics(text in "[ -~\n]{0,60}") {
        let _ = Config::from_toml(&text);
        let _ = Config::from_toml(&format!("path = \"/x\"\nmemory_budget = \"{text}\""));
    }
}
