use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::handle::PressureMonitor;
use crate::{InvalidSetting, PressureConfig, Reading, Relief};

impl PressureMonitor {
    /// Registers a client. From the next sample on, the monitor's thread calls it when memory is
    /// short, until the registration ends.
    ///
    /// The monitor holds a weak pointer, so it keeps no client alive. A client that was dropped
    /// gets no further call; one that is in a call lives until the call ends.
    ///
    /// # Errors
    ///
    /// The monitor was shut down.
    pub fn register(&self, client: &Arc<dyn Relief>) -> io::Result<Registration> {
        if self.state().is_stopping() {
            return Err(io::Error::other("the memory-pressure monitor was shut down: start another one"));
        }
        Ok(Registration::enter(self.clone(), client, false))
    }
}

/// The registration of a client with its own or a shared monitor: see
/// [`PressureMonitor::register`]. Dropping it ends the registration without waiting.
///
/// It holds a handle of the monitor, which runs at least as long.
#[derive(Debug)]
#[must_use = "dropping it ends the registration"]
pub struct Registration {
    monitor: PressureMonitor,
    id: u64,
    owns_monitor: bool,
}

impl Registration {
    /// Starts a monitor for this client alone. The monitor ends with the registration.
    ///
    /// # Errors
    ///
    /// As [`PressureMonitor::start`].
    pub fn own(config: PressureConfig, client: &Arc<dyn Relief>) -> io::Result<Self> {
        let monitor = PressureMonitor::start(config)?;
        Ok(Self::enter(monitor, client, true))
    }

    fn enter(monitor: PressureMonitor, client: &Arc<dyn Relief>, owns_monitor: bool) -> Self {
        let id = monitor.state().clients.enter(client);
        monitor.state().note_joined(client.budget_bytes());
        Self { monitor, id, owns_monitor }
    }

    /// See [`PressureMonitor::latest`].
    #[must_use]
    pub fn latest(&self) -> Option<Reading> {
        self.monitor.latest()
    }

    /// Bytes that a client with this budget may use, if it uses `accounted_bytes` now. `None` if no
    /// hard limit exists.
    ///
    /// A hard limit is that of a control group, or
    /// [`memory_limit`](PressureConfig::memory_limit). What it leaves beside the memory of others
    /// is divided among the clients by their [budgets](Relief::budget_bytes).
    #[must_use]
    pub fn share(&self, budget_bytes: u64, accounted_bytes: u64) -> Option<u64> {
        Some(self.monitor.state().room()?.share(budget_bytes, accounted_bytes))
    }

    /// The monitor's thread panicked, so memory is not monitored.
    #[must_use]
    pub fn has_died(&self) -> bool {
        self.monitor.state().has_died()
    }

    /// Applies other settings to the client's own monitor. A shared monitor has its own settings:
    /// it keeps them.
    ///
    /// # Errors
    ///
    /// As [`PressureMonitor::reconfigure`].
    pub fn reconfigure(&self, config: &PressureConfig) -> Result<(), InvalidSetting> {
        if self.owns_monitor { self.monitor.reconfigure(config.clone()) } else { Ok(()) }
    }

    /// Ends the registration without waiting: no new call begins, but one may be in progress. Ends
    /// the client's own monitor.
    pub fn leave(&self) {
        self.monitor.state().clients.leave(self.id);
        if self.owns_monitor {
            self.monitor.stop();
        }
    }

    /// Ends the registration, and waits until no call is in progress and the client's own monitor
    /// has ended. Returns false if a call still runs at `by`. This blocks.
    #[must_use = "a call may still run"]
    pub fn leave_by(&self, by: Instant) -> bool {
        self.leave();
        let is_over = self.monitor.state().clients.wait_for_call(self.id, by);
        if is_over && self.owns_monitor {
            self.monitor.join();
        }
        is_over
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.leave();
    }
}
