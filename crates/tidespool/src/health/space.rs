//! When the free space of a file system is low.

use crate::HealthConfig;
use crate::storage::Space;

impl Space {
    /// Free bytes below which [`is_short`](Self::is_short) returns true. 0 if it never does.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a whole file system"
    )]
    pub(crate) fn minimum(&self, config: &HealthConfig) -> u64 {
        config.min_free_bytes.min((self.total_bytes as f64 * config.min_free_fraction) as u64)
    }

    /// True if the free bytes are below both `min_free_bytes` and `min_free_fraction`, or the free
    /// inodes are below their limits. A total of 0 means that the size is unknown.
    pub(crate) fn is_short(&self, config: &HealthConfig) -> bool {
        // A minimum of 0 disables its check: no value is below 0.
        let below = |free, total, least| free < least && is_under(free, total, config.min_free_fraction);
        below(self.free_bytes, self.total_bytes, config.min_free_bytes)
            || below(self.free_inodes, self.total_inodes, config.min_free_inodes)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share of a whole file system")]
fn is_under(free: u64, total: u64, fraction: f64) -> bool {
    total > 0 && (free as f64) < total as f64 * fraction
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
    fn on_a_large_disk_min_free_bytes_applies() {
        assert!(!short(bytes(257 * MIB, 1_000 * GIB)));
        assert!(short(bytes(255 * MIB, 1_000 * GIB)));
    }

    #[test]
    fn on_a_small_disk_min_free_fraction_applies() {
        assert!(!short(bytes(60 * MIB, GIB)), "5 % of 1 GiB is 51 MiB");
        assert!(short(bytes(50 * MIB, GIB)));
        assert!(short(bytes(0, GIB)));
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
    fn zero_disables_a_check() {
        let full = Space { total_bytes: GIB, total_inodes: 1_000, ..Space::default() };
        let bytes_only = Space { free_inodes: 1_000, ..full };
        assert!(!bytes_only.is_short(&HealthConfig::default().min_free_bytes(0)));
        let inodes_only = Space { free_bytes: GIB, ..full };
        assert!(!inodes_only.is_short(&HealthConfig::default().min_free_inodes(0)));
        assert!(!full.is_short(&HealthConfig::default().min_free_fraction(0.0)));
        assert!(full.is_short(&HealthConfig::default()));
    }

    #[test]
    fn an_unknown_size_is_not_low_space() {
        assert!(!short(Space::default()));
    }
}
