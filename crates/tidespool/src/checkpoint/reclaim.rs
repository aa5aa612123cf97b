//! Removals of filed messages are filed early where they free much: until sled knows of them, the dead keep their bytes on disk.
//!
//! The bound: the files take no more than one and a half times what lives, and the journal's capacity.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::value_log::retained::{Retained, RetainedMap};
use super::{CheckpointRequests, LiveIndex};
use crate::journal::{Role, Segment, Segments};

/// Counting takes at most one part in so many of the thread's time; filing early, half of it.
const SHARE: u32 = 10;

/// How long to wait for removals of which the journal has none yet.
const ON_THE_WAY: Duration = Duration::from_millis(100);

/// What lives in the journal, and what was removed, by the index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Payload bytes.
    pub(crate) live_bytes: u64,
    /// Removals that sled was not told of.
    pub(crate) removals: u64,
}

/// What the files take and what lives, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DiskUse {
    /// Of the retained segments, by the manifest.
    pub(crate) retained: Retained,
    pub(crate) survey: Survey,
    /// Of the journal's segments, free ones included.
    pub(crate) journal: u64,
    /// The journal's capacity in force.
    pub(crate) capacity: u64,
    /// The disk has no room for another segment.
    pub(crate) is_blocked: bool,
    /// Of the ballast, and what sled's file takes beyond what its records need.
    pub(crate) others: u64,
}

impl DiskUse {
    /// Bytes that the removals free, estimated: the manifest does not say how large each message is.
    fn removed_bytes(&self) -> u64 {
        let average = self.retained.live_bytes / self.retained.live.max(1);
        (self.survey.removals * average).min(self.retained.live_bytes)
    }

    /// By how much the files will be over their bound when the removals are counted.
    fn excess(&self) -> u64 {
        let live = self.retained.live_bytes - self.removed_bytes() + self.survey.live_bytes;
        let files = self.retained.size + self.journal + self.others;
        files.saturating_sub(live + live / 2 + self.capacity)
    }

    /// More removals that can come before something is to be done. At least as many as free a segment: less is not worth a checkpoint.
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

    /// The removals are to be filed now. On a disk without room for another segment, whatever is
    /// dead is wanted back.
    fn is_due(&self, segment_size: u64) -> bool {
        (self.is_blocked || self.excess() > 0) && self.removed_bytes() >= self.worth(segment_size)
    }

    /// Removed bytes that are worth a checkpoint: as much as a segment, or all that lives.
    fn worth(&self, segment_size: u64) -> u64 {
        segment_size.min(self.retained.live_bytes).max(1)
    }

    /// Free segments that are too many, where removals have nothing more to give.
    fn spare_segments(&self, segment_size: u64) -> u64 {
        if self.survey.removals > 0 { 0 } else { self.excess().div_ceil(segment_size) }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReclaimDecision {
    Nothing,
    /// End the active segment: everything up to its generation is to be filed.
    Seal,
    /// Delete so many free segments.
    Trim(u64),
}

/// Looks for much that was removed, not too often.
#[derive(Debug, Default)]
pub(crate) struct ReclaimPolicy {
    /// Everything up to this generation is to be filed, asked for at this time.
    wanted: Option<(u64, Instant)>,
    not_before: Option<Instant>,
    /// It was too early to look.
    put_off: bool,
}

impl ReclaimPolicy {
    /// Segments up to this generation are due.
    pub(crate) fn due(&self) -> u64 {
        self.wanted.map_or(0, |(generation, _)| generation)
    }

    /// When to look again, if nobody kicks.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.put_off)
    }

    /// Decides. `others`: see [`DiskUse`].
    pub(crate) fn look(
        &mut self,
        retained: &RetainedMap,
        segments: &Segments,
        source: &dyn LiveIndex,
        checkpoint_requests: &CheckpointRequests,
        filed_generation: u64,
        others: impl FnOnce() -> u64,
    ) -> ReclaimDecision {
        let started = Instant::now();
        match self.wanted {
            Some((generation, _)) if generation > filed_generation => return ReclaimDecision::Nothing,
            Some((_, asked)) => {
                self.wanted = None;
                self.not_before = Some(started + asked.elapsed());
            }
            None => {}
        }
        self.put_off = self.not_before.is_some_and(|at| started < at);
        if self.put_off {
            return ReclaimDecision::Nothing;
        }
        let pool = segments.pool();
        // Counted from here on: whatever is not in the survey.
        checkpoint_requests.count_removals();
        let footing = DiskUse {
            retained: retained.values().fold(Retained::default(), Retained::plus),
            survey: source.survey(),
            journal: pool.counted_bytes(),
            capacity: pool.capacity() as u64 * pool.segment_size(),
            is_blocked: pool.is_blocked(),
            others: others(),
        };
        self.not_before = Some(Instant::now() + pause(started.elapsed()));
        // Nothing waits, so nothing else seals it.
        let is_active_dead = footing.is_blocked
            && pool.active_is_used_up()
            && footing.survey.live_bytes <= pool.segment_size() / 2;
        if is_active_dead || footing.is_due(pool.segment_size()) {
            let is_unfiled = |segment: &Arc<Segment>| {
                segment.role == Role::Journal && segment.generation > filed_generation
            };
            match segments.all().into_iter().rfind(is_unfiled) {
                Some(newest) => self.wanted = Some((newest.generation, Instant::now())),
                // The removals are still on their way to the journal.
                None => (self.put_off, self.not_before) = (true, Some(Instant::now() + ON_THE_WAY)),
            }
            return ReclaimDecision::Seal;
        }
        checkpoint_requests.hear_of_removals(footing.removals_left(pool.segment_size()));
        match footing.spare_segments(pool.segment_size()) {
            0 => ReclaimDecision::Nothing,
            spare => ReclaimDecision::Trim(spare),
        }
    }
}

fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// 100 MiB of retained segments full of 16 KiB messages, and a journal at its capacity.
    fn footing(removals: u64) -> DiskUse {
        let retained = Retained { size: 100 * MIB, live_bytes: 100 * MIB, live: 6_400 };
        let survey = Survey { live_bytes: 0, removals };
        DiskUse { retained, survey, journal: 32 * MIB, capacity: 32 * MIB, others: 0, is_blocked: false }
    }

