//! What the checkpoint thread does to keep the files small: survivors are moved together, removals are filed early, free segments are given up.

use super::FilingError;
use super::drained::Verdict;
use super::filer::Filer;
use super::retained::{Retained, choose, copy_survivors};

/// What a record needs in sled's file beside its payload, in bytes, generously.
const RECORD_OVERHEAD: u64 = 256;

impl Filer {
    /// Rewrites retained segments that are mostly dead; with `all`, every one with something dead in it.
    pub(super) fn tidy(&mut self, all: bool) -> Result<(), FilingError> {
        self.release();
        // One in which all that is left is damaged can't be given up, and is chosen again and again: a round that moves nothing is the last.
        let before = self.segments.next_generation();
        while !self.filing.is_stopped() && self.tidy_some(all, before)? > 0 {
            // There may be many rounds, and the journal runs full meanwhile.
            while self.checkpoint_due()? && !self.filing.is_stopped() {}
        }
        Ok(())
    }

    /// Rewrites a few of those from before this generation. Returns how many bytes were moved.
    fn tidy_some(&mut self, all: bool, before: u64) -> Result<u64, FilingError> {
        let victims = choose(&self.ledger.retained, all, before);
        if victims.is_empty() {
            return Ok(0);
        }
        self.ensure_open()?;
        let chosen = victims.iter().filter_map(|generation| self.ledger.retained.get(generation));
        let expected = chosen.fold(Retained::default(), Retained::plus);
        self.filing.begin();
        let rest = |worked| self.filing.rest(worked, self.is_urgent());
        let moved = copy_survivors(&self.segments, &self.durable, &victims, expected, &rest)?;
        if moved.ops.is_empty() {
            return Ok(0);
        }
        if let Err(error) = self.make_room(moved.ops.len() as u64, 0) {
            moved.cold.iter().for_each(|segment| self.segments.retire(segment.generation));
            return Err(error);
        }
        let mut next = self.ledger.clone();
        for segment in &moved.cold {
            next.retained.insert(segment.generation, Retained { size: segment.size, ..Retained::default() });
        }
        let bytes = moved.bytes;
        let cold = moved.cold.clone();
        let result = self.apply_marked(&mut next, |filer, retained| {
            Ok(filer.apply_counted(&mut moved.ops.into_iter(), retained)?)
        });
        if let Err(error) = result {
            // If not even the first ledger was written, nothing points there; else the next count tells.
            if !self.ledger.filing {
                cold.iter().for_each(|segment| self.segments.retire(segment.generation));
            }
            return Err(error);
        }
        next.number += 1;
        next.retained.retain(|_, segment| segment.live > 0);
        self.ledger_file.write(&next)?;
        self.ledger = next;
        self.release();
        self.events.rewritten(bytes);
        Ok(bytes)
    }

    /// Where the files are over their bound: has removals filed, or gives free segments up.
    pub(super) fn keep_within_bound(&mut self) {
        let (records, separate_above) = (self.ledger.tally.records, self.settings.load().separate_above);
        let others = || {
            let sled = self.durable.size_on_disk();
            self.ballast.size() + sled.saturating_sub(records * (separate_above + RECORD_OVERHEAD))
        };
        let (ledger, segments) = (&self.ledger, &self.segments);
        let verdict = self.drained.look(
            &ledger.retained,
            segments,
            &*self.source,
            &self.filing,
            ledger.filed_generation,
            others,
        );
        match verdict {
            Verdict::Nothing => {}
            Verdict::Seal => {
                self.events.wants_seal();
                // What is sealed already is due now, and there may be nothing else.
                self.filing.kick();
            }
            Verdict::Trim(count) => segments.pool().trim(count),
        }
    }
}
