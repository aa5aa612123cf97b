//! The chart of an `overload` run: latency over time, and below it the dirty bytes.

use anyhow::Result;

use crate::chart::{Axes, Chart, Colour, Line, svg};
use crate::report::{Moment, Report};

/// Returns a complete SVG file. Without [`Report::moments`] the charts are empty.
pub(crate) fn overload(report: &Report) -> Result<String> {
    let line = |name, colour: Colour, value: fn(&Moment) -> f64| Line {
        name,
        colour,
        is_main: false,
        points: report.moments.iter().map(|moment| (moment.at_ms as f64 / 1e3, value(moment))).collect(),
    };
    let latencies = Chart {
        lines: vec![
            line("max", (0xe5, 0x48, 0x4d), |moment| moment.max_us),
            line("p99", (0xd6, 0x40, 0x9f), |moment| moment.p99_us),
            line("p50", (0x0b, 0x8f, 0xcb), |moment| moment.p50_us),
        ],
        axes: Axes::LatencyOverTime,
        caption: "latency of stores, over seconds",
    };
    let dirty = Chart {
        lines: vec![line("dirty", (0x30, 0xa4, 0x6c), |moment| moment.dirty_fraction)],
        axes: Axes::ShareOverTime,
        caption: "dirty bytes / dirty limit, over seconds",
    };
    let title = format!(
        "{}, overload, {} bytes, {} callers: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        report.engine,
        report.size,
        report.concurrency,
        report.p50_us / 1e3,
        report.p99_us / 1e3,
        report.max_us / 1e3,
    );
    svg(&title, &[latencies, dirty])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_run_has_a_line_for_each_figure() {
        let moment = |at_ms| Moment {
            at_ms,
            p50_us: 100.0,
            p99_us: 1_000.0,
            max_us: 10_000.0,
            ops: 5,
            dirty_fraction: 0.875,
        };
        let picture = overload(&Report { moments: vec![moment(0), moment(100)], ..report() }).unwrap();
        for line in ["max", "p99", "p50", "dirty"] {
            assert!(picture.contains(&format!("\n— {line}\n")), "{line}: {picture}");
        }
        assert!(picture.contains("p50 0.0 ms") && picture.contains("\n100 %\n"), "{picture}");
    }

    #[test]
    fn a_run_without_moments_can_be_drawn() {
        assert!(overload(&report()).unwrap().ends_with("</svg>\n"));
    }
}
