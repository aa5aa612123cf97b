use std::collections::HashMap;
use std::time::Duration;

use tidespool_pressure::{Level, Source};

use super::{Gauges, Refusal, Site, SpoolStats, Stats, StatsSnapshot, Tier};
use crate::HealthSignal;

fn times(n: usize, event: impl Fn()) {
    (0..n).for_each(|_| event());
}

/// Counts every event of a spool a different number of times, so that mixed-up counters are
/// detected, and `more` times in addition.
fn busy_spool(more: usize) -> SpoolStats {
    let spool = SpoolStats::default();
    times(2 + more, || spool.hit(Tier::Pending));
    times(45 + more, || spool.hit(Tier::Young));
    times(3 + more, || spool.hit(Tier::Cache));
    times(4 + more, || spool.hit(Tier::Journal));
    times(5 + more, || spool.hit(Tier::Sled));
    times(6 + more, || spool.miss());
    spool.skipped_newer(43 + more as u64);
    times(7 + more, || spool.stored(100, false));
    times(8 + more, || spool.stored(1_000, true));
    times(9 + more, || spool.removed());
    times(17 + more, || spool.store_refused(Refusal::Unhealthy));
    times(18 + more, || spool.store_refused(Refusal::CallerDeadline));
    times(19 + more, || spool.store_refused(Refusal::Backpressure));
    times(20 + more, || spool.store_refused(Refusal::TooLarge));
    times(21 + more, || spool.store_refused(Refusal::Closed));
    times(37 + more, || spool.store_waited(Duration::from_secs(100)));
    spool
}

/// The counters of a busy spool and of its store, each with another number.
fn busy() -> (SpoolStats, Stats) {
    let stats = Stats::default();
    stats.elided(10, 11_000);
    times(12, || stats.committed(2, 4_096, Duration::from_millis(1)));
    times(13, || stats.synced(Duration::from_micros(250)));
    times(14, || stats.checkpoint(3, 2, Duration::from_millis(500)));
    times(44, || stats.segment_recycled());
    times(16, || stats.segment_rewritten(10));
    times(22, || stats.aborted());
    times(23, || stats.disk_error(Site::JournalWrite));
    times(24, || stats.disk_error(Site::JournalSync));
    times(25, || stats.disk_error(Site::JournalRead));
    times(26, || stats.disk_error(Site::Sled));
    times(27, || stats.disk_error(Site::Manifest));
    times(28, || stats.corrupt());
    stats.lost(29);
    times(38, || stats.lost_file());
    times(39, || stats.rebuilt_index());
    stats.cache_evicted(30, 31_000);
    times(32, || stats.low_memory(50));
    stats.low_memory(-1_000);
    times(34, || stats.pressure_changed());
    stats.recovered(35);
    stats.torn(36);
    stats.replayed(40);
    times(41, || stats.crash_log_lost());
    times(42, || stats.unprotected());
    (busy_spool(0), stats)
}

fn snapshot((spool, stats): &(SpoolStats, Stats), gauges: Gauges) -> StatsSnapshot {
    StatsSnapshot::of([("meta", spool)].into_iter(), stats, gauges)
}

/// The statistics of a store with one spool and nothing else.
fn of_one(spool: &SpoolStats) -> StatsSnapshot {
    StatsSnapshot::of([("main", spool)].into_iter(), &Stats::default(), Gauges::default())
}

fn gauges() -> Gauges {
    Gauges {
        dirty_bytes: 1_001,
        at_risk_bytes: 1_024,
        at_risk_removals: 1_025,
        process_risk_bytes: 1_026,
        process_risk_removals: 1_027,
        crash_log_bytes: 1_028,
        crash_log_disk_bytes: 1_029,
        dirty_limit: 1_002,
        dirty_entries: 1_003,
        oldest_dirty_age: Duration::from_millis(1_500),
        cache_bytes: 1_004,
        cache_entries: 1_005,
        cache_capacity: 1_006,
        young_bytes: 1_032,
        young_entries: 1_033,
        young_capacity: 1_034,
        index_entries: 1_007,
        index_bytes: 1_008,
        sled_bytes: 1_009,
        accounted_bytes: 1_010,
        journal_buffer_bytes: 1_013,
        memory_budget: 1_011,
        memory_allowed: 1_030,
        resident_bytes: 1_012,
        pressure_used: 1_019,
        pressure_limit: 1_020,
        pressure_source: Some(Source::CgroupV1),
        pressure_level: Level::Critical,
        memory_stall_ratio: Some(0.25),
        sled_disk_bytes: 1_031,
        journal_bytes: 1_014,
        journal_capacity: 1_023,
        journal_segments_free: 1_015,
        journal_segments_in_use: 1_016,
        journal_segments_retained: 1_017,
        unhealthy: Some(HealthSignal::LowSpace),
        shut_down: false,
        index_rebuild_indexed: Some(1_021),
        index_rebuild_messages: Some(1_022),
    }
}

