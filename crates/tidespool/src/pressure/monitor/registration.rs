use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::handle::PressureMonitor;
use crate::pressure::{PressureReading, Relief};
use crate::{ConfigError, PressureConfig};

/// The registration of a spool with its own or a shared monitor. Dropping it ends the registration
/// without waiting.
#[derive(Debug)]
pub(crate) struct Registration {
    monitor: PressureMonitor,
    id: u64,
    owns_monitor: bool,
}

impl Registration {
    /// Starts a monitor for this spool. The monitor ends with the spool.
    ///
    /// # Errors
    ///
    /// As [`PressureMonitor::start`].
    pub(crate) fn own(config: PressureConfig, relief: &Arc<dyn Relief>) -> io::Result<Self> {
        let monitor = PressureMonitor::start(config)?;
        Ok(Self::enter(monitor, relief, true))
    }

    /// Registers with a shared monitor.
    ///
    /// # Errors
    ///
    /// The monitor was shut down.
    pub(crate) fn shared(monitor: &PressureMonitor, relief: &Arc<dyn Relief>) -> io::Result<Self> {
        if monitor.state().is_stopping() {
            return Err(io::Error::other("the memory-pressure monitor was shut down: start another one"));
        }
        Ok(Self::enter(monitor.clone(), relief, false))
    }

    fn enter(monitor: PressureMonitor, relief: &Arc<dyn Relief>, owns_monitor: bool) -> Self {
        let id = monitor.state().spools.enter(relief);
        monitor.state().note_joined(relief.accounted_of().1);
        Self { monitor, id, owns_monitor }
    }

    /// See [`PressureMonitor::latest`].
    pub(crate) fn latest(&self) -> Option<PressureReading> {
        self.monitor.latest()
    }

    /// Bytes that a spool with this budget may use, if it uses `accounted` bytes now. `None` if no
    /// hard limit exists.
    pub(crate) fn share(&self, budget: u64, accounted: u64) -> Option<u64> {
        Some(self.monitor.state().room()?.share(budget, accounted))
    }

    /// The monitor's thread panicked, so memory is not monitored.
    pub(crate) fn has_died(&self) -> bool {
        self.monitor.state().has_died()
    }

    /// Applies other settings to the spool's own monitor. A shared monitor has its own settings.
    ///
    /// # Errors
    ///
    /// As [`PressureMonitor::reconfigure`].
    pub(crate) fn reconfigure(&self, config: &PressureConfig) -> Result<(), ConfigError> {
        if self.owns_monitor { self.monitor.reconfigure(config.clone()) } else { Ok(()) }
    }

    /// Stops new calls into the spool; a call may be in progress. Ends the spool's own monitor.
    pub(crate) fn stop(&self) {
        self.monitor.state().spools.leave(self.id);
        if self.owns_monitor {
            self.monitor.stop();
        }
    }

    /// Waits until no call is in progress and the spool's own monitor has ended. Call
    /// [`stop`](Self::stop) first. Returns false if a call still runs at `by`.
    pub(crate) fn join_by(&self, by: Instant) -> bool {
        let is_over = self.monitor.state().spools.wait_for_call(self.id, by);
        if is_over && self.owns_monitor {
            self.monitor.join();
        }
        is_over
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.stop();
    }
}
