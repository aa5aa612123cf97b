//! How a run is stopped early: the flag that the callers poll, and the error of the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The run was interrupted. There is no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted: there is no report")]
pub struct Interrupted;

/// A flag that stops all callers. An interrupt sets it, and a caller that fails.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
