//! The progress of a long phase: a bar on standard error, if that is a terminal.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Returns a bar of `total` units.
pub(crate) fn bar(what: impl Into<String>, total: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg}: {percent} % ({human_pos} of {human_len}) {wide_bar} {eta}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(what.into())
}

/// Awaits `work` and meanwhile shows how much of `total` is `done`.
///
/// The bar reads the counter now and then: a bar that each operation advances would read the clock
/// in each operation.
pub(crate) async fn shown<T>(what: &str, done: &AtomicU64, total: u64, work: impl Future<Output = T>) -> T {
    let bar = bar(what, total);
    if bar.is_hidden() {
        return work.await;
    }
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval(SHOW_EVERY);
    loop {
        tokio::select! {
            result = &mut work => {
                bar.finish_and_clear();
                return result;
            }
            _ = ticks.tick() => bar.set_position(done.load(Ordering::Relaxed).min(total)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_result_of_the_work_is_returned() {
        assert_eq!(shown("adding", &AtomicU64::new(0), 1, async { 1 + 1 }).await, 2);
    }
}
