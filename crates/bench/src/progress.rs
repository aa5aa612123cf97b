//! How far a long phase is: one line on a terminal, which is written over.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Waits for `work`, and shows meanwhile how much of `total` is `done`, where standard error is a terminal.
pub(crate) async fn shown<T>(what: &str, done: &AtomicU64, total: u64, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let mut ticks = tokio::time::interval(SHOW_EVERY);
    // The first tick comes at once.
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
    // Where standard error is closed there is nobody to tell.
    drop(err.write_all(text.as_bytes()).and_then(|()| err.flush()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_the_share_and_never_more_than_all() {
        assert_eq!(line("storing", 5, 20), "\r\x1b[Kstoring: 25 % (5 of 20)");
        assert_eq!(line("storing", 25, 20), "\r\x1b[Kstoring: 100 % (20 of 20)");
        assert!(line("storing", 0, 0).contains("100 %"));
    }

    #[tokio::test]
    async fn the_result_is_that_of_the_work() {
        assert_eq!(shown("adding", &AtomicU64::new(0), 1, async { 1 + 1 }).await, 2);
    }
}
