//! The disk space that the spool leaves free.

use crate::Config;
use crate::storage::Storage;

/// Returns the bytes that new segments leave free on disk. That is more than the health gate's
/// minimum, so that the spool does not shut its own gate, plus room for ballast, manifest and
/// index.
pub(in crate::tiered) fn keep_free(config: &Config, storage: &dyn Storage) -> u64 {
    let minimum = storage.space(&config.path).map_or(0, |space| space.minimum(&config.health));
    minimum + minimum / 4 + config.ballast + (4 << 20)
}