#[test]
fn each_event_has_its_own_counter() {
    let stats = snapshot(&busy(), gauges());
    assert_eq!((stats.hits_pending, stats.hits_young, stats.hits_cache), (2, 45, 3));
    assert_eq!((stats.hits_journal, stats.hits_sled), (4, 5));
    assert_eq!((stats.hits(), stats.misses, stats.loads()), (59, 6, 65));
    assert_eq!(stats.enumerate_skipped_newer, 43);
    assert_eq!((stats.stores, stats.stores_synced, stats.stored_bytes), (15, 8, 8_700));
    assert_eq!((stats.removes, stats.elided_writes, stats.elided_bytes, stats.aborts), (9, 10, 11_000, 22));
    assert_eq!((stats.commit.count, stats.committed_records, stats.committed_bytes), (12, 24, 49_152));
    assert_eq!((stats.sync.count, stats.sync.sum_us, stats.sync.p99_us), (13, 3_250, 250));
    assert_eq!((stats.checkpoints, stats.checkpointed_records, stats.checkpointed_segments), (14, 42, 28));
    assert_eq!(stats.checkpoint_time, Duration::from_secs(7));
    assert_eq!((stats.segments_recycled, stats.segments_rewritten, stats.rewritten_bytes), (44, 16, 160));
    assert_eq!(
        (stats.refused_unhealthy, stats.refused_caller_deadline, stats.refused_backpressure),
        (17, 18, 19)
    );
    assert_eq!((stats.refused_too_large, stats.refused_closed, stats.refused()), (20, 21, 95));
    assert_eq!(
        (stats.errors_journal_write, stats.errors_journal_sync, stats.errors_journal_read),
        (23, 24, 25)
    );
    assert_eq!((stats.errors_sled, stats.errors_manifest, stats.disk_errors()), (26, 27, 125));
    assert_eq!((stats.corrupt, stats.lost, stats.recovered_records, stats.torn_records), (28, 29, 35, 36));
    assert_eq!((stats.lost_files, stats.index_rebuilds, stats.replayed_changes), (38, 39, 40));
    assert_eq!((stats.crash_logs_lost, stats.crash_log_bypassed), (41, 42));
    assert_eq!((stats.cache_evicted_entries, stats.cache_evicted_bytes), (30, 31_000));
    assert_eq!(
        (stats.low_memory_calls, stats.low_memory_freed_bytes, stats.pressure_changes),
        (33, 1_600, 34)
    );
    assert_eq!(stats.store_wait.count, 37);
    assert_eq!(stats.gauges, gauges());
}

#[test]
fn hit_ratio_is_the_share_served_from_memory() {
    assert_eq!(StatsSnapshot::default().hit_ratio(), None);
    let stats = SpoolStats::default();
    let now = || of_one(&stats);
    stats.miss();
    assert_eq!(now().hit_ratio(), None, "a miss is not a successful load");
    stats.hit(Tier::Sled);
    assert_eq!(now().hit_ratio(), Some(0.0));
    stats.hit(Tier::Pending);
    stats.hit(Tier::Cache);
    stats.hit(Tier::Cache);
    assert_eq!(now().hit_ratio(), Some(0.75));
}

#[test]
fn concurrent_events_are_all_counted() {
    let stats = SpoolStats::default();
    let now = || of_one(&stats);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| times(10_000, || stats.stored(2, true)));
        }
    });
    let snapshot = now();
    assert_eq!((snapshot.stores, snapshot.stores_synced, snapshot.stored_bytes), (40_000, 40_000, 80_000));
}

#[test]
fn the_snapshot_serializes_to_json() {
    let json = serde_json::to_value(snapshot(&busy(), gauges())).unwrap();
    assert_eq!(json["hits_cache"], 3);
    assert_eq!(json["commit"]["count"], 12);
    assert_eq!(json["gauges"]["pressure_level"], "critical");
    assert_eq!(json["gauges"]["pressure_limit"], 1_020);
}

