//! Runs the real `tidespool` binary: what it says and how it ends, above all where something is wrong.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests are outside of the test functions"
)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const AN_ID: &str = "1ec9414c232a6b00b3c89f6bdeced846";

const BENCH_KEYS: [&str; 15] = [
    "engine",
    "workload",
    "size",
    "concurrency",
    "force_sync",
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
];

fn tidespool(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidespool")).args(args).output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Ended with code 1, nothing on standard output, and one line on standard error, which has all of `parts`.
fn assert_refused(args: &[&str], parts: &[&str]) {
    let output = tidespool(args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{args:?}");
    assert!(said.starts_with("tidespool: ") && said.ends_with('\n'), "{args:?}: {said:?}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said:?}");
    for part in parts {
        assert!(said.contains(part), "{args:?}: no {part:?} in {said:?}");
    }
}

#[test]
fn a_directory_that_is_no_spool_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("missing");
    let file = dir.path().join("file");
    let other = dir.path().join("other");
    std::fs::write(&file, "x").unwrap();
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("mail.txt"), "x").unwrap();

    for command in ["ls", "get", "stat", "verify"] {
        for (place, what) in
            [(&missing, "does not exist"), (&file, "is not a directory"), (&other, "is not a spool")]
        {
            let mut args = vec![command, path(place)];
            if command == "get" {
                args.push(AN_ID);
            }
            assert_refused(&args, &[path(place), what, "give the directory of a spool"]);
        }
    }
    assert_eq!(names(&other), ["mail.txt"]);
    assert!(!missing.exists());
}

#[test]
fn bad_arguments_are_one_line_and_code_1() {
    assert_refused(&["sweep"], &["sweep", "--help"]);
    for command in ["ls", "get", "stat", "verify"] {
        assert_refused(&[command], &["<DIR>", "--help"]);
    }
    assert_refused(&["ls", "/tmp", "--limit", "many"], &["many", "--limit"]);
    assert_refused(&["get", "/tmp"], &["<ID>"]);
    assert_refused(&["get", "/tmp", "zz"], &["\"zz\" is not a spool id", "32 hexadecimal digits"]);
    assert_refused(&["verify", "/tmp", "--fast"], &["--fast"]);
}

#[test]
fn bad_arguments_of_bench_say_what_is_expected() {
    let cases: [(&[&str], &[&str]); 10] = [
        (&["--engine", "rocksdb"], &["rocksdb", "tidespool, local-disk, raw-journal"]),
        (&["--workload", "sleep"], &["sleep", "store, lifecycle, load"]),
        (&["--size", "big"], &["--size", "16384, 16KiB"]),
        (&["--size", "0"], &["--size", "1 byte to 1 GiB"]),
        (&["--concurrency", "0"], &["--concurrency", "1..=65536"]),
        (&["--duration", "5s"], &["--duration", "expected seconds"]),
        (&["--duration", "0"], &["--duration", "more than 0"]),
        (&["--memory-budget", "lots"], &["--memory-budget", "1.5MiB"]),
        (&["--engine", "raw-journal", "--workload", "load"], &["raw-journal can only store"]),
        (&["--engine", "local-disk", "--memory-budget", "1GiB"], &["--engine tidespool"]),
    ];
    for (args, parts) in cases {
        assert_refused(&[&["bench"], args].concat(), parts);
    }
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("missing");
    assert_refused(&["bench", "--engine", "local-disk", "--dir", path(&missing)], &[path(&missing), "--dir"]);
    assert!(!missing.exists());
}

#[test]
fn help_is_no_error_and_names_every_subcommand() {
    let output = tidespool(&["--help"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for command in ["ls", "get", "stat", "verify", "bench"] {
        assert!(said.contains(command), "{said}");
        assert_eq!(tidespool(&[command, "--help"]).status.code(), Some(0));
    }
    assert_eq!(tidespool(&["--version"]).status.code(), Some(0));
    // Asked for nothing: the help, as an error.
    let output = tidespool(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Usage:"));
}

fn bench(dir: &Path, engine: &str, more: &[&str]) -> (String, Value) {
    let args = ["bench", "--engine", engine, "--size", "4KiB", "--concurrency", "4", "--duration", "0.2"];
    let output = tidespool(&[&args, ["--json", "--dir", path(dir)].as_slice(), more].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said, "");
    let line = String::from_utf8(output.stdout).unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
    let json = serde_json::from_str(&line).unwrap();
    (line, json)
}

fn assert_report(dir: &Path, engine: &str, workload: &str, force_sync: bool) {
    let mut more = vec!["--workload", workload];
    if force_sync {
        more.push("--force-sync");
    }
    let (line, json) = bench(dir, engine, &more);
    let mut places = BENCH_KEYS.map(|key| line.find(&format!("\"{key}\":")).expect(key));
    assert!(places.is_sorted(), "{line}");
    places.sort_unstable();
    assert_eq!(json.as_object().unwrap().len(), BENCH_KEYS.len(), "{line}");

    assert_eq!(json["engine"], engine);
    assert_eq!(json["workload"], workload);
    assert_eq!(json["size"], 4_096);
    assert_eq!(json["concurrency"], 4);
    assert_eq!(json["force_sync"], force_sync);
    let number = |key: &str| json[key].as_f64().expect(key);
    assert!(number("ops") > 0.0, "{line}");
    // The line has three digits after the point.
    let ops_per_s = number("ops") / number("seconds");
    assert!((number("ops_per_s") / ops_per_s - 1.0).abs() < 0.02, "{line}");
    assert!((number("mb_per_s") / (number("ops_per_s") * 4_096.0 / 1e6) - 1.0).abs() < 0.02, "{line}");
    let latencies = ["p50_us", "p99_us", "p999_us", "max_us"].map(number);
    assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{line}");
    assert!(json["disk_write_bytes"].is_u64() && number("peak_rss_bytes") > 0.0, "{line}");
    // The bench's own directory has gone.
    assert_eq!(names(dir), Vec::<String>::new());
}

#[test]
fn local_disk_reports_every_workload() {
    let dir = TempDir::new().unwrap();
    for workload in ["store", "lifecycle", "load"] {
        assert_report(dir.path(), "local-disk", workload, false);
    }
    assert_report(dir.path(), "local-disk", "store", true);
}

#[test]
fn raw_journal_reports_store() {
    let dir = TempDir::new().unwrap();
    assert_report(dir.path(), "raw-journal", "store", false);
    assert_report(dir.path(), "raw-journal", "store", true);
}

#[test]
fn without_json_the_report_is_a_table() {
    let dir = TempDir::new().unwrap();
    let args = ["bench", "--engine", "raw-journal", "--concurrency", "2", "--duration", "0.1", "--dir"];
    let output = tidespool(&[&args, [path(dir.path())].as_slice()].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for part in ["engine          raw-journal\n", "workload        store\n", "latency p99.9"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn an_interrupt_removes_the_bench_directory() {
    let dir = TempDir::new().unwrap();
    let args = ["bench", "--engine", "local-disk", "--duration", "3600", "--dir", path(dir.path())];
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidespool"))
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Messages are being written: the handler has long been there.
    let started = |dir: &Path| {
        let Some(bench) = names(dir).first().map(|name| dir.join(name)) else { return false };
        std::fs::read_dir(bench.join("data")).is_ok_and(|mut data| data.next().is_some())
    };
    while !started(dir.path()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::yield_now();
    }
    let id = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8(output.stderr).unwrap().contains("interrupted"));
    assert_eq!(names(dir.path()), Vec::<String>::new());
}
