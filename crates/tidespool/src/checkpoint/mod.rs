//! From the journal into sled: filing what stays, recycling what does not.
//!
//! # Layout
//!
//! * `filing` – the thread's mailbox: who asks for what.
//! * `filer` – one checkpoint: collect, file in key order, ledger, forget, recycle.
//! * `retained` – segments kept for the large payloads in them, and their rewriting.
//! * `ballast` – a file to delete when sled needs room on a full disk.
//! * `ledger` – what sled must contain, outside sled.
//! * `opening` – sled, ledger and segments compared at open; what is missing filed anew.
//! * `verify` – every byte of everything filed.

mod ballast;
mod filer;
mod filing;
mod ledger;
mod opening;
mod retained;
mod verify;

use tidespool_core::SpoolId;

pub(crate) use ballast::Ballast;
pub(crate) use filer::{Filer, FilerSettings, Retry};
pub(crate) use filing::{Filing, FilingTask};
pub(crate) use ledger::{HighKeys, Ledger, LedgerError, LedgerFile};
pub(crate) use opening::{Opened, Places, open_filed, settle, without_segment};
pub(crate) use verify::{Finding, verify_filed};

use crate::journal::Newest;

/// The index, as the checkpoint needs it.
pub(crate) trait Source: Send + Sync {
    /// What the index knows of segments up to this generation.
    fn collect(&self, up_to: u64) -> Vec<(SpoolId, Newest)>;

    /// True while this record is the newest of its id.
    fn is_newest(&self, id: &SpoolId, seq: u64) -> bool;

    /// Sled will be told of keys up to these: from now on removals of such ids must be written.
    fn will_file(&self, high: HighKeys);

    /// Sled has these now: the index need not, unless it knows something newer.
    fn forget(&self, filed: &[(SpoolId, Newest)]);
}

/// What the checkpoint tells those beside the path.
pub(crate) trait FilingEvents: Send + Sync {
    /// A checkpoint filed `records` of `segments` segments.
    fn filed(&self, records: u64, segments: u64, took: std::time::Duration);
    /// A segment was recycled.
    fn recycled(&self);
    /// The survivors of a segment, of so many bytes, were moved.
    fn rewritten(&self, bytes: u64);
    /// The ledger or a segment could not be read or written.
    fn failed(&self, error: &FilingError);
    /// A damaged message was found.
    fn found_damage(&self, id: &SpoolId, what: &str);
}

/// Why a checkpoint did not come to its end. Everything is as before, or will be when it is repeated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilingError {
    /// sled.
    #[error(transparent)]
    Engine(#[from] crate::durable::DurableError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A segment.
    #[error(transparent)]
    Segment(#[from] crate::journal::ReadError),
    /// A segment for survivors.
    #[error("rewriting a segment: {0}")]
    Rewrite(#[from] std::io::Error),
}
