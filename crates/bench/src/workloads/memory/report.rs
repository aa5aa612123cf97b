//! The figures of the mixes.

use std::io::{self, Write};

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use super::mix::{Mix, Setting};
use super::watch::{Part, Seen};
use crate::figures::{ratio, rounded};
use crate::output::write_plain;
use crate::report::word;

/// The limit of resident memory above the base, as a multiple of the budget.
pub(super) const MAX_RATIO: f64 = 1.15;

/// From "dirty" on, the maxima of gauges of the spool.
const COLUMNS: [&str; 13] = [
    "mix",
    "budget",
    "base",
    "peak",
    "above",
    "ratio",
    "dirty",
    "cache",
    "index",
    "sled",
    "accounted",
    "time",
    "",
];

/// The figures of one mix. The fields are the keys of its JSON object; all sizes are bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct MixReport {
    /// The mix.
    pub(super) mix: Mix,
    /// The setting `memory_budget`.
    pub(super) budget: u64,
    /// Resident memory before the spool was opened, with what the bench itself needs.
    pub(super) base: u64,
    /// Peak resident memory (`VmHWM`).
    pub(super) peak: u64,
    /// `peak − base`.
    pub(super) above_base: u64,
    /// `above_base / budget`.
    pub(super) ratio: f64,
    /// Whether `ratio` is at most 1.15.
    pub(super) pass: bool,
    /// The sample with the highest resident memory, with the gauges of the spool.
    pub(super) at_peak: Part,
    /// The maximum of each value.
    pub(super) largest: Part,
    /// The sample at the end of each phase.
    pub(super) phases: Vec<Phase>,
    /// Number of successful calls: stores, loads, removes, and messages enumerated.
    pub(super) calls: u64,
    /// The time of all phases.
    pub(super) seconds: f64,
}

/// The end of a phase of a mix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Phase {
    /// The name of the phase.
    pub(super) phase: String,
    /// Seconds since the spool was opened.
    pub(super) seconds: f64,
    /// The sample at that time.
    pub(super) then: Part,
}

impl MixReport {
    pub(super) fn new(mix: Mix, setting: &Setting, seen: Seen, phases: Vec<Phase>, calls: u64) -> Self {
        let mut seen = seen;
        // A short mix may end before the first sample.
        phases.iter().for_each(|phase| seen.note(phase.then));
        let above_base = seen.peak.saturating_sub(seen.base);
        let ratio = rounded(ratio(above_base, setting.budget));
        Self {
            mix,
            budget: setting.budget,
            base: seen.base,
            peak: seen.peak,
            above_base,
            ratio,
            pass: ratio <= MAX_RATIO,
            at_peak: seen.at_peak,
            largest: seen.largest,
            seconds: phases.last().map_or(0.0, |last| last.seconds),
            phases,
            calls,
        }
    }

    /// Returns a row of the table.
    fn row(&self) -> Vec<String> {
        let Part { dirty, cache, index, sled, accounted, .. } = self.largest;
        let sizes =
            [self.budget, self.base, self.peak, self.above_base, dirty, cache, index, sled, accounted];
        let mut row = vec![word(&self.mix)];
        row.extend(sizes.map(|bytes| ByteSize(bytes).to_string()));
        row.insert(5, format!("{:.3}", self.ratio));
        row.extend([format!("{:.1} s", self.seconds), verdict(self.pass).to_owned()]);
        row
    }
}

/// The report of the whole command: in JSON one object on one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct MemoryReport {
    /// `memory`.
    pub(super) workload: String,
    /// The setting `memory_budget`.
    pub(super) budget: u64,
    /// The limit of `ratio`.
    pub(super) max_ratio: f64,
    /// The highest ratio of all mixes.
    pub(super) worst_ratio: f64,
    /// Whether all mixes passed.
    pub(super) pass: bool,
    /// The figures of each mix.
    pub(super) mixes: Vec<MixReport>,
}

impl MemoryReport {
    pub(super) fn new(setting: &Setting, mixes: Vec<MixReport>) -> Self {
        Self {
            workload: "memory".to_owned(),
            budget: setting.budget,
            max_ratio: MAX_RATIO,
            worst_ratio: mixes.iter().map(|mix| mix.ratio).fold(0.0, f64::max),
            pass: mixes.iter().all(|mix| mix.pass),
            mixes,
        }
    }

    /// Writes a row for each mix.
    pub(super) fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new();
        table.set_header(COLUMNS);
        table.add_rows(self.mixes.iter().map(MixReport::row));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write_plain(out, table)
    }

    pub(super) fn verdict(&self, out: &mut dyn Write) -> io::Result<()> {
        let verdict = verdict(self.pass);
        writeln!(out, "highest ratio {:.3}, allowed {MAX_RATIO}: {verdict}", self.worst_ratio)
    }
}

const fn verdict(pass: bool) -> &'static str {
    if pass { "PASS" } else { "FAIL" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(above_base: u64) -> MixReport {
        let setting = Setting { budget: 100 << 20, ..Setting::default() };
        let seen = Seen { base: 10 << 20, peak: (10 << 20) + above_base, ..Seen::default() };
        MixReport::new(Mix::Small, &setting, seen, Vec::new(), 5)
    }

    #[test]
    fn the_base_is_no_part_of_what_counts() {
        assert_eq!((mix(100 << 20).ratio, mix(100 << 20).pass), (1.0, true));
        assert_eq!((mix(115 << 20).ratio, mix(115 << 20).pass), (1.15, true));
        assert!(!mix(116 << 20).pass);
        let report = MemoryReport::new(&Setting::default(), vec![mix(90 << 20), mix(120 << 20), mix(0)]);
        assert_eq!((report.worst_ratio, report.pass), (1.2, false));
    }

    #[test]
    fn the_table_and_the_json_can_be_read() {
        let mut out = Vec::new();
        let report = MemoryReport::new(&Setting::default(), vec![mix(116 << 20)]);
        report.table(&mut out).and_then(|()| report.verdict(&mut out)).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("mix ") && lines[1].starts_with("small "), "{text}");
        assert!(
            lines[1].contains(" 126.0 MiB ") && lines[1].contains(" 1.160 ") && lines[1].ends_with("FAIL"),
            "{text}"
        );
        assert_eq!(lines[2], "highest ratio 1.160, allowed 1.15: FAIL");
        let line = serde_json::to_string(&mix(1)).unwrap();
        assert_eq!(serde_json::from_str::<MixReport>(&line).unwrap(), mix(1));
    }
}
