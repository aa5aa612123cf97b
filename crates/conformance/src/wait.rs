//! Bounded waits for events in another thread or task.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything may take before a test reports a hang. Far above normal times: it is not a
/// measurement.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the result of `future`, or panics with `what` after [`PATIENCE`].
///
/// # Panics
///
/// After [`PATIENCE`].
pub async fn bounded<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not done after {PATIENCE:?}"),
    }
}

/// Polls `condition` until it is true: for a counter or gauge that another thread changes.
///
/// # Panics
///
/// After [`PATIENCE`].
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}: not so after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
