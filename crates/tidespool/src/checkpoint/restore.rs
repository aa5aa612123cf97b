//! Writes lost files again, from memory and from the descriptors that are still open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::CheckpointError;
use super::checkpointer::Checkpointer;
use super::value_log::liveness::LivenessChanges;
use super::value_log::retained::place_of_record;
use crate::index::{Key, KeyRange};
use crate::journal::{ReadError, RecordPlace, Role, Segment, footprint};

/// The wait for other threads that restore their lost file. They wake the checkpointer when they
/// are done.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Checkpointer {
    /// Returns when to check lost files again.
    pub(super) fn look_again_at(&self) -> Option<Instant> {
        (!self.presence.is_complete()).then(|| Instant::now() + LOOK_AGAIN)
    }

    /// Restores the files that are lost.
    ///
    /// # Errors
    ///
    /// The spool's directory is lost; or a file could not be restored. The next call retries it.
    pub(super) fn restore_lost(&mut self) -> Result<(), CheckpointError> {
        if self.presence.is_complete() || !self.presence.look_at_all() {
            return Ok(());
        }
        self.presence.check_home()?;
        let restored = self.restore_all(|segment| segment.settled_at().is_some());
        // The committer seals a segment that has lost its file, and then wakes this thread.
        if self.segments.lost().iter().any(|segment| segment.settled_at().is_none()) {
            self.events.wants_seal();
        }
        self.presence.look_at_all();
        restored
    }

    /// Restores lost files at shutdown, when segments are no longer written.
    /// [`describe_lost`](super::Presence::describe_lost) lists the files that are still lost.
    pub(crate) fn restore_at_the_end(&mut self) {
        if self.presence.look_at_all() && self.presence.check_home().is_ok() {
            if let Err(error) = self.restore_all(|_| true) {
                self.events.failed(&error);
            }
            self.presence.look_at_all();
        }
    }

    /// Restores every file that can be restored. Returns the first error.
    fn restore_all(&mut self, is_ended: impl Fn(&Segment) -> bool) -> Result<(), CheckpointError> {
        // The lock that keeps other processes out comes first, then the files that an open reads
        // first.
        let mut result = self.presence.watched.home.restore().map_err(CheckpointError::Restore);
        for segment in self.segments.lost().into_iter().filter(|segment| is_ended(segment)) {
            result = result.and(self.restore_segment(&segment));
        }
        if self.manifest_file.loss().is_some() {
            result = result.and(self.manifest_file.restore(&self.manifest).map_err(CheckpointError::from));
        }
        if self.liveness.loss().is_some() {
            result = result.and(self.restore_liveness());
        }
        self.ballast.restore();
        if self.presence.has_lost_data_file() {
            self.durable.let_go("its data file was deleted or moved");
        }
        result
    }

    /// Writes the liveness log again: from the index, or else from the descriptor of the old file.
    fn restore_liveness(&mut self) -> Result<(), CheckpointError> {
        if self.durable.is_whole() {
            return self.renew_log(self.manifest.clone());
        }
        let mut next = self.manifest.clone();
        let is_retained = |generation: u64| self.manifest.retained.contains_key(&generation);
        next.liveness = self.liveness.compact(&is_retained, &LivenessChanges::default())?;
        self.write_manifest(next)
    }

    fn restore_segment(&mut self, segment: &Arc<Segment>) -> Result<(), CheckpointError> {
        let left = self.segments.restore(segment).map_err(CheckpointError::Restore)?;
        self.inbox.note_progress();
        if left < segment.size {
            self.report_cut(segment, left)?;
            // Removals in the lost part exist only in memory, so the segment is due at once.
            if segment.role == Role::Journal {
                self.cut_up_to = self.cut_up_to.max(segment.generation);
            }
        }
        Ok(())
    }

    /// Reports the messages whose bytes are gone. Reads all messages in the segment, because a
    /// write after the cut filled the gap with zeros.
    fn report_cut(&self, segment: &Segment, left: u64) -> Result<(), CheckpointError> {
        let what = format!("{} was cut short to {left} bytes", segment.path.display());
        let is_here = |place: &RecordPlace| place.generation == segment.generation;
        let young = self.source.collect(segment.generation).into_iter();
        let mut messages: Vec<(Key, RecordPlace)> = young
            .filter_map(|(key, newest)| newest.place.filter(is_here).map(|place| (key, place)))
            .collect();
        let is_retained = self.manifest.retained.contains_key(&segment.generation);
        if is_retained && self.durable.is_whole() {
            self.durable.scan(&[KeyRange::ALL], &mut |key, record| {
                let place = place_of_record(&record);
                messages.extend(is_here(&place).then_some((key, place)));
                !self.inbox.is_stopped()
            })?;
        }
        for (key, place) in messages {
            self.check_going_on()?;
            let is_gone = place.offset + footprint(u64::from(place.len)) > left;
            let read = || segment.read_put(self.segments.salt(), &key.message(), place);
            if is_gone || matches!(read(), Err(ReadError::Damaged { .. })) {
                self.events.found_damage(&key.message(), &what);
            }
        }
        Ok(())
    }
}

impl super::Presence {
    /// # Errors
    ///
    /// The directory is away.
    fn check_home(&self) -> Result<(), CheckpointError> {
        match self.is_away() {
            true => Err(CheckpointError::Away(self.watched.manifest_file.dir().to_owned())),
            false => Ok(()),
        }
    }
}
