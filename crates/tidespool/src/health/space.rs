//! When the free space of a file system is low.

use crate::storage::Space;
use crate::{HealthConfig, MinFree};

/// The default of `min_free` is the smaller of these two: on a large disk the bytes, which are
/// enough for eight segments of the default size; on a small disk the percentage.
const MIN_FREE_BYTES: u64 = 256 << 20;
const MIN_FREE_PERCENT: f64 = 5.0;

/// Free inodes that are always enough. The spool itself needs only a few: for new segments, the
/// manifest and sled's snapshots.
const ENOUGH_INODES: u64 = 1_000;

impl HealthConfig {
    /// True unless `min_free` is 0.
    pub(crate) fn checks_space(&self) -> bool {
        !matches!(self.min_free, Some(MinFree::Bytes(0) | MinFree::Percent(0.0)))
    }
}

impl Space {
    /// Free bytes below which [`is_short`](Self::is_short) returns true. 0 if it never does.
    pub(crate) fn minimum(&self, config: &HealthConfig) -> u64 {
        match config.min_free {
            // The size of the file system is unknown.
            _ if self.total_bytes == 0 => 0,
            None => MIN_FREE_BYTES.min(percent(self.total_bytes, MIN_FREE_PERCENT)),
            Some(MinFree::Bytes(bytes)) => bytes,
            Some(MinFree::Percent(least)) => percent(self.total_bytes, least),
        }
    }

    /// True if few bytes or few inodes are free.
    pub(crate) fn is_short(&self, config: &HealthConfig) -> bool {
        let min_inodes = ENOUGH_INODES.min(percent(self.total_inodes, MIN_FREE_PERCENT));
        config.checks_space() && (self.free_bytes < self.minimum(config) || self.free_inodes < min_inodes)
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a whole file system"
)]
fn percent(total: u64, percent: f64) -> u64 {
    (total as f64 * percent / 100.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn bytes(free_bytes: u64, total_bytes: u64) -> Space {
        Space { free_bytes, total_bytes, free_inodes: 1_000_000, total_inodes: 2_000_000, ..Space::default() }
    }

    #[track_caller]
    fn short(space: Space) -> bool {
        space.is_short(&HealthConfig::default())
    }

    #[test]
    fn on_a_large_disk_the_default_is_in_bytes() {
        assert!(!short(bytes(257 * MIB, 1_000 * GIB)));
        assert!(short(bytes(255 * MIB, 1_000 * GIB)));
    }

    #[test]
    fn on_a_small_disk_the_default_is_a_percentage() {
        assert!(!short(bytes(60 * MIB, GIB)), "5 % of 1 GiB is 51 MiB");
        assert!(short(bytes(50 * MIB, GIB)));
        assert!(short(bytes(0, GIB)));
    }

    #[test]
    fn min_free_is_in_bytes_or_a_percentage() {
        let bytes_free =
            |min_free, free| bytes(free, GIB).is_short(&HealthConfig::default().min_free(min_free));
        assert!(bytes_free(MinFree::Bytes(500 * MIB), 499 * MIB));
        assert!(!bytes_free(MinFree::Bytes(500 * MIB), 500 * MIB));
        assert!(bytes_free(MinFree::Percent(25.0), 255 * MIB));
        assert!(!bytes_free(MinFree::Percent(25.0), 256 * MIB));
    }

    #[test]
    fn few_free_inodes_are_low_space() {
        let inodes = |free_inodes, total_inodes| Space { free_inodes, total_inodes, ..bytes(GIB, 2 * GIB) };
        assert!(short(inodes(999, 1_000_000)));
        assert!(!short(inodes(1_000, 1_000_000)));
        assert!(!short(inodes(900, 1_000)), "a small file system with nearly all its inodes free");
        assert!(!short(inodes(0, 0)), "the file system creates inodes on demand");
    }

    #[test]
    fn zero_disables_the_checks() {
        let full = Space { total_bytes: GIB, total_inodes: 1_000, ..Space::default() };
        let bytes_only = Space { free_inodes: 1_000, ..full };
        assert!(bytes_only.is_short(&HealthConfig::default()));
        for zero in [MinFree::Bytes(0), MinFree::Percent(0.0)] {
            assert!(!bytes_only.is_short(&HealthConfig::default().min_free(zero)));
            assert!(!full.is_short(&HealthConfig::default().min_free(zero)));
        }
        assert!(full.is_short(&HealthConfig::default()));
    }

    #[test]
    fn an_unknown_size_is_not_low_space() {
        assert!(!short(Space::default()));
    }
}
