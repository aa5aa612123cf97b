//! Runs the real `tidespool-bench` binary with small plans: every workload on every engine that
//! supports it, and errors.
//!
//! Each run is a process: peak memory and disk writes are those of the process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests are outside of the test functions"
)]

mod run; // runs the binary; asserts that it rejects arguments

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::run::{assert_refused, names, path, tidespool_bench};

const KEYS: [&str; 19] = [
    "engine",
    "workload",
    "size",
    "concurrency",
    "force_sync",
    "neighbour",
    "seconds",
    "ops",
    "ops_per_s",
    "mb_per_s",
    "p50_us",
    "p99_us",
    "p999_us",
    "max_us",
    "disk_write_bytes",
    "peak_rss_bytes",
    "percentiles",
    "series",
    "extra",
];

const ENGINES: [&str; 2] = ["tidespool", "local-disk"];

#[test]
fn bad_arguments_say_what_is_expected() {
    let cases: [(&[&str], &[&str]); 33] = [
        (&["--engine", "rocksdb"], &["rocksdb", "tidespool, local-disk, raw-journal, bare"]),
        (&["--workload", "sleep"], &["sleep", "store, lifecycle, load"]),
        (&["--size", "big"], &["--size", "16384, 16KiB"]),
        (&["--size", "0"], &["--size", "1 byte to 1 GiB"]),
        (&["--concurrency", "0"], &["--concurrency", "1..=65536"]),
        (&["--duration", "5s"], &["--duration", "expected seconds"]),
        (&["--duration", "0"], &["--duration", "more than 0"]),
        (&["--memory-budget", "lots"], &["--memory-budget", "1.5MiB"]),
        (&["--lifetime", "2s"], &["--lifetime", "10ms, 1s, heavy-tail"]),
        (&["--drain", "newest"], &["--drain", "order, random"]),
        (&["--drain-rate", "0"], &["--drain-rate", "is not in"]),
        (&["--messages", "0"], &["--messages", "1..=1000000000"]),
        (&["--rounds", "0"], &["--rounds", "1..=1000"]),
        (&["--backlog-bytes", "much"], &["--backlog-bytes", "1.5MiB"]),
        (&["--engine", "raw-journal", "--workload", "load"], &["raw-journal can only store"]),
        (&["--engine", "bare", "--workload", "mail"], &["bare can only store"]),
        (&["--neighbour", "--workload", "memory"], &["memory measures no disk", "leave --neighbour out"]),
        (&["--engine", "local-disk", "--workload", "load-shared"], &["--engine tidespool"]),
        (&["--engine", "local-disk", "--memory-budget", "1GiB"], &["--engine tidespool"]),
        (&["--workload", "scale", "--size", "mix"], &["scale needs messages of one size"]),
        (&["--journal-capacity", "1MiB"], &["opening tidespool", "journal_capacity"]),
        (&["--workload", "backlog", "--backlog-bytes", "1EiB"], &["free", "give another --dir"]),
        (&["--workload", "memory", "--mix", "nonsense"], &["--mix", "nonsense", "sizes, small, clean"]),
        (&["--workload", "memory", "--memory-budget", "1MiB"], &["memory_budget = 1MiB", "from 8MiB"]),
        (&["--workload", "memory", "--engine", "local-disk"], &["memory budget", "--engine tidespool"]),
        (&["--quick"], &["--quick", "--workload memory"]),
        (&["--workload", "overload", "--mix", "small"], &["--mix", "--workload memory"]),
        (&["--plot", "x.svg"], &["--plot", "--workload overload"]),
        (&["--workload", "overload", "--plot", "/nonexistent/x.svg"], &["--plot /nonexistent/x.svg"]),
        (&["--workload", "overload", "--plot", "/"], &["--plot /:", "give a file"]),
        (&["--workload", "overload", "--seconds", "0"], &["more than 0"]),
        (&["--workload", "overload", "--force-sync"], &["not synced", "leave --force-sync out"]),
        (
            &["--workload", "enumerate", "--messages", "1000000000", "--size", "1GiB"],
            &["fewer bytes or messages"],
        ),
    ];
    let dir = TempDir::new().unwrap();
    for (args, parts) in cases {
        assert_refused(&[args, &["--dir", path(dir.path())]].concat(), parts);
    }
    assert_eq!(names(dir.path()), Vec::<String>::new());
    let missing = dir.path().join("missing");
    assert_refused(&["--engine", "local-disk", "--dir", path(&missing)], &[path(&missing), "--dir"]);
    assert!(!missing.exists());
}

