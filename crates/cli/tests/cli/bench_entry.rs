//! `tidespool bench` as a subcommand. The crate `tidespool-bench` tests every workload.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::on_a_spool::{code, out, said};
use crate::run::{assert_refused, names, path, tidespool};

/// Runs a short benchmark in `dir`, which is empty afterwards, and returns the report.
fn bench(dir: &Path, args: &[&str]) -> Value {
    let output = tidespool(&[&["bench", "--json", "--dir", path(dir)], args].concat());
    assert_eq!((code(&output), said(&output).as_str()), (Some(0), ""), "{args:?}");
    assert_eq!(names(dir), Vec::<String>::new());
    serde_json::from_str(&out(&output)).unwrap()
}

#[test]
fn a_run_prints_its_report() {
    let dir = TempDir::new().unwrap();
    let small = ["--size", "4KiB", "--concurrency", "4", "--duration", "0.2", "--memory-budget", "128MiB"];
    for workload in ["store", "lifecycle", "load"] {
        let json = bench(dir.path(), &[&["--workload", workload], small.as_slice()].concat());
        assert_eq!((json["engine"].as_str(), json["workload"].as_str()), (Some("tidespool"), Some(workload)));
        assert!(json["ops"].as_u64() > Some(0), "{json}");
    }
}

/// These workloads start the program again: the child process needs the name of the subcommand.
#[test]
fn child_processes_are_started_as_the_subcommand() {
    let dir = TempDir::new().unwrap();
    let killed = bench(dir.path(), &["--workload", "open-killed", "--messages", "300"]);
    assert_eq!(killed["extra"]["messages"], 300.0);
    let memory = ["--workload", "memory", "--quick", "--memory-budget", "256MiB", "--mix", "small"];
    let memory = bench(dir.path(), &[memory.as_slice(), &["--messages", "2000"]].concat());
    assert_eq!(memory["mixes"][0]["mix"], "small");
    let beside = ["--workload", "store", "--duration", "0.2", "--memory-budget", "128MiB", "--neighbour"];
    assert!(bench(dir.path(), &beside)["extra"]["neighbour_mb_per_s"].is_f64());
}

#[test]
fn bad_arguments_are_one_line_and_code_1() {
    assert_refused(
        &["bench", "--engine", "rocksdb"],
        &["rocksdb", "tidespool, local-disk, raw-journal, bare"],
    );
    assert_refused(&["bench", "--plot", "x.svg"], &["--plot", "--workload overload"]);
}
