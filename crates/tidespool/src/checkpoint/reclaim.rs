//! Decides when removals are checkpointed early, to free disk space. A removed message keeps its
//! bytes on disk until its removal is in the index.
//!
//! The bound: the files take at most 1.5 times the live bytes plus the journal's capacity.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::value_log::retained::{Retained, RetainedMap};
use super::{CheckpointInbox, LiveIndex};
use crate::journal::{Role, Segment, Segments};

/// Counting takes at most one part in this many of the thread's time. Early checkpoints take at
/// most half of it.
const SHARE: u32 = 10;

/// The wait for removals that are not in the journal yet.
const ON_THE_WAY: Duration = Duration::from_millis(100);

/// Live bytes in the journal and pending removals, from the in-memory index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Payload bytes.
    pub(crate) live_bytes: u64,
    /// Removals not yet applied to the index on disk.
    pub(crate) removals: u64,
}

/// Bytes that the files take, and bytes that live.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DiskUse {
    /// The retained segments, as the manifest counts them.
    pub(crate) retained: Retained,
    pub(crate) survey: Survey,
    /// Bytes of the journal's segments, free ones included.
    pub(crate) journal: u64,
    /// The journal's current capacity, in bytes.
    pub(crate) capacity: u64,
    /// The disk has no space for another segment.
    pub(crate) is_blocked: bool,
    /// Bytes of the ballast, and of the index's file beyond what its records need.
    pub(crate) others: u64,
}

impl DiskUse {
    /// Estimates the bytes that the removals free. The manifest does not have the size of each
    /// message.
    fn removed_bytes(&self) -> u64 {
        let average = self.retained.live_bytes / self.retained.live.max(1);
        (self.survey.removals * average).min(self.retained.live_bytes)
    }

    /// Returns by how many bytes the files exceed their bound once the removals are applied.
    fn excess(&self) -> u64 {
        let live = self.retained.live_bytes - self.removed_bytes() + self.survey.live_bytes;
        let files = self.retained.size + self.journal + self.others;
        files.saturating_sub(live + live / 2 + self.capacity)
    }

    /// Returns how many more removals may come before a checkpoint is due. They free at least one
    /// segment, because less is not worth a checkpoint.
    fn removals_left(&self, segment_size: u64) -> u64 {
        let live = self.retained.live_bytes + self.survey.live_bytes;
        let files = self.retained.size + self.journal + self.others;
        let allowed = match self.is_blocked {
            true => self.worth(segment_size),
            false => live.saturating_sub(files.saturating_sub(self.capacity) / 3 * 2).max(segment_size),
        };
        let average = (self.retained.live_bytes / self.retained.live.max(1)).max(1);
        (allowed.saturating_sub(self.removed_bytes()) / average).max(1)
    }

    /// Returns true if the removals must be checkpointed now. On a disk without space for another
    /// segment, all dead bytes are worth reclaiming.
    fn is_due(&self, segment_size: u64) -> bool {
        (self.is_blocked || self.excess() > 0) && self.removed_bytes() >= self.worth(segment_size)
    }

    /// Returns the removed bytes that justify a checkpoint: one segment, or all live bytes if those
    /// are fewer.
    fn worth(&self, segment_size: u64) -> u64 {
        segment_size.min(self.retained.live_bytes).max(1)
    }

    /// Returns how many free segments to delete. 0 while pending removals can still free space.
    fn spare_segments(&self, segment_size: u64) -> u64 {
        if self.survey.removals > 0 { 0 } else { self.excess().div_ceil(segment_size) }
    }
}

/// The decision of [`ReclaimPolicy::look`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReclaimDecision {
    Nothing,
    /// Seal the active segment, because everything up to its generation must be checkpointed.
    Seal,
    /// Delete this many free segments.
    Trim(u64),
}

/// Checks at bounded intervals whether removals have freed enough to checkpoint them early.
#[derive(Debug, Default)]
pub(crate) struct ReclaimPolicy {
    /// Segments up to this generation must be checkpointed, and when that was requested.
    wanted: Option<(u64, Instant)>,
    not_before: Option<Instant>,
    /// The last check was postponed.
    is_deferred: bool,
}

impl ReclaimPolicy {
    /// Segments up to this generation are due.
    pub(crate) fn due(&self) -> u64 {
        self.wanted.map_or(0, |(generation, _)| generation)
    }