/// Checks the format of the OpenMetrics text line by line, and returns the samples.
fn parse(text: &str) -> HashMap<String, f64> {
    let mut samples = HashMap::new();
    let (mut family, mut kind, mut has_help) = (String::new(), "", false);
    let body = text.strip_suffix("# EOF\n").expect("ends in # EOF");
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').expect("a help text");
            assert!(name.starts_with("tidespool_") && text.len() > 5, "{line}");
            (family, has_help) = (name.to_owned(), true);
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, of) = typed.split_once(' ').expect("a type");
            assert!(name == family && has_help, "{line}");
            kind = of;
        } else if let Some(unit) = line.strip_prefix("# UNIT ") {
            let (name, unit) = unit.split_once(' ').expect("a unit");
            assert!(name == family && name.ends_with(&format!("_{unit}")), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let name = series.split('{').next().unwrap_or_default();
            let suffix =
                name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} is not of {family}"));
            let suffixes: &[&str] = match kind {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => panic!("{line}: type {kind}"),
            };
            assert!(suffixes.contains(&suffix), "{line}");
            let earlier = samples.insert(series.to_owned(), value.parse().expect("a number"));
            assert!(earlier.is_none(), "twice: {line}");
        }
    }
    samples
}

#[test]
fn prometheus_text_is_well_formed_and_matches_the_snapshot() {
    let text = snapshot(&busy(), gauges()).prometheus_text();
    let samples = parse(&text);
    let expected: &[(&str, f64)] = &[
        ("load_hits_total{spool=\"meta\",tier=\"pending\"}", 2.0),
        ("load_hits_total{spool=\"meta\",tier=\"young\"}", 45.0),
        ("load_hits_total{spool=\"meta\",tier=\"cache\"}", 3.0),
        ("load_hits_total{spool=\"meta\",tier=\"journal\"}", 4.0),
        ("load_hits_total{spool=\"meta\",tier=\"sled\"}", 5.0),
        ("load_misses_total{spool=\"meta\"}", 6.0),
        ("enumerate_skipped_newer_total{spool=\"meta\"}", 43.0),
        ("stores_total{spool=\"meta\",sync=\"synced\"}", 8.0),
        ("stores_total{spool=\"meta\",sync=\"deferred\"}", 7.0),
        ("stored_bytes_total{spool=\"meta\"}", 8_700.0),
        ("store_refusals_total{spool=\"meta\",reason=\"unhealthy\"}", 17.0),
        ("store_refusals_total{spool=\"meta\",reason=\"caller_deadline\"}", 18.0),
        ("store_refusals_total{spool=\"meta\",reason=\"backpressure\"}", 19.0),
        ("store_refusals_total{spool=\"meta\",reason=\"too_large\"}", 20.0),
        ("store_refusals_total{spool=\"meta\",reason=\"closed\"}", 21.0),
        ("store_wait_seconds_count{spool=\"meta\"}", 37.0),
        ("store_wait_seconds_sum{spool=\"meta\"}", 3_700.0),
        ("removes_total{spool=\"meta\"}", 9.0),
        ("aborts_total", 22.0),
        ("elided_writes_total", 10.0),
        ("elided_bytes_total", 11_000.0),
        ("commit_duration_seconds_count", 12.0),
        ("sync_duration_seconds_count", 13.0),
        ("sync_duration_seconds_sum", 0.00325),
        ("committed_records_total", 24.0),
        ("committed_bytes_total", 49_152.0),
        ("checkpoints_total", 14.0),
        ("checkpointed_records_total", 42.0),
        ("checkpointed_segments_total", 28.0),
        ("checkpoint_time_seconds_total", 7.0),
        ("segments_recycled_total", 44.0),
        ("segments_rewritten_total", 16.0),
        ("rewritten_bytes_total", 160.0),
        ("cache_evictions_total", 30.0),
        ("cache_evicted_bytes_total", 31_000.0),
        ("low_memory_calls_total", 33.0),
        ("low_memory_freed_bytes_total", 1_600.0),
        ("pressure_changes_total", 34.0),
        ("disk_errors_total{site=\"journal_write\"}", 23.0),
        ("disk_errors_total{site=\"journal_sync\"}", 24.0),
        ("disk_errors_total{site=\"journal_read\"}", 25.0),
        ("disk_errors_total{site=\"sled\"}", 26.0),
        ("disk_errors_total{site=\"manifest\"}", 27.0),
        ("corrupt_messages_total", 28.0),
        ("lost_messages_total", 29.0),
        ("lost_files_total", 38.0),
        ("recovered_records_total", 35.0),
        ("torn_records_total", 36.0),
        ("replayed_changes_total", 40.0),
        ("crash_logs_lost_total", 41.0),
        ("crash_log_bypassed_total", 42.0),
        ("dirty_bytes", 1_001.0),
        ("at_risk_bytes", 1_024.0),
        ("at_risk_removals", 1_025.0),
        ("process_risk_bytes", 1_026.0),
        ("process_risk_removals", 1_027.0),
        ("crash_log_bytes", 1_028.0),
        ("crash_log_disk_bytes", 1_029.0),
        ("dirty_limit_bytes", 1_002.0),
        ("dirty_entries", 1_003.0),
        ("oldest_dirty_age_seconds", 1.5),
        ("cache_bytes", 1_004.0),
        ("young_bytes", 1_032.0),
        ("young_entries", 1_033.0),
        ("young_capacity_bytes", 1_034.0),
        ("cache_entries", 1_005.0),
        ("cache_capacity_bytes", 1_006.0),
        ("index_entries", 1_007.0),
        ("index_bytes", 1_008.0),
        ("sled_memory_bytes", 1_009.0),
        ("accounted_bytes", 1_010.0),
        ("journal_buffer_bytes", 1_013.0),
        ("memory_budget_bytes", 1_011.0),
        ("memory_allowed_bytes", 1_030.0),
        ("resident_bytes", 1_012.0),
        ("pressure_used_bytes", 1_019.0),
        ("pressure_limit_bytes", 1_020.0),
        ("pressure_source{source=\"cgroup_v1\"}", 1.0),
        ("pressure_level", 2.0),
        ("memory_stall_ratio", 0.25),
        ("sled_disk_bytes", 1_031.0),
        ("journal_bytes", 1_014.0),
        ("journal_capacity_bytes", 1_023.0),
        ("journal_segments{state=\"free\"}", 1_015.0),
        ("journal_segments{state=\"in_use\"}", 1_016.0),
        ("journal_segments{state=\"retained\"}", 1_017.0),
        ("unhealthy", 1.0),
        ("unhealthy_signal{signal=\"low_space\"}", 1.0),
        ("index_rebuilds_total", 39.0),
        ("index_rebuild_indexed", 1_021.0),
        ("index_rebuild_messages", 1_022.0),
    ];
    for (name, value) in expected {
        assert_eq!(samples.get(&format!("tidespool_{name}")), Some(value), "{name} in\n{text}");
    }
    let unnamed = samples.keys().filter(|name| {
        !name.contains("_bucket") && !expected.iter().any(|(known, _)| **name == format!("tidespool_{known}"))
    });
    let unnamed: Vec<_> = unnamed.filter(|name| *name != "tidespool_commit_duration_seconds_sum").collect();
    assert!(unnamed.is_empty(), "not checked: {unnamed:?}");
}

