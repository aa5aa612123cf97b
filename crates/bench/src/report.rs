//! The result of a run: one line of JSON with stable keys, or a table.

use std::collections::BTreeMap;
use std::io::{self, Write};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::output::{bytes, two_columns};
use crate::plan::{Size, Workload};

/// The key in [`Report::extra`] of the latency that the clock adds to each operation, in
/// microseconds.
pub(crate) const CLOCK_OVERHEAD: &str = "clock_overhead_us";

/// The result of a run. The fields are the keys of the JSON line, in this order; both are stable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The name of the engine, from its opener.
    pub engine: String,
    /// The workload of the plan.
    pub workload: Workload,
    /// Payload bytes of a message: a number, `"mix"` or `"metadata"`.
    pub size: Size,
    /// Number of concurrent callers.
    pub concurrency: usize,
    /// Whether each store waited for stable storage.
    pub force_sync: bool,
    /// Whether another process wrote to the same disk.
    #[serde(default)]
    pub neighbour: bool,
    /// Measured time, from the end of the warm-up to the end of the last call.
    pub seconds: f64,
    /// Number of operations: calls; for `lifecycle` messages whose lifetime ended, for `enumerate`
    /// messages sent, for `open-*` opens.
    pub ops: u64,
    /// `ops / seconds`.
    pub ops_per_s: f64,
    /// Payload bytes of the operations a second, in units of 1 000 000.
    pub mb_per_s: f64,
    /// The median latency of an operation, in microseconds.
    pub p50_us: f64,
    /// The 99 % quantile.
    pub p99_us: f64,
    /// The 99.9 % quantile.
    pub p999_us: f64,
    /// The maximum.
    pub max_us: f64,
    /// Bytes written from the end of the warm-up until after the shutdown.
    pub disk_write_bytes: u64,
    /// Peak resident memory of the whole run, fill phases included.
    pub peak_rss_bytes: u64,
    /// The latency curve: `[quantile, µs]` for quantiles from 0 to 0.99999, in order.
    pub percentiles: Vec<(f64, f64)>,
    /// The latency over time, oldest first; `null` if it has no meaning (`enumerate`, `open-*`).
    pub series: Option<Vec<Second>>,
    /// Further figures by name, which depend on the workload. The name contains the unit. Every run
    /// has `clock_overhead_us`: the latency that the clock adds to each operation. A run beside a
    /// neighbour has `neighbour_mb_per_s`: the bytes that the neighbour wrote a second, in units of
    /// 1 000 000, from before the engine is opened until after its shutdown.
    ///
    /// | workload | keys |
    /// |---|---|
    /// | `store`, one caller, `force_sync` | `bare_fdatasync_p50_us`: one sync of as many bytes, rounded up to pages, in a prewritten file; half of them before and half after the run |
    /// | `lifecycle`, `resave`, `drain-young` | `bytes_per_message`: `disk_write_bytes / ops` |
    /// | `lifecycle` with a lifetime | `live_bytes_peak`: the callers' own peaks together, so an upper bound; `waited_for_room_share`: of the callers' time, 0 to 1 |
    /// | `load-cold` | `set_messages`; `read_per_byte`: bytes read from the device for each payload byte |
    /// | `backlog` | `live_messages`, `live_bytes` (payload) when all is stored; `written_per_byte`: `disk_write_bytes / live_bytes`, where `disk_write_bytes` are those of the stores and of what settled after them; `disk_bytes_settled`: then on disk; `peak_while_storing_bytes`: the most memory until then, the bench's own included; `drain_per_s`, `drain_p50_us`, `drain_p99_us`, `drain_p999_us`, `drain_max_us`, `drain_write_bytes` of the removals; `disk_peak_bytes`; `disk_peak_over_live`: the most (disk − journal capacity − crash log) / live, while a hundredth was live; `disk_over_promise_bytes`: the most disk − (1.5 × live + journal capacity + crash log), negative if the promise was kept, `disk_over_promise_while_storing_bytes`: the same before the first removal; `disk_bytes_after` removals, clean-up and shutdown |
    /// | `enumerate` | `passes`, `first_entry_ms` |
    /// | `open-clean`, `open-killed` | `messages`, `open_ms` (p50), `first_open_ms`; after a kill `lost_messages`; with `--lose-index` `all_loaded_ms`: the longest time from the beginning of an opening until every message had been loaded |
    /// | `mixed` | for `store_unsynced`, `store_synced`, `load`, `resave`, `remove`: `…_ops`, `…_p50_us`, `…_p99_us`, `…_p999_us` |
    /// | `overload` | `drain_per_s`, `drain_mb_per_s`: stores that the disk took, measured before; `offered`, `turned_away` because so many as `concurrency` waited, `refused_unhealthy`, `refused_backpressure`; `longest_stall_ms`: the longest time in which no store was done while at least one waited, `stalls_over_100ms`; `longest_without_commit_ms`: the longest time in which the disk did not finish a commit, to 20 ms; `sync_max_ms`, of the whole run; `dirty_fraction_mean`, `dirty_fraction_max`, `unhealthy_share` of the time |
    /// | `scale` | for each number of live messages N: `store_…_us_at_N`, `load_…_us_at_N`, `remove_…_us_at_N` (`p50`, `p99`, `mean`), `resident_bytes_at_N`, `resident_bytes_per_message_at_N` (since the N before), and of the tiered spool `index_bytes_per_message_at_N`; `store_p50_growth`, `load_p50_growth`, `remove_p50_growth` from the first N to the last |
    pub extra: BTreeMap<String, f64>,
    /// `overload`: the run in steps shorter than those of `series`, which `--plot` draws. Other
    /// workloads do not have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moments: Vec<Moment>,
}

