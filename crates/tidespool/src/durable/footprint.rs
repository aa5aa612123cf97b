//! How much memory sled uses: an estimate, as it does not tell, and uses more than its
//! `cache_capacity`.
//!
//! What it holds, by its source and by measuring it (the test `measure`), where each of its records
//! is a [block](super::block):
//!
//! * For each leaf, in memory or not: a page, a list of where its pieces are, entries in the page
//!   table, in the cache and in a segment. A leaf has nine blocks where they came in order. The list
//!   is exact after a filing; read at open it has room for four pieces; and each change of a block
//!   that was there before adds a piece.
//! * The leaves in its cache. It counts each as its bytes on disk, rounded up to a power of two; in
//!   memory a leaf has room for sixteen keys and values of 40 bytes each, and an allocation for each
//!   value.
//! * Leaves that were read and are not counted yet: it queues 64 accesses in each of 256 shards
//!   before it looks at them. Half of these places are taken, in the mean; a scan or random loads
//!   take each for another leaf, a filing in order takes ten for one.
//!
//! Leaves are read on several threads and let go of by others. An allocator with a heap for each
//! thread (glibc's arenas) keeps the room of the cached leaves about twice: what one thread frees
//! into another one's heap waits there for that one. This is counted once anybody has read. With one
//! heap for all (`MALLOC_ARENA_MAX=1`) it is not there, and the estimate is too high by as much.

use std::sync::atomic::{AtomicU64, Ordering};

use super::packed::Applied;

/// Blocks in a leaf: one of 17 is split, and what is filed in order stays with the left half.
const IN_A_LEAF: u64 = 9;
/// Bytes for each block, cached or not.
const PER_BLOCK: u64 = 25;
/// More bytes for each block that was there when sled was opened.
const PER_OPENED: u64 = 17;
/// More bytes for each change or removal of a block that was there before.
const PER_CHANGE: u64 = 24;
/// A leaf may have so many pieces; then it is written as one.
const PIECES: u64 = 10;
/// A cached leaf without its blocks.
const LEAF: u64 = 1_530;
/// A block in a cached leaf beside its bytes.
const BESIDE_VALUE: u64 = 27;
/// A leaf on disk without its blocks, and a block in it beside its bytes.
const LEAF_ON_DISK: u64 = 60;
const BESIDE_VALUE_ON_DISK: u64 = 12;
/// Leaves that wait to be counted after a filing, and after many were read.
const QUEUED_BY_CHECKPOINT: u64 = 800;
const QUEUED_BY_READING: u64 = 8_192;
/// Tables.
const FIXED: u64 = 4 << 20;
/// What is under way between a change and its flush, and what epochs keep of it: at most so much, and an eighth of the file.
const UNDER_WAY: u64 = 14 << 20;

/// sled's own count of its cache is so many times too low for locators, the smallest records: they are most of what is
/// filed.
pub(super) const CACHE_FACTOR: u64 = 4;

/// What was seen of the blocks.
#[derive(Debug, Default)]
pub(super) struct Footprint {
    seen: AtomicU64,
    seen_bytes: AtomicU64,
    /// Leaves that somebody read, the same one perhaps often.
    leaves_read: AtomicU64,
    /// Of the first count and the changes since; 0 where nothing was counted yet.
    blocks: AtomicU64,
    /// Of the first count.
    opened: AtomicU64,
    /// Blocks that were replaced or removed.
    changed: AtomicU64,
}

impl Footprint {
    /// These changes were made.
    pub(super) fn made(&self, made: &Applied) {
        self.saw(made.written_blocks, made.bytes as u64);
        self.blocks.fetch_add(made.more_blocks, Ordering::Relaxed);
        self.changed.fetch_add(made.changed_blocks, Ordering::Relaxed);
    }

    /// A block was read, by itself.
    pub(super) fn read(&self) {
        self.leaves_read.fetch_add(1, Ordering::Relaxed);
    }

    /// For whoever reads many in order: what it saw is counted when it is dropped, so that threads do not get in each other's way.
    pub(super) fn watch(&self) -> FootprintWatch<'_> {
        FootprintWatch { footprint: self, seen: 0, bytes: 0 }
    }

    fn saw(&self, blocks: u64, bytes: u64) {
        self.seen.fetch_add(blocks, Ordering::Relaxed);
        self.seen_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Resident bytes, given the `cache_capacity` of sled and the bytes on disk (which bound the blocks as long as none were counted).
    pub(super) fn resident_bytes(&self, cache_capacity: u64, size_on_disk: u64) -> u64 {
        let seen = self.seen.load(Ordering::Relaxed);
        let block = self.seen_bytes.load(Ordering::Relaxed).checked_div(seen).unwrap_or(0);
        let opened = self.opened.load(Ordering::Relaxed);
        // Read beside changes, it can be below 0 for a moment.
        let most = size_on_disk / BESIDE_VALUE_ON_DISK;
        let blocks = match self.blocks.load(Ordering::Relaxed) {
            0 => size_on_disk / (block + BESIDE_VALUE_ON_DISK),
            // Leaves that lost blocks stay until they have fewer than four.
            blocks => blocks.min(most).max(opened),
        };
        let leaves = blocks.div_ceil(IN_A_LEAF);
        let changes = self.changed.load(Ordering::Relaxed).min(leaves * PIECES);
        let on_disk = LEAF_ON_DISK + IN_A_LEAF * (block + BESIDE_VALUE_ON_DISK);
        let counted = cache_capacity / on_disk.next_power_of_two();
        let queued = (QUEUED_BY_CHECKPOINT + self.leaves_read.load(Ordering::Relaxed)).min(QUEUED_BY_READING);
        let cached = counted.saturating_add(queued).min(leaves);
        let cached = cached * (LEAF + IN_A_LEAF * (block + BESIDE_VALUE));
        let kept_by_heaps = if queued < QUEUED_BY_READING { 0 } else { cached };
        FIXED
            + (size_on_disk / 8).min(UNDER_WAY)
            + blocks * PER_BLOCK
            + opened.min(most) * PER_OPENED
            + changes * PER_CHANGE
            + cached
            + kept_by_heaps
    }
}

