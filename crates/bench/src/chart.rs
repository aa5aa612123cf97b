//! Line charts as SVG, in colours that are readable on light and dark backgrounds.

use std::time::Duration;

use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::combinators::WithKeyPoints;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::figures::rounded;

/// Red, green and blue.
pub type Colour = (u8, u8, u8);

/// One line of a chart.
#[derive(Debug)]
pub struct Line<'a> {
    /// The name in the legend.
    pub name: &'a str,
    /// Readable on light and dark backgrounds.
    pub colour: Colour,
    /// Draws a thicker line.
    pub is_main: bool,
    /// The points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// The axes of a chart. Latencies are microseconds on a logarithmic axis, which spans the powers of
/// ten around all positive values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axes {
    /// Seconds, latency.
    LatencyOverTime,
    /// Seconds, share from 0 to at least 1.
    ShareOverTime,
    /// Quantile, latency. Each further nine has the same width, which gives space to the tail.
    LatencyByQuantile,
}

/// A chart: lines in one frame, below their legend.
#[derive(Debug)]
pub struct Chart<'a> {
    /// The lines to draw, the last one on top.
    pub lines: Vec<Line<'a>>,
    /// What the points are.
    pub axes: Axes,
    /// The text below the horizontal axis.
    pub caption: &'a str,
}

// Plotters has whole pixels: a picture is twice as large as it is shown.
const WIDTH: u32 = 1_280;
const HEIGHT: u32 = 640;
const FONT_SIZE: i32 = 28;
const LEGEND_COLUMNS: i32 = 4;
const LEGEND_WIDTH: i32 = 300;

const GREY: RGBColor = RGBColor(0x80, 0x84, 0x88);

/// The places of labels on an axis of quantiles.
const QUANTILES: [f64; 7] = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Returns an SVG file with `charts` one below the other.
///
/// # Errors
///
/// Those of the drawing library.
pub fn svg(title: &str, charts: &[Chart<'_>]) -> Result<String> {
    let mut svg = String::new();
    let height = HEIGHT * u32::try_from(charts.len())? + 2 * FONT_SIZE.unsigned_abs();
    let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    let below = area.titled(title, font(GREY))?;
    for (chart, area) in charts.iter().zip(below.split_evenly((charts.len(), 1))) {
        chart.draw(&area)?;
    }
    area.present()?;
    drop((below, area));
    Ok(svg)
}

impl Chart<'_> {
    /// Returns whether no point can be drawn.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.points().next().is_none()
    }

    /// Returns the points of all lines that have a position on both axes.
    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.lines.iter().flat_map(|line| self.points_of(line))
    }

    fn points_of<'a>(&self, line: &'a Line<'_>) -> impl Iterator<Item = (f64, f64)> + use<'a> {
        let axes = self.axes;
        let place = move |&(x, y): &(f64, f64)| match axes {
            Axes::LatencyByQuantile => (place(x), y),
            _ => (x, y),
        };
        let is_placed = move |y: f64| y.is_finite() && (axes == Axes::ShareOverTime || y > 0.0);
        line.points.iter().map(place).filter(move |(_, y)| is_placed(*y))
    }

    fn draw(&self, area: &Area<'_>) -> Result<()> {
        // Points without a position count, so that charts of the same run have the same end.
        let end = self.lines.iter().flat_map(|line| &line.points).map(|(x, _)| *x).fold(0.001, f64::max);
        let seconds = |at: &f64| rounded(*at).to_string();
        match self.axes {
            Axes::LatencyOverTime => self.draw_on(area, 0.0..end, self.latencies(), &seconds, &time),
            Axes::ShareOverTime => {
                let most = self.points().map(|(_, y)| y).fold(1.0, f64::max);
                self.draw_on(area, 0.0..end, 0.0..most, &seconds, &|share| percent(*share))
            }
            Axes::LatencyByQuantile => {
                let quantiles =
                    (1.0..place(0.99999)).log_scale().with_key_points(QUANTILES.map(place).into());
                let label = |at: &f64| percent(1.0 - 1.0 / at);
                self.draw_on(area, quantiles, self.latencies(), &label, &time)
            }
        }
    }

    fn draw_on<X, Y>(
        &self,
        area: &Area<'_>,
        across: X,
        up: Y,
        label_across: &dyn Fn(&f64) -> String,
        label_up: &dyn Fn(&f64) -> String,
    ) -> Result<()>
    where
        X: AsRangedCoord<Value = f64, CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>>,
        Y: AsRangedCoord<Value = f64, CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>>,
    {
        let rows = (i32::try_from(self.lines.len())? + LEGEND_COLUMNS - 1) / LEGEND_COLUMNS;
        let mut frame = ChartBuilder::on(area)
            .margin(FONT_SIZE)
            .margin_top((rows + 1) * FONT_SIZE)
            .margin_right(2 * FONT_SIZE)
            .x_label_area_size(3 * FONT_SIZE)
            .y_label_area_size(4 * FONT_SIZE)
            .build_cartesian_2d(across, up)?;
        frame
            .configure_mesh()
            .axis_style(GREY)
            .bold_line_style(GREY.mix(0.3))
            .light_line_style(TRANSPARENT)
            .label_style(font(GREY))
            .x_label_formatter(label_across)
            .y_label_formatter(label_up)
            .x_desc(self.caption)
            .draw()?;
        for (nth, line) in (0..).zip(&self.lines) {
            let (red, green, blue) = line.colour;
            let colour = RGBColor(red, green, blue);
            let style = colour.stroke_width(if line.is_main { 6 } else { 3 });
            frame.draw_series(LineSeries::new(self.points_of(line), style))?;
            // The legends of plotters are inside the frame, where they cover lines.
            let (column, row) = (nth % LEGEND_COLUMNS, nth / LEGEND_COLUMNS);
            let place = (FONT_SIZE + column * LEGEND_WIDTH, FONT_SIZE / 2 + row * FONT_SIZE);
            area.draw_text(&format!("— {}", line.name), &font(colour), place)?;
        }
        Ok(())
    }

    /// Returns an axis with the powers of ten around all latencies, and a label at each.
    fn latencies(&self) -> WithKeyPoints<LogCoord<f64>> {
        let least = self.points().map(|(_, y)| y.log10().floor()).reduce(f64::min).unwrap_or(0.0);
        let most = self.points().map(|(_, y)| y.log10().ceil()).fold(least + 1.0, f64::max);
        let decades = std::iter::successors(Some(least), |decade| Some(decade + 1.0));
        let decades = decades.take_while(|decade| *decade <= most).map(|decade| 10_f64.powf(decade));
        (10_f64.powf(least)..10_f64.powf(most)).log_scale().with_key_points(decades.collect())
    }
}

