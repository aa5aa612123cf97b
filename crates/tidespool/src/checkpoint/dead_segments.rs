//! Checkpoints segments without live messages early: that costs little, and a recycled segment is
//! faster than a new one.

use std::sync::Arc;
use std::time::Instant;

use super::LiveIndex;
use crate::journal::Segment;

/// With fewer settled segments than this, the check is skipped.
const ENOUGH: usize = 4;

/// The check takes at most one part in this many of the thread's time.
const SHARE: u32 = 10;

/// Looks for dead segments, at bounded intervals.
#[derive(Debug, Default)]
pub(crate) struct DeadSegments {
    not_before: Option<Instant>,
}

impl DeadSegments {
    /// Returns how many of `uncheckpointed` are dead, from the oldest on. 0 if it is too early for
    /// a check.
    pub(crate) fn count(&mut self, uncheckpointed: &[Arc<Segment>], source: &dyn LiveIndex) -> usize {
        let started = Instant::now();
        if uncheckpointed.len() < ENOUGH || self.not_before.is_some_and(|at| started < at) {
            return 0;
        }
        let count = dead_segments(uncheckpointed, source).count();
        self.not_before = Some(started + started.elapsed().saturating_mul(SHARE));
        count
    }
}

/// Returns the segments without live messages, from the oldest on, until one with live messages.
pub(super) fn dead_segments<'a>(
    uncheckpointed: &'a [Arc<Segment>],
    source: &dyn LiveIndex,
) -> impl Iterator<Item = &'a Arc<Segment>> {
    let live = source.live_bytes();
    uncheckpointed.iter().take_while(move |segment| !live.contains_key(&segment.generation))
}
