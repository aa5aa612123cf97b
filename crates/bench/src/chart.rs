//! Line charts as SVG. Their colours and line styles come from the style sheet of the page.

use std::fmt::Write as _;

/// The width of a chart, in units of its `viewBox`.
pub const WIDTH: f64 = 640.0;
/// The height of a chart, in units of its `viewBox`.
pub const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;

/// One line: its CSS class, which is also its title, and its points.
pub type Line<'a> = (&'a str, Vec<(f64, f64)>);

/// The scale of the vertical axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// Latencies in microseconds on a logarithmic axis. It spans the powers of ten around all
    /// positive values.
    Time,
    /// Shares, from 0 to this value.
    Share(f64),
}

/// A position on an axis and its label.
pub type Mark = (f64, String);

/// A chart: lines in one frame.
#[derive(Debug)]
pub struct Chart<'a> {
    /// The lines to draw.
    pub lines: &'a [Line<'a>],
    /// The scale of their values.
    pub scale: Scale,
    /// The end of the horizontal axis, which begins at 0.
    pub end: f64,
    /// The labels of the horizontal axis.
    pub ticks: &'a [Mark],
    /// The text below the labels.
    pub caption: &'a str,
}

/// Returns five ticks from 0 to `end` seconds.
#[must_use]
pub fn seconds(end: f64) -> Vec<Mark> {
    (0..=4_u8).map(|n| end * f64::from(n) / 4.0).map(|at| (at, format!("{at:.0} s"))).collect()
}

impl Chart<'_> {
    /// Returns the chart as an `svg` element, or an empty string if there is nothing to draw.
    #[must_use]
    pub fn svg(&self) -> String {
        let inside = self.inside();
        if inside.is_empty() {
            return inside;
        }
        let caption = self.caption;
        format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{caption}\">{inside}</svg>")
    }

    /// Returns the content of that element, for embedding into another one.
    #[must_use]
    pub fn inside(&self) -> String {
        let Some((least, most, marks)) = self.marks() else { return String::new() };
        let x = |at: f64| LEFT + at / self.end * (WIDTH - LEFT - RIGHT);
        let height = |value: f64| if self.scale == Scale::Time { value.log10() } else { value };
        let y =
            |value: f64| HEIGHT - BOTTOM - (height(value) - least) / (most - least) * (HEIGHT - TOP - BOTTOM);
        let mut svg = String::new();
        for (value, text) in marks {
            let (at, right) = (y(value), WIDTH - RIGHT);
            let (beside, below) = (LEFT - 6.0, at + 4.0);
            put(
                &mut svg,
                format_args!(
                    "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"
                ),
            );
            put(&mut svg, format_args!("<text class=\"end\" x=\"{beside}\" y=\"{below:.1}\">{text}</text>"));
        }
        for (at, text) in self.ticks {
            let (at, bottom, below) = (x(*at), HEIGHT - BOTTOM, HEIGHT - BOTTOM + 16.0);
            put(
                &mut svg,
                format_args!(
                    "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>"
                ),
            );
            let class = if at > WIDTH - RIGHT - 10.0 { "end" } else { "mid" };
            put(&mut svg, format_args!("<text class=\"{class}\" x=\"{at:.1}\" y=\"{below}\">{text}</text>"));
        }
        let (middle, last) = (f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 6.0);
        put(
            &mut svg,
            format_args!("<text class=\"mid\" x=\"{middle}\" y=\"{last}\">{}</text>", self.caption),
        );
        for (name, points) in self.lines {
            let path = path(points.iter().map(|&(at, value)| (x(at), y(value))));
            put(&mut svg, format_args!("<path class=\"{name}\" d=\"{path}\"><title>{name}</title></path>"));
        }
        svg
    }

    /// Returns the lowest and the highest position on the vertical axis, and its labels.
    fn marks(&self) -> Option<(f64, f64, Vec<Mark>)> {
        match self.scale {
            Scale::Time => {
                let (least, most) = decades(self.lines)?;
                let marks = (least..=most).map(|decade| (10_f64.powi(decade), time(decade))).collect();
                Some((f64::from(least), f64::from(most), marks))
            }
            Scale::Share(most) => {
                let step = |n: u8| most * f64::from(n) / 4.0;
                let marks = (0..=4).map(step).map(|share| (share, format!("{:.0} %", share * 100.0)));
                let has_points = self.lines.iter().any(|(_, points)| !points.is_empty());
                has_points.then(|| (0.0, most, marks.collect()))
            }
        }
    }
}