#[test]
fn help_explains_every_workload() {
    let output = tidespool_bench(&["--help"]);
    let said = String::from_utf8(output.stdout).unwrap();
    for workload in [
        "store",
        "lifecycle",
        "load",
        "load-shared",
        "load-cold",
        "resave",
        "backlog",
        "drain-young",
        "enumerate",
        "open-clean",
        "open-killed",
        "mixed",
        "scale",
        "memory",
        "overload",
    ] {
        assert!(said.contains(&format!("- {workload}:")), "{workload}: {said}");
    }
    assert!(!said.contains("--fill") && !said.contains("--write-beside"), "{said}");
}

/// Runs a short benchmark in `dir`, checks that the figures are consistent, and returns the report.
fn bench(dir: &Path, engine: &str, workload: &str, more: &[&str]) -> Value {
    let args = ["--engine", engine, "--workload", workload, "--json", "--dir", path(dir)];
    let duration = if more.contains(&"--duration") { &[] } else { ["--duration", "0.2"].as_slice() };
    let small = [["--concurrency", "4"].as_slice(), duration].concat();
    let output = tidespool_bench(&[args.as_slice(), &small, more].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{engine} {workload} {more:?}: {said}");
    assert_eq!(said, "");
    // The benchmark has removed its directory.
    assert_eq!(names(dir), Vec::<String>::new());
    let line = String::from_utf8(output.stdout).unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
    let json: Value = serde_json::from_str(&line).unwrap();
    let places = KEYS.map(|key| line.find(&format!("\"{key}\":")).expect(key));
    assert!(places.is_sorted(), "{line}");
    // Only overload reports intervals below a second.
    let moments = usize::from(workload == "overload");
    assert_eq!(json.as_object().unwrap().len(), KEYS.len() + moments, "{line}");
    assert_eq!(json["moments"].is_array(), moments == 1, "{line}");
    assert_eq!((json["engine"].as_str(), json["workload"].as_str()), (Some(engine), Some(workload)));
    assert_eq!(json["concurrency"], 4);
    assert_eq!(json["force_sync"], more.contains(&"--force-sync"));
    assert_eq!(json["neighbour"], more.contains(&"--neighbour"));
    assert_eq!(json["extra"]["neighbour_mb_per_s"].is_f64(), more.contains(&"--neighbour"), "{line}");
    assert_figures(&json, &line);
    json
}

fn assert_figures(json: &Value, line: &str) {
    let number = |key: &str| json[key].as_f64().expect(key);
    assert!(number("ops") > 0.0 && number("seconds") >= 0.0, "{line}");
    // The report has three digits after the decimal point.
    if number("seconds") > 0.1 {
        let ops_per_s = number("ops") / number("seconds");
        assert!((number("ops_per_s") / ops_per_s - 1.0).abs() < 0.02, "{line}");
    }
    if let Some(size) = json["size"].as_f64()
        && number("mb_per_s") > 0.1
    {
        assert!((number("mb_per_s") / (number("ops_per_s") * size / 1e6) - 1.0).abs() < 0.02, "{line}");
    }
    let latencies = ["p50_us", "p99_us", "p999_us", "max_us"].map(number);
    assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{line}");
    let curve: Vec<(f64, f64)> = serde_json::from_value(json["percentiles"].clone()).unwrap();
    assert!(curve.len() == 40 && curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{line}");
    assert!(curve[39].1 <= number("max_us"), "{line}");
    if let Value::Array(series) = &json["series"] {
        let ops: u64 = series.iter().map(|second| second[4].as_u64().unwrap()).sum();
        assert_eq!(json["ops"].as_u64(), Some(ops), "{line}");
    }
    assert!(json["disk_write_bytes"].is_u64() && number("peak_rss_bytes") > 0.0, "{line}");
    assert!(json["extra"]["clock_overhead_us"].is_f64(), "{line}");
}

fn extra(json: &Value, key: &str) -> f64 {
    json["extra"][key].as_f64().unwrap_or_else(|| unreachable!("no {key} in {json}"))
}

fn assert_extra(json: &Value, key: &str, expected: u32) {
    assert!((extra(json, key) - f64::from(expected)).abs() < 0.5, "{key}: {json}");
}

/// Runs the workload on both engines.
fn on_each(workload: &str, more: &[&str], check: impl Fn(&Value)) {
    let dir = TempDir::new().unwrap();
    for engine in ENGINES {
        check(&bench(dir.path(), engine, workload, more));
    }
}

#[test]
fn store() {
    on_each("store", &["--size", "4KiB"], |json| assert_eq!(json["size"], 4_096));
    on_each("store", &["--size", "mix"], |json| assert_eq!(json["size"], "mix"));
    on_each("store", &["--force-sync"], |json| assert!(json["extra"]["bare_fdatasync_p50_us"].is_null()));
}

#[test]
fn engines_that_only_append_store() {
    let dir = TempDir::new().unwrap();
    for engine in ["raw-journal", "bare"] {
        bench(dir.path(), engine, "store", &[]);
        bench(dir.path(), engine, "store", &["--force-sync", "--size", "mix"]);
    }
}

#[test]
fn a_neighbour_writes_while_a_workload_runs() {
    let dir = TempDir::new().unwrap();
    // Some workloads store a set first, reopen the engine, or start a process of their own.
    for (engine, workload, more) in [
        ("raw-journal", "store", ["--force-sync", "--size", "4KiB"]),
        ("tidespool", "load-cold", ["--drop-page-cache", "--messages", "300"]),
        ("local-disk", "open-killed", ["--force-sync", "--messages", "100"]),
    ] {
        let json = bench(dir.path(), engine, workload, &[more.as_slice(), &["--neighbour"]].concat());
        assert!(extra(&json, "neighbour_mb_per_s") > 0.0, "{json}");
    }
    let args = ["--engine", "local-disk", "--neighbour", "--duration", "0.1", "--dir", path(dir.path())];
    let table = String::from_utf8(tidespool_bench(&args).stdout).unwrap();
    for row in ["\nneighbour           writes to the same disk\n", "\nneighbour_mb_per_s  "] {
        assert!(table.contains(row), "{table}");
    }
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

/// The run fails after the neighbour was started.
#[test]
fn a_neighbour_ends_with_a_run_that_fails() {
    let dir = TempDir::new().unwrap();
    let args = ["--neighbour", "--workload", "scale", "--size", "mix", "--dir", path(dir.path())];
    assert_refused(&args, &["scale needs messages of one size"]);
    assert_eq!(names(dir.path()), Vec::<String>::new());
    assert_eq!(neighbours_of(dir.path()), Vec::<i32>::new());
}

#[test]
fn one_caller_with_a_sync_is_compared_with_a_bare_sync() {
    let dir = TempDir::new().unwrap();
    let args = ["--force-sync", "--concurrency", "1", "--duration", "0.2", "--json", "--dir"];
    let output = tidespool_bench(&[&args, [path(dir.path())].as_slice()].concat());
    let json = serde_json::from_slice::<Value>(&output.stdout).unwrap();
    assert!(extra(&json, "bare_fdatasync_p50_us") > 0.0);
}

#[test]
fn loads() {
    on_each("load", &[], |_| ());
    bench(TempDir::new().unwrap().path(), "tidespool", "load-shared", &[]);
    let set = ["--messages", "300", "--duration", "60"];
    for drop in [[].as_slice(), &["--drop-page-cache"]] {
        on_each("load-cold", &[set.as_slice(), drop].concat(), |json| {
            assert_eq!(json["ops"], 300);
            assert!(extra(json, "read_per_byte") >= 0.0, "{json}");
        });
    }
}

#[test]
fn lifecycles() {
    on_each("lifecycle", &["--force-sync"], |json| assert!(extra(json, "bytes_per_message") >= 0.0));
    for lifetime in ["10ms", "heavy-tail"] {
        on_each("lifecycle", &["--lifetime", lifetime, "--live-bytes", "4MiB"], |json| {
            assert!(extra(json, "waited_for_room_share") <= 1.1);
            assert!(
                (16_384.0..=f64::from(4 << 20) + 4.0 * 16_384.0).contains(&extra(json, "live_bytes_peak"))
            );
        });
    }
    on_each("lifecycle", &["--lifetime", "1s", "--duration", "1.5"], |json| {
        // Messages are removed a second after they are stored. That wait is not part of the
        // latency.
        assert!(json["ops"].as_u64() > Some(0));
    });
}

#[test]
fn resave_and_mixed() {
    on_each("resave", &[], |json| assert_eq!(json["size"], "metadata"));
    on_each("mixed", &[], |json| {
        assert_eq!(json["size"], "mix");
        let kinds = ["store_unsynced", "store_synced", "load", "resave", "remove"];
        let ops: f64 = kinds.iter().map(|kind| extra(json, &format!("{kind}_ops"))).sum();
        assert!((ops - json["ops"].as_f64().unwrap()).abs() < 0.5, "{json}");
    });
}

#[test]
fn backlog() {
    for drain in ["order", "random"] {
        let more =
            ["--backlog-bytes", "4MiB", "--journal-capacity", "128MiB", "--drain", drain, "--force-sync"];
        on_each("backlog", &more, |json| {
            assert_eq!(json["ops"], 256);
            assert_extra(json, "live_messages", 256);
            assert_extra(json, "live_bytes", 4 << 20);
            assert!(extra(json, "drain_per_s") > 0.0 && extra(json, "written_per_byte") >= 0.0, "{json}");
            assert!(extra(json, "disk_peak_bytes") >= extra(json, "disk_bytes_after"), "{json}");
            assert!(extra(json, "disk_bytes_settled") >= f64::from(4 << 20), "{json}");
            // Usage is far below the capacity of the journal and the crash log of 60 MiB. On btrfs
            // the peak was once far above that, before the first store.
            assert!(extra(json, "disk_bytes_settled") < f64::from(188 << 20), "{json}");
            let storing = extra(json, "disk_over_promise_while_storing_bytes");
            assert!(storing <= extra(json, "disk_over_promise_bytes"), "{json}");
        });
    }
}

#[test]
fn a_backlog_can_be_drained_at_a_rate() {
    let more = ["--backlog-bytes", "1600KiB", "--journal-capacity", "128MiB", "--drain-rate", "200"];
    // The hundredth message is not removed before half a second has passed.
    on_each("backlog", &more, |json| assert!(extra(json, "drain_per_s") < 205.0, "{json}"));
}

#[test]
fn drains_and_enumerations() {
    on_each("drain-young", &["--messages", "500"], |json| assert_eq!(json["ops"], 500));
    on_each("enumerate", &["--messages", "500", "--drop-page-cache"], |json| {
        let passes = extra(json, "passes");
        assert!(passes >= 1.0 && (json["ops"].as_f64().unwrap() - 500.0 * passes).abs() < 0.5, "{json}");
        assert!(json["series"].is_null());
    });
}

#[test]
fn openings() {
    on_each("open-clean", &["--messages", "500", "--rounds", "2"], |json| {
        assert_eq!(json["ops"], 2);
        assert_extra(json, "messages", 500);
        assert!(extra(json, "open_ms") > 0.0 && extra(json, "first_open_ms") > 0.0, "{json}");
    });
    for sync in [["--force-sync"].as_slice(), &[]] {
        let more = [["--messages", "300", "--rounds", "2"].as_slice(), sync].concat();
        on_each("open-killed", &more, |json| {
            assert_eq!(json["ops"], 2);
            assert_extra(json, "messages", 300);
            assert_extra(json, "lost_messages", 0);
        });
    }
}

#[test]
fn scale() {
    on_each("scale", &["--messages", "400"], |json| {
        assert_eq!((json["ops"].as_u64(), json["size"].as_u64()), (Some(400), Some(64)));
        for what in ["store_p50_us", "load_p99_us", "remove_mean_us"] {
            assert!(extra(json, &format!("{what}_at_400")) > 0.0, "{json}");
        }
        assert!(extra(json, "store_p50_growth") > 0.0 && extra(json, "resident_bytes_at_400") > 0.0);
    });
}

#[test]
fn memory() {
    let dir = TempDir::new().unwrap();
    // A budget that is ample for this few messages: this tests the report, not the spool.
    let args = ["--workload", "memory", "--quick", "--memory-budget", "256MiB", "--messages", "2000"];
    let mixes = ["--mix", "small", "--mix", "backlog", "--dir", path(dir.path())];
    let output = tidespool_bench(&[args.as_slice(), &mixes, &["--json"]].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((json["workload"].as_str(), json["budget"].as_u64()), (Some("memory"), Some(256 << 20)));
    assert_eq!((json["max_ratio"].as_f64(), json["pass"].as_bool()), (Some(1.15), Some(true)));
    let found = json["mixes"].as_array().unwrap();
    assert_eq!(
        found.iter().map(|mix| mix["mix"].as_str().unwrap()).collect::<Vec<_>>(),
        ["small", "backlog"]
    );
    for mix in found {
        let bytes = |key: &str| mix[key].as_u64().unwrap();
        assert!(bytes("base") > 0 && bytes("peak") > bytes("base"), "{mix}");
        assert_eq!(bytes("above_base"), bytes("peak") - bytes("base"), "{mix}");
    }
    let table = tidespool_bench(&[args.as_slice(), &mixes].concat());
    let text = String::from_utf8(table.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[1].starts_with("small ") && lines[2].starts_with("backlog "), "{text}");
    assert!(lines[3].ends_with("allowed 1.15: PASS"), "{text}");
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

/// So many checkpointed messages exceed a budget of 8 MiB: the command reports it and fails.
#[test]
fn exceeding_the_memory_budget_fails_the_command() {
    let dir = TempDir::new().unwrap();
    let args = ["--workload", "memory", "--quick", "--memory-budget", "8MiB", "--mix", "backlog"];
    let output = tidespool_bench(&[args.as_slice(), &["--json", "--dir", path(dir.path())]].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("tidespool-bench: resident memory went over") && said.ends_with(": backlog\n"),
        "{said}"
    );
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["pass"], false);
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn overload() {
    let (dir, out) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let picture = out.path().join("out.svg");
    let more = ["--size", "64KiB", "--plot", path(&picture)];
    let json = bench(dir.path(), "tidespool", "overload", &more);
    assert!(extra(&json, "drain_per_s") > 0.0 && extra(&json, "longest_stall_ms") >= 0.0, "{json}");
    let counted = ["turned_away", "refused_unhealthy", "refused_backpressure"].map(|key| extra(&json, key));
    let ops = json["ops"].as_f64().unwrap();
    assert!(extra(&json, "offered") >= ops + counted.iter().sum::<f64>() - 0.5, "{json}");
    let drawn = std::fs::read_to_string(picture).unwrap();
    assert!(drawn.starts_with("<svg ") && drawn.ends_with("</svg>\n"), "{drawn}");
    for line in ["p50", "p99", "max", "dirty"] {
        assert!(drawn.contains(&format!("\n— {line}\n")), "{line}: {drawn}");
    }
    bench(dir.path(), "local-disk", "overload", &[]);
}

#[test]
fn without_json_the_report_is_a_table() {
    let dir = TempDir::new().unwrap();
    let args = ["--engine", "raw-journal", "--concurrency", "2", "--duration", "0.1", "--dir"];
    let output = tidespool_bench(&[&args, [path(dir.path())].as_slice()].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for part in ["engine             raw-journal\n", "workload           store\n", "latency p99.9"] {
        assert!(said.contains(part), "{said}");
    }
}

/// Returns the ids of the processes that write beside an engine in `dir`.
fn neighbours_of(dir: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let Ok(id) = entry.file_name().to_str().unwrap_or_default().parse() else { continue };
        // The process may have ended.
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        if command.contains("\0--write-beside\0") && command.contains(path(dir)) {
            found.push(id);
        }
    }
    found
}

fn signal(id: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(id).unwrap(), signal).unwrap();
}

/// Starts a run of an hour in `dir` and returns when its callers store.
fn long_run(dir: &Path, more: &[&str]) -> std::process::Child {
    let args = ["--engine", "local-disk", "--duration", "3600", "--dir", path(dir)];
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidespool-bench"))
        .args(args)
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Messages are being written, so the signal handler is installed.
    let started = |dir: &Path| {
        let Some(bench) = names(dir).first().map(|name| dir.join(name)) else { return false };
        std::fs::read_dir(bench.join("engine/data")).is_ok_and(|mut data| data.next().is_some())
    };
    while !started(dir) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::yield_now();
    }
    child
}

/// Interrupts the run and returns what it printed on standard error.
fn interrupt(child: std::process::Child) -> String {
    signal(i32::try_from(child.id()).unwrap(), rustix::process::Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn an_interrupt_removes_the_bench_directory() {
    let dir = TempDir::new().unwrap();
    assert!(interrupt(long_run(dir.path(), &[])).contains("interrupted"));
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn an_interrupt_ends_the_neighbour() {
    let dir = TempDir::new().unwrap();
    let child = long_run(dir.path(), &["--neighbour"]);
    assert_eq!(neighbours_of(dir.path()).len(), 1);
    assert!(interrupt(child).contains("interrupted"));
    assert_eq!(names(dir.path()), Vec::<String>::new());
    assert_eq!(neighbours_of(dir.path()), Vec::<i32>::new());
}

/// Its file has no name, so nothing else has to remove it.
#[test]
fn a_neighbour_ends_with_a_killed_run_and_leaves_no_file() {
    let dir = TempDir::new().unwrap();
    let mut child = long_run(dir.path(), &["--neighbour"]);
    assert_eq!(neighbours_of(dir.path()).len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    let bench = dir.path().join(&names(dir.path())[0]);
    assert_eq!(names(&bench), ["engine"]);
    while !neighbours_of(dir.path()).is_empty() {
        std::thread::yield_now();
    }
}

#[test]
fn a_neighbour_that_dies_fails_the_run() {
    let dir = TempDir::new().unwrap();
    let args = ["--engine", "local-disk", "--neighbour", "--duration", "3", "--dir", path(dir.path())];
    let child = Command::new(env!("CARGO_BIN_EXE_tidespool-bench"))
        .args(args)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let neighbour = loop {
        if let [neighbour] = neighbours_of(dir.path())[..] {
            break neighbour;
        }
    };
    while !is_writing(neighbour) {
        std::thread::yield_now();
    }
    signal(neighbour, rustix::process::Signal::KILL);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the neighbour ended early"), "{said}");
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

/// Returns whether the process has written a MiB.
fn is_writing(id: i32) -> bool {
    let io = std::fs::read_to_string(format!("/proc/{id}/io")).unwrap();
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    written.parse::<u64>().unwrap() > 1 << 20
}
