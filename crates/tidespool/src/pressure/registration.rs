use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::monitor::{PressureMonitor, PressureReading};
use super::room::MemoryRoom;
use super::spools::Relief;
use crate::{ConfigError, PressureConfig};

/// A spool's place with a monitor: its own one, or one that it shares. Dropping it gives the place up, without waiting.
#[derive(Debug)]
pub(crate) struct Registration {
    monitor: PressureMonitor,
    id: u64,
    owns_monitor: bool,
}

impl Registration {
    /// With a monitor that is started for this spool, and ends with it.
    ///
    /// # Errors
    ///
    /// As [`PressureMonitor::start`].
    pub(crate) fn own(config: PressureConfig, relief: &Arc<dyn Relief>) -> io::Result<Self> {
        let monitor = PressureMonitor::start(config)?;
        Ok(Self::enter(monitor, relief, true))
    }

    /// With a monitor that others may share.
    ///
    /// # Errors
    ///
    /// It was shut down.
    pub(crate) fn shared(monitor: PressureMonitor, relief: &Arc<dyn Relief>) -> io::Result<Self> {
        if monitor.state().is_stopping() {
            return Err(io::Error::other("the memory-pressure monitor was shut down: start another one"));
        }
        Ok(Self::enter(monitor, relief, false))
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

    /// What its spools may take together, where a limit kills.
    pub(crate) fn room(&self) -> Option<MemoryRoom> {
        self.monitor.state().room()
    }

    /// The monitor's thread panicked: nobody watches memory.
    pub(crate) fn has_died(&self) -> bool {
        self.monitor.state().has_died()
    }

    /// Gives other settings to the spool's own monitor. One that is shared has settings of its own.
    ///
    /// # Errors
    ///
    /// As [`PressureMonitor::reconfigure`].
    pub(crate) fn reconfigure(&self, config: PressureConfig) -> Result<(), ConfigError> {
        if self.owns_monitor { self.monitor.reconfigure(config) } else { Ok(()) }
    }

    /// The spool is not called any more, but a call may be under way. Its own monitor is told to end.
    pub(crate) fn stop(&self) {
        self.monitor.state().spools.leave(self.id);
        if self.owns_monitor {
            self.monitor.stop();
        }
    }

    /// Waits until no call is under way, and until the spool's own monitor has ended. Call [`stop`](Self::stop) before.
    /// False if a call hangs: it is waited for until `by`.
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
