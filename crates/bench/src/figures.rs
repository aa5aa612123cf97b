//! Rates, ratios and rounding of the figures in a report.

/// Rounds to three digits after the decimal point: to nanoseconds, if the unit is microseconds.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

/// Returns `count / units`, or 0 if `units` is not positive.
#[expect(clippy::cast_precision_loss, reason = "counts and bytes of a run are far below 2^53")]
pub(crate) fn per(count: u64, units: f64) -> f64 {
    if units > 0.0 { count as f64 / units } else { 0.0 }
}

/// Returns `count / of`, or 0 if `of` is 0.
#[expect(clippy::cast_precision_loss, reason = "bytes and counts of a run are far below 2^53")]
pub(crate) fn ratio(count: u64, of: u64) -> f64 {
    per(count, of as f64)
}