    /// Returns when to check again if no request comes earlier.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.is_deferred)
    }

    /// Decides what to do. `others`: see [`DiskUse`].
    pub(crate) fn look(
        &mut self,
        retained: &RetainedMap,
        segments: &Segments,
        source: &dyn LiveIndex,
        inbox: &CheckpointInbox,
        checkpointed_generation: u64,
        others: impl FnOnce() -> u64,
    ) -> ReclaimDecision {
        let started = Instant::now();
        match self.wanted {
            Some((generation, _)) if generation > checkpointed_generation => return ReclaimDecision::Nothing,
            Some((_, asked)) => {
                self.wanted = None;
                self.not_before = Some(started + asked.elapsed());
            }
            None => {}
        }
        self.is_deferred = self.not_before.is_some_and(|at| started < at);
        if self.is_deferred {
            return ReclaimDecision::Nothing;
        }
        let pool = segments.pool();
        // Resets the counter first, so that a removal missing from the survey is counted.
        inbox.count_removals();
        let disk_use = DiskUse {
            retained: retained.values().fold(Retained::default(), Retained::plus),
            survey: source.survey(),
            journal: pool.counted_bytes(),
            capacity: pool.capacity() as u64 * pool.segment_size(),
            is_blocked: pool.is_blocked(),
            others: others(),
        };
        self.not_before = Some(Instant::now() + started.elapsed().saturating_mul(SHARE));
        // Nothing waits for a segment, so nothing else seals the active one.
        let is_active_dead = disk_use.is_blocked
            && pool.active_is_used_up()
            && disk_use.survey.live_bytes <= pool.segment_size() / 2;
        if is_active_dead || disk_use.is_due(pool.segment_size()) {
            let is_uncheckpointed = |segment: &Arc<Segment>| {
                segment.role == Role::Journal && segment.generation > checkpointed_generation
            };
            match segments.all().into_iter().rfind(is_uncheckpointed) {
                Some(newest) => self.wanted = Some((newest.generation, Instant::now())),
                // The removals are not in the journal yet.
                None => (self.is_deferred, self.not_before) = (true, Some(Instant::now() + ON_THE_WAY)),
            }
            return ReclaimDecision::Seal;
        }
        inbox.kick_after_removals(disk_use.removals_left(pool.segment_size()));
        match disk_use.spare_segments(pool.segment_size()) {
            0 => ReclaimDecision::Nothing,
            spare => ReclaimDecision::Trim(spare),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Retained segments of 100 MiB full of 16 KiB messages, and a full journal.
    fn disk_use(removals: u64) -> DiskUse {
        let retained = Retained { size: 100 * MIB, live_bytes: 100 * MIB, live: 6_400 };
        let survey = Survey { live_bytes: 0, removals };
        DiskUse { retained, survey, journal: 32 * MIB, capacity: 32 * MIB, others: 0, is_blocked: false }
    }

    #[test]
    fn removals_are_checkpointed_when_the_files_exceed_their_bound() {
        assert_eq!(disk_use(0).excess(), 0);
        assert!(!disk_use(2_100).is_due(8 * MIB), "67 MiB live: 100 are allowed");
        assert!(disk_use(2_200).is_due(8 * MIB), "65 MiB live: 98 are allowed");
        assert!(!disk_use(2_200).is_due(64 * MIB), "less than a segment is not worth it");
        let left = disk_use(100).removals_left(8 * MIB);
        assert!((1_950..2_050).contains(&left), "{left}");
        assert!(disk_use(100 + left + 150).is_due(8 * MIB));
    }

    #[test]
    fn live_journal_bytes_and_unused_capacity_count() {
        let busy = DiskUse { survey: Survey { live_bytes: 20 * MIB, removals: 3_000 }, ..disk_use(0) };
        assert!(!busy.is_due(8 * MIB), "{}", busy.excess());
        let small = DiskUse { journal: 8 * MIB, ..disk_use(3_000) };
        assert!(!small.is_due(8 * MIB), "{}", small.excess());
        assert!(disk_use(3_000).is_due(8 * MIB));
    }

    #[test]
    fn the_last_removals_are_due_even_if_they_free_little() {
        let retained = Retained { size: 8 * MIB, live_bytes: MIB, live: 64 };
        let last = DiskUse { retained, ..disk_use(64) };
        assert!(last.is_due(8 * MIB));
    }

    /// On a small disk the journal never reaches its capacity. The files never exceeded their
    /// bound, so segments full of removed messages were not recycled.
    #[test]
    fn on_a_full_disk_removals_worth_a_segment_are_due() {
        let blocked = DiskUse { is_blocked: true, capacity: 1024 * MIB, ..disk_use(512) };
        assert!(blocked.is_due(8 * MIB));
        assert!(!DiskUse { is_blocked: false, ..blocked }.is_due(8 * MIB));
        let fewer = DiskUse { survey: Survey { live_bytes: 0, removals: 500 }, ..blocked };
        assert!(!fewer.is_due(8 * MIB));
        assert_eq!(fewer.removals_left(8 * MIB), 12);
    }

    #[test]
    fn free_segments_are_trimmed_when_no_removals_are_pending() {
        let empty = DiskUse { retained: Retained::default(), others: 9 * MIB, ..disk_use(0) };
        assert_eq!(empty.spare_segments(8 * MIB), 2);
        let waits = DiskUse { survey: Survey { live_bytes: 0, removals: 1 }, ..empty };
        assert_eq!(waits.spare_segments(8 * MIB), 0);
        assert_eq!(disk_use(0).spare_segments(8 * MIB), 0);
    }
}
