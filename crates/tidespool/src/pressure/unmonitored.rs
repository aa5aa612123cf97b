//! Takes the place of the monitor without the feature `pressure-monitor`: nothing samples memory,
//! and no spool is asked to free any.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::{PressureReading, Relief};
use crate::{ConfigError, PressureConfig};

/// Watches memory, if the feature `pressure-monitor` is on. It is off: no value can be made.
#[derive(Debug, Clone)]
pub enum PressureMonitor {}

#[derive(Debug)]
pub(crate) struct Registration;

impl Registration {
    pub(crate) fn own(_: PressureConfig, _: &Arc<dyn Relief>) -> io::Result<Self> {
        Ok(Self)
    }

    pub(crate) fn shared(monitor: &PressureMonitor, _: &Arc<dyn Relief>) -> io::Result<Self> {
        match *monitor {}
    }

    pub(crate) fn latest(&self) -> Option<PressureReading> {
        None
    }

    pub(crate) fn share(&self, _: u64, _: u64) -> Option<u64> {
        None
    }

    pub(crate) fn has_died(&self) -> bool {
        false
    }

    pub(crate) fn reconfigure(&self, config: &PressureConfig) -> Result<(), ConfigError> {
        config.validate()
    }

    pub(crate) fn stop(&self) {}

    pub(crate) fn join_by(&self, _: Instant) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_lite::future::block_on;
    use tidespool_core::{Spool as _, SpoolId};

    use crate::{Config, PressureLevel, TieredSpool};

    #[test]
    fn memory_is_freed_on_request_without_a_monitor() {
        let dir = tempfile::tempdir().unwrap();
        let spool = block_on(TieredSpool::open(Config::new(dir.path().join("spool")))).unwrap();
        let message: Arc<Box<[u8]>> = Arc::new(vec![7; 1 << 20].into());
        block_on(spool.store(SpoolId::new(), message, true, None)).unwrap();
        assert!(block_on(spool.advise_low_memory()).unwrap() >= 1 << 19);
        let now = spool.stats().gauges;
        assert_eq!((now.cache_entries, now.pressure_level), (0, PressureLevel::Normal));
        spool.reconfigure(Config::clone(&spool.config())).unwrap();
        block_on(spool.shutdown()).unwrap();
    }
}
