//! Bounded waits for what happens elsewhere, on another thread or task.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything may take before a test calls it a hang. Far above what is normal: it is no measurement.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The result of `future`, or a panic that names `what` after [`PATIENCE`].
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

/// Asks `condition` again and again until it holds: for a counter or gauge that another thread moves.
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