/// A point of [`Report::moments`]: in JSON `[at_ms, p50_us, p99_us, max_us, ops, dirty_fraction]`.
///
/// Usually 100 ms long. A long run has longer points of one length, at most 600.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "(u64, f64, f64, f64, u64, f64)", into = "(u64, f64, f64, f64, u64, f64)")]
pub struct Moment {
    /// When the point began, in milliseconds since the first store was due.
    pub at_ms: u64,
    /// The p50 of the stores that completed in it, in microseconds; 0 without stores.
    pub p50_us: f64,
    /// The p99 of these stores.
    pub p99_us: f64,
    /// The maximum of these stores.
    pub max_us: f64,
    /// The number of these stores.
    pub ops: u64,
    /// The highest sample of dirty bytes / dirty limit; may exceed 1.
    pub dirty_fraction: f64,
}

impl From<(u64, f64, f64, f64, u64, f64)> for Moment {
    fn from((at_ms, p50_us, p99_us, max_us, ops, dirty_fraction): (u64, f64, f64, f64, u64, f64)) -> Self {
        Self { at_ms, p50_us, p99_us, max_us, ops, dirty_fraction }
    }
}

impl From<Moment> for (u64, f64, f64, f64, u64, f64) {
    fn from(Moment { at_ms, p50_us, p99_us, max_us, ops, dirty_fraction }: Moment) -> Self {
        (at_ms, p50_us, p99_us, max_us, ops, dirty_fraction)
    }
}

/// A point of [`Report::series`]: in JSON `[second, p50_us, p99_us, p999_us, ops]`.
///
/// Usually one second long. A long run has longer points of one length, at most 300.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "(u64, f64, f64, f64, u64)", into = "(u64, f64, f64, f64, u64)")]
pub struct Second {
    /// When the point began, in seconds since the end of the warm-up.
    pub second: u64,
    /// The p50 of the operations that ended in it, in microseconds.
    pub p50_us: f64,
    /// The p99 of these operations.
    pub p99_us: f64,
    /// The p99.9 of these operations.
    pub p999_us: f64,
    /// The number of these operations.
    pub ops: u64,
}

impl From<(u64, f64, f64, f64, u64)> for Second {
    fn from((second, p50_us, p99_us, p999_us, ops): (u64, f64, f64, f64, u64)) -> Self {
        Self { second, p50_us, p99_us, p999_us, ops }
    }
}

impl From<Second> for (u64, f64, f64, f64, u64) {
    fn from(Second { second, p50_us, p99_us, p999_us, ops }: Second) -> Self {
        (second, p50_us, p99_us, p999_us, ops)
    }
}

