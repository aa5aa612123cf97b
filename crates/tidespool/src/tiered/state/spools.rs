//! The spools of an open store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use tidespool_core::{Closed, SpoolId};

use super::hot_settings::HotSettings;
use crate::Config;
use crate::directory::SpoolNames;
use crate::message_id::{MessageId, SpoolNumber};
use crate::stats::SpoolStats;

/// What the callers of one spool share, and those of the others do not.
#[derive(Debug)]
pub(crate) struct SpoolPart {
    pub(crate) name: Box<str>,
    pub(crate) number: SpoolNumber,
    pub(crate) hot_settings: HotSettings,
    pub(crate) stats: SpoolStats,
    /// Calls fail: the spool was shut down or removed, or the store was shut down.
    closed: AtomicBool,
    /// A caller has opened the spool.
    in_use: AtomicBool,
}

impl SpoolPart {
    fn new(name: &str, number: SpoolNumber, config: &Config) -> Self {
        Self {
            name: name.into(),
            number,
            hot_settings: HotSettings::of(config, name),
            stats: SpoolStats::default(),
            closed: AtomicBool::new(false),
            in_use: AtomicBool::new(false),
        }
    }

    /// The message of the spool with this id.
    pub(crate) fn message(&self, id: SpoolId) -> MessageId {
        MessageId::new(self.number, id)
    }

    pub(crate) fn check_open(&self) -> Result<(), Closed> {
        if self.closed.load(Ordering::Acquire) { Err(Closed) } else { Ok(()) }
    }

    /// Makes all later calls fail. A call that saw the spool open holds its shard's lock until its
    /// change is inserted: take all locks once to wait for such calls.
    /// True if it was open until now.
    pub(crate) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }

    /// Ends [`close`](Self::close), after a removal that failed.
    pub(crate) fn reopen(&self) {
        self.closed.store(false, Ordering::Release);
    }

    /// A caller opens the spool. It can't be opened again after a shutdown of this spool.
    pub(crate) fn begin_use(&self) -> Result<(), Closed> {
        self.check_open()?;
        self.in_use.store(true, Ordering::Release);
        Ok(())
    }

    /// True if a caller has opened the spool and not shut it down.
    pub(crate) fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Acquire) && self.check_open().is_ok()
    }
}

/// The spools of an open store, in the order of their names.
#[derive(Debug)]
pub(crate) struct Spools(ArcSwap<Vec<Arc<SpoolPart>>>);

impl Spools {
    pub(crate) fn new(names: &SpoolNames, config: &Config) -> Self {
        let parts = names.iter().map(|(name, number)| Arc::new(SpoolPart::new(name, number, config)));
        Self(ArcSwap::from_pointee(parts.collect()))
    }

    pub(crate) fn all(&self) -> Arc<Vec<Arc<SpoolPart>>> {
        self.0.load_full()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<SpoolPart>> {
        self.0.load().iter().find(|part| &*part.name == name).cloned()
    }

    /// Returns the name of a number, for a log.
    pub(crate) fn name_of(&self, number: SpoolNumber) -> String {
        let parts = self.0.load();
        let part = parts.iter().find(|part| part.number == number);
        part.map_or_else(|| format!("unnamed-{number}"), |part| part.name.to_string())
    }

    /// Adds a spool. The caller holds the lock of the names.
    pub(crate) fn add(&self, name: &str, number: SpoolNumber, config: &Config) -> Arc<SpoolPart> {
        let part = Arc::new(SpoolPart::new(name, number, config));
        let mut parts = Vec::clone(&self.0.load());
        parts.push(part.clone());
        parts.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        self.0.store(Arc::new(parts));
        part
    }

    /// Drops a spool. The caller holds the lock of the names.
    pub(crate) fn remove(&self, name: &str) {
        let mut parts = Vec::clone(&self.0.load());
        parts.retain(|part| &*part.name != name);
        self.0.store(Arc::new(parts));
    }

    pub(crate) fn close_all(&self) {
        for part in &**self.0.load() {
            part.close();
        }
    }

    pub(crate) fn set_config(&self, config: &Config) {
        self.0.load().iter().for_each(|part| part.hot_settings.set(config, &part.name));
    }
}
