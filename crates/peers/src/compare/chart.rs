//! The charts of a comparison.

use tidespool_bench::chart::{Chart, Scale, seconds};

use crate::engines::Peer;

/// One line: an engine and its points.
pub(super) type Line<'a> = (Peer, &'a [(f64, f64)]);

/// Returns the position of a quantile on the axis, in nines: 0.9 is at 1, 0.99 at 2. This gives
/// space to the tail, where engines differ.
pub(super) fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile.min(0.999_999)).log10()
}

/// Returns latency curves: quantiles in nines, latency on a logarithmic axis.
pub(super) fn curves(lines: &[Line<'_>]) -> String {
    let placed =
        |points: &[(f64, f64)]| points.iter().map(|(quantile, us)| (nines(*quantile), *us)).collect();
    let lines: Vec<_> = lines.iter().map(|(peer, points)| (peer.name(), placed(points))).collect();
    let ticks = [
        (0.0, "0"),
        (0.5, "50 %"),
        (0.9, "90 %"),
        (0.99, "99 %"),
        (0.999, "99.9 %"),
        (0.9999, "99.99 %"),
        (0.99999, "99.999 %"),
    ];
    let ticks = ticks.map(|(quantile, text)| (nines(quantile), text.to_owned()));
    let caption = "share of operations that are at least so quick";
    Chart { lines: &lines, scale: Scale::Time, end: 5.0, ticks: &ticks, caption }.svg()
}

/// Returns the p99.9 over time.
pub(super) fn over_time(lines: &[Line<'_>]) -> String {
    let lines: Vec<_> = lines.iter().map(|(peer, points)| (peer.name(), points.to_vec())).collect();
    let end = lines.iter().flat_map(|(_, points)| points).map(|(second, _)| *second).fold(1.0, f64::max);
    let caption = "p99.9, seconds after the warm-up";
    Chart { lines: &lines, scale: Scale::Time, end, ticks: &seconds(end), caption }.svg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nine_has_the_same_width() {
        assert_eq!(nines(0.0), 0.0);
        for (quantile, expected) in [(0.9, 1.0), (0.99, 2.0), (0.999, 3.0), (0.99999, 5.0)] {
            assert!((nines(quantile) - expected).abs() < 1e-9, "{quantile}: {}", nines(quantile));
        }
        assert!(nines(1.0).is_finite());
    }

    #[test]
    fn a_chart_has_a_line_for_each_engine_within_its_frame() {
        let (one, two) = ([(0.0, 1.0), (0.5, 10.0), (0.99999, 100.0)], [(0.0, 2.0), (0.99999, 5.0)]);
        let svg = curves(&[(Peer::Tidespool, &one), (Peer::RocksDbTuned, &two)]);
        // From the left edge at the lowest value to the right edge at the highest.
        assert!(svg.contains("<path class=\"tidespool\" d=\"M64.0 280.0L"), "{svg}");
        assert!(svg.contains("L628.0 10.0\""), "{svg}");
        assert!(svg.contains("class=\"rocksdb-tuned\""));
        assert!(svg.contains(">10 µs</text>") && svg.contains(">99.9 %</text>"));
        assert!(over_time(&[(Peer::Fjall, &[(0.0, 1.0), (8.0, 1_000.0)])]).contains(">1 ms</text>"));
        assert_eq!(curves(&[(Peer::Fjall, &[(0.5, 0.0)])]), "");
    }
}
