//! The charts of a comparison.

use anyhow::Result;
use tidespool_bench::chart::{Axes, Chart, Colour, Line, svg};

use super::record::CaseSummary;
use crate::engines::Peer;

/// Returns the latency curves of all engines.
pub(super) fn curves(case: &CaseSummary) -> Result<String> {
    let lines = case.engines.iter().map(|engine| (engine.engine, engine.curve.as_slice()));
    let caption = "share of operations that are at least so quick";
    draw("latency", lines, Axes::LatencyByQuantile, caption)
}

/// Returns the p99.9 over time of the engines whose runs were long enough.
pub(super) fn over_time(case: &CaseSummary) -> Result<String> {
    let lines = case.over_time.iter().map(|(engine, points)| (*engine, points.as_slice()));
    let lines = lines.filter(|(_, points)| points.len() > 2);
    draw("p99.9 over time", lines, Axes::LatencyOverTime, "seconds after the warm-up")
}

/// Returns an empty string if there is nothing to draw.
fn draw<'a>(
    title: &str,
    lines: impl Iterator<Item = (Peer, &'a [(f64, f64)])>,
    axes: Axes,
    caption: &str,
) -> Result<String> {
    let line = |(engine, points): (Peer, &[(f64, f64)])| Line {
        name: engine.name(),
        colour: colour(engine),
        is_main: engine == Peer::Tidespool,
        points: points.to_vec(),
    };
    let chart = Chart { lines: lines.map(line).collect(), axes, caption };
    if chart.is_empty() { Ok(String::new()) } else { svg(title, &[chart]) }
}

/// An engine has the same colour in every chart, readable on light and dark backgrounds.
pub(super) const fn colour(engine: Peer) -> Colour {
    match engine {
        Peer::Tidespool => (0xd6, 0x40, 0x9f),
        Peer::TidespoolMemory => (0xe5, 0x48, 0x4d),
        Peer::RocksDb => (0x2f, 0x7f, 0xe0),
        Peer::RocksDbTuned => (0x07, 0x97, 0xb9),
        Peer::Fjall => (0x2b, 0x9a, 0x66),
        Peer::Sled => (0xad, 0x7f, 0x58),
        Peer::Redb => (0x9a, 0x5f, 0xd0),
        Peer::LocalDisk => (0x9a, 0x85, 0x00),
        Peer::Foyer => (0xe5, 0x60, 0x0a),
        Peer::RawJournal => (0x80, 0x84, 0x88),
        Peer::Bare => (0xa1, 0x78, 0x8f),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::super::record::tests::comparison;
    use super::*;

    #[test]
    fn a_chart_has_a_line_for_each_engine() {
        let mut case = comparison().cases.remove(0);
        let svg = curves(&case).unwrap();
        assert!(svg.contains("\n— tidespool\n") && svg.contains("\n— fjall\n"), "{svg}");
        assert_eq!(over_time(&case).unwrap(), "", "one point is not a line");
        case.over_time = vec![(Peer::Fjall, vec![(0.0, 1.0), (1.0, 9.0), (8.0, 1_000.0)])];
        assert!(over_time(&case).unwrap().contains("\n1ms\n"));
    }

    /// The relative luminance of the Web Content Accessibility Guidelines. In this range the
    /// contrast to white and to #111113 is at least 3.
    #[test]
    fn every_engine_has_a_colour_of_its_own_that_is_readable_on_light_and_dark() {
        let mut colours: Vec<Colour> = Peer::value_variants().iter().map(|&engine| colour(engine)).collect();
        for (red, green, blue) in &colours {
            let linear = |part: u8| ((f64::from(part) / 255.0 + 0.055) / 1.055).powf(2.4);
            let luminance = 0.2126 * linear(*red) + 0.7152 * linear(*green) + 0.0722 * linear(*blue);
            assert!((0.117..0.3).contains(&luminance), "{red} {green} {blue}: {luminance}");
        }
        colours.sort_unstable();
        colours.dedup();
        assert_eq!(colours.len(), Peer::value_variants().len());
    }
}
