//! A comparison as text.

use std::io::{self, Write};

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};

use super::record::{CaseSummary, Comparison};
use super::summary::{EngineSummary, Ratio};
use crate::engines::Peer;

/// A note on the latencies, for every output.
pub(super) const CAVEAT: &str = "Latency is measured from the call on: an engine that blocks its caller's thread, as \
     rocksdb does, keeps other callers waiting before their calls, unseen; the throughput shows it.";

/// The columns: the key of the figure, the heading, and whether the spread is shown.
pub(super) const COLUMNS: [(&str, &str, bool); 8] = [
    ("ops_per_s", "per second", true),
    ("mb_per_s", "MB/s", false),
    ("p50_us", "p50 µs", false),
    ("p99_us", "p99 µs", false),
    ("p999_us", "p99.9 µs", false),
    ("max_us", "max µs", false),
    ("written_per_op", "written B/op", false),
    ("peak_rss_bytes", "peak memory", false),
];

/// Prints all cases with their ratios, then the settings, and last the failed runs.
pub(super) fn print(out: &mut dyn Write, comparison: &Comparison) -> io::Result<()> {
    for case in &comparison.cases {
        writeln!(out, "\n{}", case.title)?;
        writeln!(out, "{}", table(case))?;
        for ratio in &case.ratios {
            if let Some(line) = ratio_text(ratio) {
                writeln!(out, "  tidespool, {line}")?;
            }
        }
    }
    if !comparison.settings.is_empty() {
        writeln!(out)?;
    }
    for (engine, settings) in &comparison.settings {
        writeln!(out, "{}: {settings}", engine.name())?;
    }
    writeln!(out, "{CAVEAT}")?;
    for run in &comparison.runs {
        if let Some(error) = &run.error {
            writeln!(out, "FAILED: {}: {}: {error}", run.engine.name(), run.title)?;
        }
    }
    Ok(())
}

fn table(case: &CaseSummary) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["engine"].into_iter().chain(COLUMNS.iter().map(|(_, heading, _)| *heading)));
    for engine in &case.engines {
        let cells = COLUMNS.iter().map(|(key, _, spread)| cell(engine, key, *spread));
        table.add_row([engine.engine.name().to_owned()].into_iter().chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Formats the median; with `spread` also the minimum and the maximum of several rounds.
pub(super) fn cell(engine: &EngineSummary, key: &str, spread: bool) -> String {
    let Some(figure) = engine.figures.get(key) else { return "–".to_owned() };
    let median = number(key, figure.median);
    if spread && engine.rounds > 1 {
        format!("{median} ({}–{})", number(key, figure.min), number(key, figure.max))
    } else {
        median
    }
}

fn number(key: &str, value: f64) -> String {
    match key {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of bytes")]
        "peak_rss_bytes" => ByteSize(value as u64).to_string(),
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Formats a ratio; `None` if there is nothing to compare with.
pub(super) fn ratio_text(ratio: &Ratio) -> Option<String> {
    let mut parts = Vec::new();
    if let Some((peer, times)) = ratio.best_peer {
        parts.push(format!("{times:.2} × {} (best peer)", peer.name()));
    }
    if let Some(times) = ratio.rocksdb
        && !matches!(ratio.best_peer, Some((Peer::RocksDb, _)))
    {
        parts.push(format!("{times:.2} × rocksdb"));
    }
    if let Some(share) = ratio.raw_journal {
        parts.push(format!("{share:.2} of raw-journal"));
    }
    if let Some(share) = ratio.bare {
        parts.push(format!("{share:.2} of bare"));
    }
    (!parts.is_empty()).then(|| format!("{}: {}", ratio.metric, parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::comparison;
    use super::*;

    #[test]
    fn a_table_names_engines_ratios_and_failures() {
        let mut out = Vec::new();
        print(&mut out, &comparison()).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("store 16.0 KiB, 64 callers, synced"), "{text}");
        assert!(text.contains("400 (300–500)"), "{text}");
        assert!(text.contains("tidespool, ops_per_s: 4.00 × fjall (best peer)\n"), "{text}");
        assert!(
            text.contains("FAILED: sled: store 16.0 KiB, 64 callers, synced: no <space> left\n"),
            "{text}"
        );
    }
}