/// What one reader saw, not yet counted.
pub(super) struct FootprintWatch<'a> {
    footprint: &'a Footprint,
    seen: u64,
    bytes: u64,
}

impl FootprintWatch<'_> {
    pub(super) fn saw(&mut self, len: usize) {
        self.seen += 1;
        self.bytes += len as u64;
    }

    /// Everything that there is was seen. The first time after an opening says what was there then.
    pub(super) fn saw_all(&self) {
        let Footprint { blocks, opened, .. } = self.footprint;
        if blocks.compare_exchange(0, self.seen, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            opened.store(self.seen, Ordering::Relaxed);
        }
    }
}

impl Drop for FootprintWatch<'_> {
    fn drop(&mut self) {
        self.footprint.saw(self.seen, self.bytes);
        self.footprint.leaves_read.fetch_add(self.seen.div_ceil(IN_A_LEAF), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn make(footprint: &Footprint, written: u64, len: usize, more: u64, changed: u64) {
        footprint.made(&Applied {
            written_blocks: written,
            bytes: usize::try_from(written).unwrap() * len,
            more_blocks: more,
            changed_blocks: changed,
            ..Applied::default()
        });
    }

    /// The estimates after a filing, a scan, an opening with 200 000 random loads, and the removal of half.
    fn estimates(records: u64, value: usize, cache_mib: u64, disk_mib: u64) -> [u64; 4] {
        let mib = |footprint: &Footprint| footprint.resident_bytes(cache_mib * MIB, disk_mib * MIB) / MIB;
        let filed = Footprint::default();
        make(&filed, records, value, records, 0);
        let after_checkpoint = mib(&filed);
        let mut scan = filed.watch();
        (0..records).for_each(|_| scan.saw(value));
        drop(scan);
        let after_scan = mib(&filed);
        let reopened = Footprint::default();
        let mut scan = reopened.watch();
        (0..records).for_each(|_| scan.saw(value));
        scan.saw_all();
        drop(scan);
        (0..200_000).for_each(|_| reopened.read());
        let after_reading = mib(&reopened);
        make(&reopened, 0, value, 0_u64.wrapping_sub(records / 2), records / 2);
        [after_checkpoint, after_scan, after_reading, mib(&reopened)]
    }

    #[test]
    fn it_is_near_what_was_measured() {
        // The test `measure`, on glibc, with a share of 16 MiB of which sled is given 4, and with
        // one message in each block.
        for (records, value, disk, measured) in [
            (1_000_000, 37, 181, [57, 100, 112, 135]),
            (1_000_000, 213, 466, [55, 96, 108, 132]),
            (3_000_000, 37, 545, [98, 167, 192, 235]),
        ] {
            let estimates = estimates(records, value, 4, disk);
            for (estimate, measured) in estimates.iter().zip(measured) {
                let error = estimate.abs_diff(measured) * 100 / measured;
                assert!(error <= 15, "{records} × {value}: {estimates:?}");
            }
        }
    }

    #[test]
    fn for_full_blocks_it_is_not_below_what_was_measured_and_not_far_above() {
        // The same, with keys in order: 1 and 3 million messages.
        for (blocks, bytes, disk, measured) in
            [(31_250, 250, 14, [10, 18, 24, 26]), (93_750, 250, 41, [10, 28, 45, 46])]
        {
            let estimates = estimates(blocks, bytes, 4, disk);
            for (estimate, measured) in estimates.iter().zip(measured) {
                let is_near = *estimate * 10 >= measured * 9 && *estimate <= measured * 3;
                assert!(is_near, "{blocks} × {bytes}: {estimates:?}");
            }
        }
    }

    #[test]
    fn a_little_counts_little() {
        let footprint = Footprint::default();
        make(&footprint, 1_000, 37, 1_000, 0);
        assert!(footprint.resident_bytes(16 * MIB, 2 * MIB) < 6 * MIB);
    }

    #[test]
    fn an_empty_or_uncounted_store_has_an_estimate_too() {
        let footprint = Footprint::default();
        assert_eq!(footprint.resident_bytes(1 << 30, 0), FIXED);
        let uncounted = footprint.resident_bytes(1 << 30, 1 << 30);
        assert!(uncounted > 1 << 30, "{uncounted}");
        make(&footprint, 0, 0, 0_u64.wrapping_sub(5), 5);
        assert!(footprint.resident_bytes(u64::MAX, 1 << 30) < 100 << 30, "no overflow");
    }
}
