//! The chart of an `overload` run: latency over time, and below it the dirty bytes.

use crate::chart::{Chart, HEIGHT, Scale, WIDTH, seconds};
use crate::report::{Moment, Report};

/// Readable on light and dark backgrounds.
const STYLE: &str = "text{font:11px system-ui,sans-serif;fill:#808488}.title{font-size:13px}.mid{text-anchor:middle}.end{text-anchor:end}\
.grid{stroke:#80848840;stroke-width:1}path{fill:none;stroke-width:1.4;stroke-linejoin:round}\
.p50{stroke:#0b8fcb}.p99{stroke:#d6409f}.max{stroke:#e5484d;stroke-width:.8}.dirty{stroke:#218358}\
text.p50,text.p99,text.max,text.dirty{stroke:none}text.p50{fill:#0b8fcb}text.p99{fill:#d6409f}text.max{fill:#e5484d}";

/// The height of the title.
const HEAD: f64 = 28.0;

/// Returns a complete SVG file. Without [`Report::moments`] it has only the title.
pub(crate) fn overload(report: &Report) -> String {
    let seconds_of = |moment: &Moment| moment.at_ms as f64 / 1e3;
    let points = |value: &dyn Fn(&Moment) -> f64| -> Vec<(f64, f64)> {
        report.moments.iter().map(|moment| (seconds_of(moment), value(moment))).collect()
    };
    let latencies = [
        ("max", points(&|moment| moment.max_us)),
        ("p99", points(&|moment| moment.p99_us)),
        ("p50", points(&|moment| moment.p50_us)),
    ];
    let dirty = [("dirty", points(&|moment| moment.dirty_fraction))];
    let end = report.moments.last().map_or(1.0, seconds_of).max(0.001);
    let ticks = seconds(end);
    let (above, below) = (
        Chart { lines: &latencies, scale: Scale::Time, end, ticks: &ticks, caption: "latency of stores" }
            .inside(),
        Chart {
            lines: &dirty,
            scale: Scale::Share(1.0),
            end,
            ticks: &ticks,
            caption: "dirty bytes / dirty limit",
        }
        .inside(),
    );
    let (height, second) = (HEAD + 2.0 * HEIGHT, HEAD + HEIGHT);
    let title = format!(
        "{}, overload, {} bytes, at most {} at a time: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, max {:.1} ms",
        report.engine,
        report.size,
        report.concurrency,
        report.p50_us / 1e3,
        report.p99_us / 1e3,
        report.p999_us / 1e3,
        report.max_us / 1e3,
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\"><style>{STYLE}</style>\
         <text class=\"title\" x=\"8\" y=\"18\">{title}</text>\
         <text class=\"p50\" x=\"70\" y=\"50\">p50</text><text class=\"p99\" x=\"100\" y=\"50\">p99</text>\
         <text class=\"max\" x=\"130\" y=\"50\">max</text>\
         <g transform=\"translate(0 {HEAD})\">{above}</g><g transform=\"translate(0 {second})\">{below}</g></svg>\n"
    )
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
        let picture = overload(&Report { moments: vec![moment(0), moment(100)], ..report() });
        for line in ["max", "p99", "p50", "dirty"] {
            assert!(picture.contains(&format!("<path class=\"{line}\" d=\"M64.0 ")), "{line}: {picture}");
        }
        assert!(picture.starts_with("<svg xmlns=") && picture.ends_with("</g></svg>\n"), "{picture}");
        assert!(picture.contains("p50 0.0 ms") && picture.contains(">100 %</text>"), "{picture}");
    }

    #[test]
    fn a_run_without_moments_can_be_drawn() {
        assert!(!overload(&report()).contains("<path"));
    }
}
