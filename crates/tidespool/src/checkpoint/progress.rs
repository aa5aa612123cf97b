//! The progress of the checkpointer thread, and of a rebuild.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// When the thread started to work, or made its last step. `None` while it is idle.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<Option<Instant>>);

impl Progress {
    /// Work begins, or restarts after a failure. A restart alone is no progress.
    pub(super) fn begin(&self, now: Instant) {
        self.0.lock().get_or_insert(now);
    }

    /// A step is done.
    pub(super) fn note(&self, now: Instant) {
        if let Some(since) = &mut *self.0.lock() {
            *since = now;
        }
    }

    /// The work is done.
    pub(super) fn end(&self) {
        *self.0.lock() = None;
    }

    pub(super) fn stalled_for(&self, now: Instant) -> Duration {
        self.0.lock().map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// Progress of a rebuild, for readers on other threads: the messages in the new index, and the
/// messages to index in all. `None` while no rebuild runs.
#[derive(Debug, Default)]
pub(crate) struct Rebuilding(Mutex<Option<(u64, u64)>>);

impl Rebuilding {
    pub(crate) fn progress(&self) -> Option<(u64, u64)> {
        *self.0.lock()
    }

    pub(super) fn begin(&self, total: u64) {
        *self.0.lock() = Some((0, total));
    }

    /// `messages` more messages are in the new index.
    pub(super) fn add(&self, messages: u64) {
        if let Some((done, _)) = &mut *self.0.lock() {
            *done += messages;
        }
    }

    pub(super) fn end(&self) {
        *self.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_steps_and_the_end_are_progress() {
        let (progress, start) = (Progress::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let stalled_at = |seconds| progress.stalled_for(at(seconds)).as_secs();
        progress.note(at(1));
        assert_eq!(stalled_at(9), 0, "it has nothing to do");
        progress.begin(at(10));
        progress.begin(at(15));
        assert_eq!(stalled_at(20), 10, "it failed at 15 and begins again");
        progress.note(at(21));
        assert_eq!(stalled_at(25), 4);
        progress.end();
        assert_eq!(stalled_at(100), 0);
    }
}