fn font(colour: RGBColor) -> TextStyle<'static> {
    let mut font = TextStyle::from(("system-ui, sans-serif", FONT_SIZE));
    font.color = colour.to_backend_color();
    font
}

/// Returns the place of a quantile on a logarithmic axis: 0.9 is at 10, 0.99 at 100.
fn place(quantile: f64) -> f64 {
    1.0 / (1.0 - quantile.min(0.999_999))
}

fn percent(share: f64) -> String {
    format!("{} %", rounded(100.0 * share))
}

/// Formats a number of microseconds in a suitable unit.
fn time(us: &f64) -> String {
    format!("{:?}", Duration::try_from_secs_f64(us / 1e6).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(axes: Axes, points: &[(f64, f64)]) -> Chart<'static> {
        let line = Line { name: "one", colour: (1, 2, 3), is_main: false, points: points.to_vec() };
        Chart { lines: vec![line], axes, caption: "what" }
    }

    #[test]
    fn a_line_goes_from_edge_to_edge_and_skips_points_without_a_position() {
        let points = [(0.0, 1.0), (4.0, 0.0), (6.0, f64::INFINITY), (8.0, 1_000.0)];
        let svg = svg("title", &[chart(Axes::LatencyOverTime, &points)]).unwrap();
        assert!(svg.contains(r##"stroke="#010203" stroke-width="3" points="140,583 1223,88 "##), "{svg}");
        assert!(svg.contains("\n— one\n</text>") && svg.contains("\ntitle\n</text>"), "{svg}");
    }

    #[test]
    fn the_axis_of_latencies_has_a_label_at_each_end() {
        let range = |points: &[(f64, f64)]| chart(Axes::LatencyOverTime, points).latencies().range();
        assert_eq!(range(&[(0.0, 0.0), (1.0, 2.0), (2.0, 950.0)]), 1.0..1_000.0);
        assert_eq!(range(&[(0.0, 10.0)]), 10.0..100.0);
        assert_eq!(range(&[(0.0, 0.3)]), 0.1..1.0);
        for (least, labels) in
            [(0.01, ["10ns", "1µs"]), (1.0, ["1µs", "100µs"]), (1e3, ["1ms", "100ms"]), (1e6, ["1s", "100s"])]
        {
            let points = [(0.0, least), (1.0, 100.0 * least)];
            let svg = svg("", &[chart(Axes::LatencyOverTime, &points)]).unwrap();
            for label in labels {
                assert!(svg.contains(&format!("\n{label}\n</text>")), "{label}: {svg}");
            }
        }
    }

    #[test]
    fn each_nine_has_the_same_width() {
        for (quantile, expected) in [(0.0, 1.0), (0.9, 10.0), (0.99, 100.0), (0.99999, 1e5)] {
            assert!((place(quantile) / expected - 1.0).abs() < 1e-9, "{quantile}: {}", place(quantile));
        }
        assert!(place(1.0).is_finite());
        let svg = svg("", &[chart(Axes::LatencyByQuantile, &[(0.5, 1.0)])]).unwrap();
        for label in ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"] {
            assert!(svg.contains(&format!("\n{label}\n</text>")), "{label}: {svg}");
        }
    }

    #[test]
    fn a_chart_without_points_can_be_drawn() {
        let empty = chart(Axes::LatencyOverTime, &[(1.0, 0.0)]);
        assert!(empty.is_empty() && !svg("title", &[empty]).unwrap().contains(r##"stroke="#010203""##));
    }
}