#[test]
fn each_spool_has_its_own_counters_and_the_store_has_their_sums() {
    let (data, meta, store) = (busy_spool(100), busy_spool(0), busy().1);
    let both = StatsSnapshot::of([("data", &data), ("meta", &meta)].into_iter(), &store, gauges());
    let (data, meta) = (&both.spools["data"], &both.spools["meta"]);
    assert_eq!(both.spools.len(), 2);
    assert_eq!((meta.stores, meta.stores_synced, meta.stored_bytes), (15, 8, 8_700));
    assert_eq!((data.stores, data.stores_synced, data.stored_bytes), (215, 108, 118_700));
    assert_eq!((data.hits(), data.loads(), data.refused()), (559, 665, 595));
    assert_eq!((meta.hits(), meta.loads(), meta.refused()), (59, 65, 95));
    assert_eq!((both.hits(), both.loads(), both.refused()), (618, 730, 690));
    assert_eq!((data.hit_ratio(), meta.hit_ratio()), (Some(350.0 / 559.0), Some(50.0 / 59.0)));
    // Whatever the counters are.
    let [data, meta, sums] = [
        serde_json::to_value(data).unwrap(),
        serde_json::to_value(meta).unwrap(),
        serde_json::to_value(&both).unwrap(),
    ];
    let counters = data.as_object().unwrap().keys();
    for counter in counters {
        let count = |of: &serde_json::Value| {
            let value = &of[counter];
            value.as_u64().or_else(|| value["count"].as_u64()).unwrap_or_else(|| panic!("{counter}: {of}"))
        };
        assert!(count(&data) > count(&meta) && count(&meta) > 0, "{counter}");
        assert_eq!(count(&sums), count(&data) + count(&meta), "{counter}");
    }
    assert_eq!(both.store_wait.sum_us, 174 * 100_000_000);
}