impl Report {
    /// Writes the report as a table, without the latency curve and the series.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let per_op = self.disk_write_bytes.checked_div(self.ops);
        let per_op = per_op.map_or_else(String::new, |per_op| format!(", {per_op} an operation"));
        let sync = if self.force_sync { "forced" } else { "not forced" };
        let size = match self.size {
            Size::Bytes(size) => bytes(size as u64),
            word => word.to_string(),
        };
        let mut rows = vec![
            ("engine", self.engine.clone()),
            ("workload", word(&self.workload)),
            ("message size", size),
            ("callers", self.concurrency.to_string()),
            ("sync", sync.to_owned()),
            ("neighbour", if self.neighbour { "writes to the same disk" } else { "none" }.to_owned()),
            ("measured", format!("{:.2} s", self.seconds)),
            ("operations", format!("{} ({:.0}/s, {:.1} MB/s)", self.ops, self.ops_per_s, self.mb_per_s)),
            ("latency p50", format!("{:.1} µs", self.p50_us)),
            ("latency p99", format!("{:.1} µs", self.p99_us)),
            ("latency p99.9", format!("{:.1} µs", self.p999_us)),
            ("latency max", format!("{:.1} µs", self.max_us)),
            ("disk writes", format!("{}{per_op}", bytes(self.disk_write_bytes))),
            ("peak memory", bytes(self.peak_rss_bytes)),
        ];
        rows.extend(self.extra.iter().map(|(name, value)| (name.as_str(), value.to_string())));
        two_columns(out, &rows)
    }
}

/// Returns the value as it is written on the command line.
pub fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn report() -> Report {
        Report {
            engine: "local-disk".to_owned(),
            workload: Workload::LoadCold,
            size: Size::Bytes(16_384),
            concurrency: 64,
            force_sync: true,
            neighbour: true,
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
            percentiles: vec![(0.0, 0.5), (0.5, 1.5)],
            series: Some(vec![Second { second: 0, p50_us: 1.5, p99_us: 2.5, p999_us: 3.5, ops: 7 }]),
            extra: BTreeMap::from([("b".to_owned(), 2.0), ("a".to_owned(), 1.5)]),
            moments: Vec::new(),
        }
    }

    #[test]
    fn the_json_keys_and_their_order_are_stable() {
        assert_eq!(
            serde_json::to_string(&report()).unwrap(),
            "{\"engine\":\"local-disk\",\"workload\":\"load-cold\",\"size\":16384,\"concurrency\":64,\
             \"force_sync\":true,\"neighbour\":true,\"seconds\":4.5,\"ops\":1000,\"ops_per_s\":222.222,\"mb_per_s\":3.641,\
             \"p50_us\":1.5,\"p99_us\":2.5,\"p999_us\":3.5,\"max_us\":4.5,\
             \"disk_write_bytes\":16000000,\"peak_rss_bytes\":1048576,\
             \"percentiles\":[[0.0,0.5],[0.5,1.5]],\"series\":[[0,1.5,2.5,3.5,7]],\
             \"extra\":{\"a\":1.5,\"b\":2.0}}"
        );
        let moments =
            vec![Moment { at_ms: 100, p50_us: 1.5, p99_us: 2.5, max_us: 3.5, ops: 7, dirty_fraction: 0.875 }];
        let moments = serde_json::to_string(&Report { moments, ..report() }).unwrap();
        assert!(moments.ends_with(",\"moments\":[[100,1.5,2.5,3.5,7,0.875]]}"), "{moments}");
        let without = Report { series: None, ..report() };
        assert!(serde_json::to_string(&without).unwrap().contains("\"series\":null"));
    }

    #[test]
    fn a_report_can_be_read_back() {
        for report in [report(), Report { series: None, size: Size::Mix, ..report() }] {
            let line = serde_json::to_string(&report).unwrap();
            assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report);
        }
    }

    #[test]
    fn the_table_can_be_read() {
        let mut out = Vec::new();
        report().table(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("engine         local-disk\n"), "{text}");
        assert!(text.contains("operations     1000 (222/s, 3.6 MB/s)\n"), "{text}");
        assert!(text.contains("(16000000 bytes), 16000 an operation\n"), "{text}");
        assert!(text.contains("\na              1.5\n"), "{text}");
        assert!(text.contains("\nneighbour      writes to the same disk\n"), "{text}");
    }

    #[test]
    fn a_run_without_an_operation_can_be_shown() {
        let mut out = Vec::new();
        Report { ops: 0, ..report() }.table(&mut out).unwrap();
        assert!(!String::from_utf8(out).unwrap().contains("an operation"));
    }
}