/// Returns the powers of ten around all positive values; `None` if there are none.
fn decades(lines: &[Line<'_>]) -> Option<(i32, i32)> {
    let values = lines.iter().flat_map(|(_, points)| points).map(|(_, us)| *us).filter(|us| *us > 0.0);
    let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
    for us in values {
        least = least.min(us.log10().floor());
        most = most.max(us.log10().ceil());
    }
    #[expect(clippy::cast_possible_truncation, reason = "latencies lie within a dozen powers of ten")]
    let (least, most) = (least.is_finite() && most.is_finite()).then_some((least as i32, most as i32))?;
    Some((least, most.max(least + 1)))
}

/// Returns the path through the points. Points without a finite position are left out, such as a
/// latency of zero on a logarithmic axis.
fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (x, y) in points.filter(|(x, y)| x.is_finite() && y.is_finite()) {
        let command = if path.is_empty() { 'M' } else { 'L' };
        put(&mut path, format_args!("{command}{x:.1} {y:.1}"));
    }
    path
}

/// Formats a power of ten of microseconds in a suitable unit.
fn time(decade: i32) -> String {
    let number = 10_f64.powi(decade.rem_euclid(3));
    match decade.div_euclid(3) {
        -1 => format!("{number} ns"),
        0 => format!("{number} µs"),
        1 => format!("{number} ms"),
        2 => format!("{number} s"),
        _ => format!("1e{decade} µs"),
    }
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(scale: Scale, points: &[(f64, f64)]) -> String {
        let ticks = seconds(8.0);
        Chart { lines: &[("one", points.to_vec())], scale, end: 8.0, ticks: &ticks, caption: "what" }.svg()
    }

    #[test]
    fn a_path_skips_points_without_a_position() {
        let points = [(0.0, 1.0), (1.0, f64::INFINITY), (2.0, 3.5)];
        assert_eq!(path(points.into_iter()), "M0.0 1.0L2.0 3.5");
        assert_eq!(path(std::iter::empty()), "");
    }

    #[test]
    fn the_axis_holds_all_values() {
        let line = |points: &[(f64, f64)]| [("fjall", points.to_vec())];
        assert_eq!(decades(&line(&[(0.0, 0.0), (1.0, 2.0), (2.0, 950.0)])), Some((0, 3)));
        assert_eq!(decades(&line(&[(0.0, 10.0)])), Some((1, 2)));
        assert_eq!(decades(&line(&[(0.0, 0.3)])), Some((-1, 0)));
        assert_eq!(decades(&line(&[(0.0, 0.0)])), None);
        assert_eq!(svg(Scale::Time, &[(0.5, 0.0)]), "");
        assert_eq!(svg(Scale::Share(1.0), &[]), "");
    }

    #[test]
    fn a_line_goes_from_edge_to_edge_of_its_frame() {
        let time = svg(Scale::Time, &[(0.0, 1.0), (8.0, 1_000.0)]);
        assert!(time.contains("<path class=\"one\" d=\"M64.0 280.0L628.0 10.0\">"), "{time}");
        assert!(time.contains(">1 ms</text>") && time.contains(">2 s</text>"), "{time}");
        let share = svg(Scale::Share(0.5), &[(0.0, 0.0), (8.0, 0.5)]);
        assert!(share.contains("d=\"M64.0 280.0L628.0 10.0\">") && share.contains(">50 %</text>"), "{share}");
    }

    #[test]
    fn powers_of_ten_are_formatted_as_times() {
        let said: Vec<String> = (-2..=7).map(time).collect();
        assert_eq!(
            said,
            ["10 ns", "100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s"]
        );
    }
}
