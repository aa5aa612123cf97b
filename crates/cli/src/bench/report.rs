//! What a run found: one line of JSON with fixed keys, or a table.

use std::io::{self, Write};

use serde::Serialize;

use super::engine::Kind;
use super::workload::Workload;
use crate::output::{bytes, two_columns};

/// The keys of the JSON line, in this order. Stable.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) engine: Kind,
    pub(super) workload: Workload,
    /// Payload bytes of a message.
    pub(super) size: usize,
    pub(super) concurrency: usize,
    pub(super) force_sync: bool,
    /// Measured, from the end of the warm-up to the end of the last call.
    pub(super) seconds: f64,
    /// Calls; for `lifecycle`, messages.
    pub(super) ops: u64,
    pub(super) ops_per_s: f64,
    /// Payload bytes a second, in units of 1 000 000.
    pub(super) mb_per_s: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
    /// From the end of the warm-up to after the shutdown.
    pub(super) disk_write_bytes: u64,
    /// Of the whole run.
    pub(super) peak_rss_bytes: u64,
}

impl Report {
    /// The table for people. `clock_us`: what the clock adds to each latency.
    pub(super) fn table(&self, out: &mut dyn Write, clock_us: f64) -> io::Result<()> {
        let per_op = self.disk_write_bytes.checked_div(self.ops);
        let per_op = per_op.map_or_else(String::new, |per_op| format!(", {per_op} an operation"));
        let sync = if self.force_sync { "forced" } else { "not forced" };
        two_columns(
            out,
            &[
                ("engine", name(&self.engine)),
                ("workload", name(&self.workload)),
                ("message size", bytes(self.size as u64)),
                ("callers", self.concurrency.to_string()),
                ("sync", sync.to_owned()),
                ("measured", format!("{:.2} s", self.seconds)),
                ("operations", format!("{} ({:.0}/s, {:.1} MB/s)", self.ops, self.ops_per_s, self.mb_per_s)),
                ("latency p50", format!("{:.1} µs", self.p50_us)),
                ("latency p99", format!("{:.1} µs", self.p99_us)),
                ("latency p99.9", format!("{:.1} µs", self.p999_us)),
                ("latency max", format!("{:.1} µs", self.max_us)),
                ("clock overhead", format!("{clock_us:.3} µs in each latency")),
                ("disk writes", format!("{}{per_op}", bytes(self.disk_write_bytes))),
                ("peak memory", bytes(self.peak_rss_bytes)),
            ],
        )
    }
}

fn name(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// To three digits after the point: nanoseconds, where the unit is microseconds.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            engine: Kind::LocalDisk,
            workload: Workload::Lifecycle,
            size: 16_384,
            concurrency: 64,
            force_sync: true,
            seconds: 4.5,
            ops: 1_000,
            ops_per_s: 222.222,
            mb_per_s: 3.641,
            p50_us: 1.5,
            p99_us: 2.5,
            p999_us: 3.5,
            max_us: 4.5,
            disk_write_bytes: 16_000_000,
            peak_rss_bytes: 1 << 20,
        }
    }

    #[test]
    fn the_json_keys_and_their_order_are_stable() {
        assert_eq!(
            serde_json::to_string(&report()).unwrap(),
            "{\"engine\":\"local-disk\",\"workload\":\"lifecycle\",\"size\":16384,\"concurrency\":64,\
             \"force_sync\":true,\"seconds\":4.5,\"ops\":1000,\"ops_per_s\":222.222,\"mb_per_s\":3.641,\
             \"p50_us\":1.5,\"p99_us\":2.5,\"p999_us\":3.5,\"max_us\":4.5,\
             \"disk_write_bytes\":16000000,\"peak_rss_bytes\":1048576}"
        );
    }

    #[test]
    fn the_table_can_be_read() {
        let mut out = Vec::new();
        report().table(&mut out, 0.02).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("engine          local-disk\n"), "{text}");
        assert!(text.contains("operations      1000 (222/s, 3.6 MB/s)\n"), "{text}");
        assert!(text.contains("(16000000 bytes), 16000 an operation\n"), "{text}");
    }

    #[test]
    fn a_run_without_an_operation_can_be_shown() {
        let mut out = Vec::new();
        Report { ops: 0, ..report() }.table(&mut out, 0.02).unwrap();
        assert!(!String::from_utf8(out).unwrap().contains("an operation"));
    }
}