#[test]
fn prometheus_has_a_label_for_what_is_counted_for_each_spool_and_for_nothing_else() {
    let (data, meta, store) = (busy_spool(100), busy_spool(0), busy().1);
    let both = StatsSnapshot::of([("data", &data), ("meta", &meta)].into_iter(), &store, gauges());
    let text = both.prometheus_text();
    let samples = parse(&text);
    for (name, value) in [
        ("load_hits_total{spool=\"data\",tier=\"cache\"}", 103.0),
        ("load_hits_total{spool=\"meta\",tier=\"cache\"}", 3.0),
        ("stores_total{spool=\"data\",sync=\"deferred\"}", 107.0),
        ("stores_total{spool=\"meta\",sync=\"deferred\"}", 7.0),
        ("store_refusals_total{spool=\"data\",reason=\"closed\"}", 121.0),
        ("store_refusals_total{spool=\"meta\",reason=\"closed\"}", 21.0),
        ("stored_bytes_total{spool=\"data\"}", 118_700.0),
        ("stored_bytes_total{spool=\"meta\"}", 8_700.0),
        ("store_wait_seconds_count{spool=\"data\"}", 137.0),
        ("store_wait_seconds_count{spool=\"meta\"}", 37.0),
        ("store_wait_seconds_bucket{le=\"+Inf\",spool=\"data\"}", 137.0),
        ("store_wait_seconds_bucket{le=\"+Inf\",spool=\"meta\"}", 37.0),
        ("removes_total{spool=\"data\"}", 109.0),
        ("removes_total{spool=\"meta\"}", 9.0),
        ("aborts_total", 22.0),
        ("sync_duration_seconds_count", 13.0),
    ] {
        assert_eq!(samples.get(&format!("tidespool_{name}")), Some(&value), "{name} in\n{text}");
    }
    let of = |spool: &str| samples.keys().filter(|name| name.contains(&format!("spool=\"{spool}\""))).count();
    let store_wide = StatsSnapshot::of([].into_iter(), &store, gauges()).prometheus_text();
    assert_eq!((of("data"), of("meta")), (of("meta"), (samples.len() - parse(&store_wide).len()) / 2));
    assert_eq!(text.matches("# HELP tidespool_stores ").count(), 1, "one metric for all spools");
}

#[test]
fn prometheus_buckets_are_cumulative() {
    let samples = parse(&snapshot(&busy(), gauges()).prometheus_text());
    let bucket = |metric: &str, le: &str| {
        let spool = if metric == "store_wait" { ",spool=\"meta\"" } else { "" };
        samples[&format!("tidespool_{metric}_seconds_bucket{{le=\"{le}\"{spool}}}")]
    };
    // 250 µs is between 128 µs and 256 µs.
    assert_eq!(bucket("sync_duration", "0.000128"), 0.0);
    assert_eq!(bucket("sync_duration", "0.000256"), 13.0);
    assert_eq!(bucket("sync_duration", "+Inf"), 13.0);
    // 100 s is above the last bound.
    assert_eq!(bucket("store_wait", "67.108864"), 0.0);
    assert_eq!(bucket("store_wait", "+Inf"), 37.0);
}

/// The gauge was 0 after a shutdown, while every store failed.
#[test]
fn prometheus_reports_a_shut_down_spool() {
    for unhealthy in [None, Some(HealthSignal::LowSpace)] {
        let closed = Gauges { shut_down: true, unhealthy, ..Gauges::default() };
        let samples = parse(&snapshot(&(SpoolStats::default(), Stats::default()), closed).prometheus_text());
        assert_eq!(samples["tidespool_unhealthy"], 1.0);
        assert_eq!(samples["tidespool_unhealthy_signal{signal=\"shut_down\"}"], 1.0);
        assert!(!samples.contains_key("tidespool_unhealthy_signal{signal=\"low_space\"}"), "one reason");
    }
}

#[test]
fn prometheus_omits_unknown_values() {
    let text = StatsSnapshot::default().prometheus_text();
    parse(&text);
    assert!(!text.contains("index_rebuild_") && !text.contains("memory_stall"), "{text}");
    assert!(!text.contains("pressure_source") && !text.contains("unhealthy_signal"), "{text}");
}