    #[test]
    fn removals_are_filed_when_the_files_are_over_their_bound_with_them() {
        assert_eq!(footing(0).excess(), 0);
        assert!(!footing(2_100).is_due(8 * MIB), "67 MiB live: 100 are allowed");
        assert!(footing(2_200).is_due(8 * MIB), "65 MiB live: 98 are allowed");
        assert!(!footing(2_200).is_due(64 * MIB), "less than a segment is not worth it");
        let left = footing(100).removals_left(8 * MIB);
        assert!((1_950..2_050).contains(&left), "{left}");
        assert!(footing(100 + left + 150).is_due(8 * MIB));
    }

    #[test]
    fn what_lives_in_the_journal_and_what_it_does_not_use_count() {
        let busy = DiskUse { survey: Survey { live_bytes: 20 * MIB, removals: 3_000 }, ..footing(0) };
        assert!(!busy.is_due(8 * MIB), "{}", busy.excess());
        let small = DiskUse { journal: 8 * MIB, ..footing(3_000) };
        assert!(!small.is_due(8 * MIB), "{}", small.excess());
        assert!(footing(3_000).is_due(8 * MIB));
    }

    #[test]
    fn the_last_removals_count_however_little_they_free() {
        let retained = Retained { size: 8 * MIB, live_bytes: MIB, live: 64 };
        let last = DiskUse { retained, ..footing(64) };
        assert!(last.is_due(8 * MIB));
    }

    /// On a small disk the journal never takes its capacity, so the files were never over their
    /// bound, and the segments that were full of removed messages were not given back.
    #[test]
    fn on_a_disk_without_room_the_removals_of_a_segment_are_due() {
        let blocked = DiskUse { is_blocked: true, capacity: 1024 * MIB, ..footing(512) };
        assert!(blocked.is_due(8 * MIB));
        assert!(!DiskUse { is_blocked: false, ..blocked }.is_due(8 * MIB));
        let fewer = DiskUse { survey: Survey { live_bytes: 0, removals: 500 }, ..blocked };
        assert!(!fewer.is_due(8 * MIB));
        assert_eq!(fewer.removals_left(8 * MIB), 12);
    }

    #[test]
    fn free_segments_are_given_up_when_nothing_else_is_left() {
        let empty = DiskUse { retained: Retained::default(), others: 9 * MIB, ..footing(0) };
        assert_eq!(empty.spare_segments(8 * MIB), 2);
        let waits = DiskUse { survey: Survey { live_bytes: 0, removals: 1 }, ..empty };
        assert_eq!(waits.spare_segments(8 * MIB), 0);
        assert_eq!(footing(0).spare_segments(8 * MIB), 0);
    }
}
