//! Segments in which nothing lives any more are filed early: it costs little, and a recycled segment is faster than a new one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::LiveIndex;
use crate::journal::Segment;

/// Fewer settled segments than this are not worth a look.
const ENOUGH: usize = 4;

/// Looking takes at most one part in so many of the thread's time.
const SHARE: u32 = 10;

/// Looks for dead segments, not too often.
#[derive(Debug, Default)]
pub(crate) struct DeadSegments {
    not_before: Option<Instant>,
}

impl DeadSegments {
    /// How many of `unfiled`, from the oldest, are dead. 0 where it is too early to look again.
    pub(crate) fn count(&mut self, unfiled: &[Arc<Segment>], source: &dyn LiveIndex) -> usize {
        let started = Instant::now();
        if unfiled.len() < ENOUGH || self.not_before.is_some_and(|at| started < at) {
            return 0;
        }
        let live = source.live_bytes();
        let is_dead = |segment: &&Arc<Segment>| !live.contains_key(&segment.generation);
        let count = unfiled.iter().take_while(is_dead).count();
        self.not_before = Some(started + pause(started.elapsed()));
        count
    }
}

fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE)
}
