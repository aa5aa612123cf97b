//! The progress of a long phase: one line on a terminal, updated in place.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Awaits `work` and meanwhile shows how much of `total` is `done`, if standard error is a
/// terminal.
pub(crate) async fn shown<T>(what: &str, done: &AtomicU64, total: u64, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let mut ticks = tokio::time::interval(SHOW_EVERY);
    // The first tick completes immediately.
    ticks.tick().await;
    let mut shown = false;
    loop {
        tokio::select! {
            result = &mut work => {
                if shown {
                    print("\r\x1b[K");
                }
                return result;
            }
            _ = ticks.tick() => {
                shown = true;
                print(&line(what, done.load(Ordering::Relaxed), total));
            }
        }
    }
}

fn line(what: &str, done: u64, total: u64) -> String {
    let done = done.min(total);
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
    format!("\r\x1b[K{what}: {percent} % ({done} of {total})")
}

fn print(text: &str) {
    let mut err = std::io::stderr();
    // Standard error may be closed.
    drop(err.write_all(text.as_bytes()).and_then(|()| err.flush()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_the_share_and_at_most_100_percent() {
        assert_eq!(line("storing", 5, 20), "\r\x1b[Kstoring: 25 % (5 of 20)");
        assert_eq!(line("storing", 25, 20), "\r\x1b[Kstoring: 100 % (20 of 20)");
        assert!(line("storing", 0, 0).contains("100 %"));
    }

    #[tokio::test]
    async fn the_result_of_the_work_is_returned() {
        assert_eq!(shown("adding", &AtomicU64::new(0), 1, async { 1 + 1 }).await, 2);
    }
}
