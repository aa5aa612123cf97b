//! Segments of which nearly all records are dead are filed early: it costs little, and a recycled segment is faster than a new one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Source;
use crate::journal::Segment;

/// Fewer settled segments than this are not worth a look.
const ENOUGH: usize = 4;

/// Nearly all: what lives is at most one part in so many of the segments' bytes.
const PART: u64 = 16;

/// Looking takes at most one part in so many of the thread's time.
const SHARE: u32 = 10;

/// Looks for dead segments, not too often.
#[derive(Debug, Default)]
pub(crate) struct DeadSegments {
    not_before: Option<Instant>,
}

impl DeadSegments {
    /// How many of `unfiled`, from the oldest, are nearly dead together. 0 where it is too early to look again.
    pub(crate) fn count(&mut self, unfiled: &[Arc<Segment>], source: &dyn Source) -> usize {
        let started = Instant::now();
        if unfiled.len() < ENOUGH || self.not_before.is_some_and(|at| started < at) {
            return 0;
        }
        let live = source.live_bytes();
        let sizes = unfiled.iter().map(|segment| (segment.generation, segment.size));
        let count = dead_prefix(sizes, &live);
        self.not_before = Some(started + pause(started.elapsed()));
        count
    }
}

fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE)
}

fn dead_prefix(sizes: impl Iterator<Item = (u64, u64)>, live: &BTreeMap<u64, u64>) -> usize {
    let (mut bytes, mut alive, mut count) = (0, 0, 0);
    for (number, (generation, size)) in sizes.enumerate() {
        bytes += size;
        alive += live.get(&generation).copied().unwrap_or(0);
        if alive * PART <= bytes {
            count = number + 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(live: &[(u64, u64)]) -> usize {
        dead_prefix((1..=4).map(|generation| (generation, 1600)), &live.iter().copied().collect())
    }

    #[test]
    fn only_what_is_nearly_dead_together_counts() {
        assert_eq!(prefix(&[]), 4);
        assert_eq!(prefix(&[(4, 800)]), 3);
        assert_eq!(prefix(&[(1, 800)]), 0);
        assert_eq!(prefix(&[(1, 150)]), 4, "more than its part, but not of all together");
        assert_eq!(prefix(&[(1, 100), (2, 100), (3, 100), (4, 101)]), 3);
    }
}
