//! What the handles of a store and of its spools share.

use std::sync::Arc;

use anyhow::Result;
use chrono::{DateTime, Utc};

use super::calls::scan::{Scan, ScanSource, Split};
use super::calls::walk::{SHORTEST_HANG, ScanState, Visitor, Walk};
use super::lifecycle::{threads, workers};
use super::state::{Shared, SpoolPart};
use crate::{RecoveryReport, StatsSnapshot};

/// An open store. Its threads end when the last handle is dropped.
pub(super) struct OpenStore {
    pub(super) shared: Arc<Shared>,
    pub(super) workers: Arc<workers::Workers>,
    pub(super) report: RecoveryReport,
}

impl OpenStore {
    /// Starts a walk over the messages of a spool that were created before `start_time`. Its
    /// channel holds `capacity` sent values.
    pub(super) fn scan<V: Visitor, T: Send + 'static>(
        &self,
        spool: &Arc<SpoolPart>,
        start_time: DateTime<Utc>,
        visitor: V,
        capacity: usize,
        split: Split<V::Sent, T>,
    ) -> Result<Scan<T>> {
        spool.check_open()?;
        let (sender, receiver) = async_channel::bounded(capacity);
        let state = Arc::<ScanState>::default();
        let (shared, spool) = (self.shared.clone(), spool.clone());
        let source = ScanSource {
            receiver,
            state: state.clone(),
            timer: shared.timer.clone(),
            patience: shared.config.load().enumerate_wait().max(SHORTEST_HANG),
        };
        let walk = Walk { shared, spool, start_time, visitor, sender, state: Some(state) };
        self.workers.enumerate(move || walk.run_scan())?;
        Ok(source.into_scan(split))
    }

    /// The statistics of all spools.
    pub(super) fn stats(&self) -> StatsSnapshot {
        self.shared.snapshot(&self.shared.spools.all())
    }

    #[cfg(feature = "prometheus")]
    pub(super) fn prometheus_text(&self) -> String {
        self.stats().prometheus_text()
    }

    pub(super) async fn shutdown(&self) -> Result<()> {
        if let Some(ended) = self.workers.ended() {
            return ended;
        }
        let (workers, shared) = (self.workers.clone(), self.shared.clone());
        match threads::aside(threads::names::END, move || workers.end(&shared)).await {
            Ok(ended) => ended,
            Err(error) => {
                // No thread could be created. Blocking the caller's thread is better than losing
                // dirty messages.
                tracing::warn!(%error, "shutting down on the caller's thread");
                self.workers.end(&self.shared)
            }
        }
    }
}

impl Drop for OpenStore {
    fn drop(&mut self) {
        // After a shutdown, the threads have ended and this has no effect.
        workers::Workers::abandon(&self.shared);
    }
}

impl std::fmt::Debug for OpenStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenStore").field("path", &self.shared.config.load().path).finish_non_exhaustive()
    }
}
