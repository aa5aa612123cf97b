//! Takes the place of the monitor without the feature `monitor`: nothing samples memory, and no
//! client is asked to free any.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::{InvalidSetting, PressureConfig, Reading, Relief};

/// Watches memory, if the feature `monitor` is on. It is off: no value can be made.
#[derive(Debug, Clone)]
pub enum PressureMonitor {}

impl PressureMonitor {
    /// Registers a client. Cannot be called.
    ///
    /// # Errors
    ///
    /// None.
    pub fn register(&self, _: &Arc<dyn Relief>) -> io::Result<Registration> {
        match *self {}
    }
}

/// The registration of a client. The feature `monitor` is off: it has no monitor.
#[derive(Debug)]
pub struct Registration(());

impl Registration {
    /// Makes a registration without a monitor.
    ///
    /// # Errors
    ///
    /// None.
    pub fn own(_: PressureConfig, _: &Arc<dyn Relief>) -> io::Result<Self> {
        Ok(Self(()))
    }

    /// Returns `None`: nothing samples memory.
    #[must_use]
    pub fn latest(&self) -> Option<Reading> {
        None
    }

    /// Returns `None`: no limit is known.
    #[must_use]
    pub fn share(&self, _budget_bytes: u64, _accounted_bytes: u64) -> Option<u64> {
        None
    }

    /// Returns false: there is no thread.
    #[must_use]
    pub fn has_died(&self) -> bool {
        false
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// A setting is out of bounds.
    pub fn reconfigure(&self, config: &PressureConfig) -> Result<(), InvalidSetting> {
        config.validate()
    }

    /// Does nothing.
    pub fn leave(&self) {}

    /// Returns true: no call is in progress.
    #[must_use]
    pub fn leave_by(&self, _by: Instant) -> bool {
        true
    }
}
