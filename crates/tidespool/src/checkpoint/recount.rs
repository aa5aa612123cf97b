//! The count of sled that an opening left out.
//!
//! An opening that finds sled's files as they were at the last shutdown takes the ledger's word for what is in them. That is right unless they were
//! damaged before that shutdown, while the spool was running. So they are counted all the same: afterwards, by the checkpoint thread (which
//! alone changes sled), while it has nothing else to do. Only a run in which this was done leaves a fingerprint to the next one.

use std::time::{Duration, Instant};

use super::filer::Filer;
use super::opening::settle;
use super::stock::take_stock_beside;
use super::{FilingError, OpeningError};
use crate::journal::{NewestById, RESERVED};

/// A count that something came in between of begins anew after this.
const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// Whether sled has been counted since the spool was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recount {
    /// It has.
    Done,
    /// It has not: not before this.
    Due(Instant),
}

impl Recount {
    /// After an opening that `counted`, or did not.
    pub(crate) fn after_opening(counted: bool) -> Self {
        if counted { Self::Done } else { Self::Due(Instant::now()) }
    }

    pub(crate) fn is_done(self) -> bool {
        self == Self::Done
    }

    /// Somebody asks for maintenance: it is due now, also where something came in between a moment ago.
    pub(super) fn hurry(&mut self) {
        if let Self::Due(at) = self {
            *at = Instant::now();
        }
    }

    pub(super) fn due_at(self) -> Option<Instant> {
        match self {
            Self::Done => None,
            Self::Due(at) => Some(at),
        }
    }
}

impl Filer {
    /// Counts sled if that is due, unless something comes in between. What it should hold and does not is filed anew or reported, as at open.
    pub(super) fn recount(&mut self) -> Result<(), FilingError> {
        let now = Instant::now();
        if self.recount.due_at().is_none_or(|at| at > now) || self.ledger.filing {
            return Ok(());
        }
        self.recount = Recount::Due(now + AGAIN_AFTER);
        let (filing, pool) = (&self.filing, self.segments.pool());
        let go_on = || {
            filing.note_progress();
            !filing.is_asked() && pool.headroom() > RESERVED + 1
        };
        let counted = self.durable.with(|store| take_stock_beside(store, &self.segments, &go_on))?;
        let Some(stock) = counted else { return Ok(()) };
        for (id, what) in &stock.damaged {
            self.events.found_damage(id, what);
        }
        if stock.tally != self.ledger.tally {
            self.make_agree()?;
        }
        self.recount = Recount::Done;
        Ok(())
    }

    /// Has what sled should hold and does not filed anew or reported.
    pub(super) fn make_agree(&mut self) -> Result<(), FilingError> {
        let newest: NewestById = self.source.collect(u64::MAX).into_iter().collect();
        let should = self.ledger.tally.records;
        let mut next = self.ledger.clone();
        let settled =
            settle(&self.durable, &self.segments, &mut next, &self.ledger_file, &self.ballast, &newest);
        let settled = settled.map_err(|error| match error {
            OpeningError::Ledger(error) => error.into(),
            OpeningError::Engine(error) => error.into(),
            error => FilingError::Rewrite(std::io::Error::other(error.to_string())),
        })?;
        self.ledger = next;
        let what = format!(
            "sled did not hold the {should} records that it should; {} messages were filed anew, {} are lost",
            settled.refiled, settled.lost
        );
        self.events.found_loss(settled.lost, &what);
        Ok(())
    }
}
