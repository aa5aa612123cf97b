//! From the journal into sled: filing what stays, recycling what does not.
//!
//! # Layout
//!
//! * `filing` – the thread's mailbox: who asks for what.
//! * `filer` – one checkpoint: collect, file in key order, ledger, forget, recycle.
//! * `dead` – which segments are filed early, because nothing much lives in them.
//! * `drained` – when removals are filed early, because much is dead on disk until they are.
//! * `pace` – rests between the steps of a checkpoint.
//! * `retained` – segments kept for the large payloads in them, and their rewriting.
//! * `tidy` – keeping the files within their bound.
//! * `ballast` – a file to delete when sled needs room on a full disk.
//! * `room` – room for what sled writes, made before it writes.
//! * `ledger` – what sled must contain, outside sled.
//! * `leftover` – what filed segments still hold.
//! * `opening` – sled, ledger and segments compared at open; what is missing filed anew.
//! * `progress` – whether it gets anywhere.
//! * `recount` – sled counted after an opening that did not.
//! * `stock` – what sled holds, counted.
//! * `verify` – every byte of everything filed.

mod ballast;
mod dead;
mod drained;
mod filer;
mod filing;
mod ledger;
mod leftover;
mod opening;
mod pace;
mod progress;
mod recount;
mod retained;
mod room;
mod stock;
#[cfg(test)]
mod tests;
mod tidy;
mod verify;

use std::collections::BTreeMap;

use tidespool_core::SpoolId;

pub(crate) use ballast::Ballast;
pub(crate) use dead::DeadSegments;
pub(crate) use drained::{Drained, Survey};
pub(crate) use filer::{Filer, FilerSettings, Retry};
pub(crate) use filing::{Filing, FilingTask};
pub(crate) use ledger::{HighKeys, Ledger, LedgerError, LedgerFile};
pub(crate) use leftover::newest_puts;
pub(crate) use opening::{
    Examined, Opened, OpeningError, Places, examine, open_filed, read_ledger, seqs_of, settle,
    without_segment,
};
pub(crate) use recount::Recount;
pub(crate) use retained::{Retained, locator, place_of, pointed_to};
pub(crate) use stock::{Stock, Unfinished, count_filed};
pub(crate) use verify::verify_filed;

use crate::durable::DurableError;
use crate::journal::Newest;

/// The index, as the checkpoint needs it.
pub(crate) trait Source: Send + Sync {
    /// What the index knows of segments up to this generation.
    fn collect(&self, up_to: u64) -> Vec<(SpoolId, Newest)>;

    /// Payload bytes that live in each segment, by generation.
    fn live_bytes(&self) -> BTreeMap<u64, u64>;

    /// What lives in the journal, and how many removals sled was not told of.
    fn survey(&self) -> Survey;

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
    /// The active segment is to be ended, so that it can be filed.
    fn wants_seal(&self);
    /// The survivors of a segment, of so many bytes, were moved.
    fn rewritten(&self, bytes: u64);
    /// The ledger or a segment could not be read or written.
    fn failed(&self, error: &FilingError);
    /// A damaged message was found.
    fn found_damage(&self, id: &SpoolId, what: &str);
    /// Messages were found to be gone.
    fn found_loss(&self, messages: u64, what: &str);
}

impl FilingError {
    /// It would have succeeded with more room on disk.
    fn is_full_disk(&self) -> bool {
        use std::io::ErrorKind::StorageFull;
        match self {
            Self::Engine(DurableError::Engine { kind, .. }) => *kind == Some(StorageFull),
            Self::Ledger(LedgerError::Io { source, .. }) | Self::Rewrite(source) => {
                source.kind() == StorageFull
            }
            Self::NoRoom { .. } => true,
            _ => false,
        }
    }
}

/// Why a checkpoint did not come to its end. Everything is as before, or will be when it is repeated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilingError {
    /// sled.
    #[error(transparent)]
    Engine(#[from] DurableError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A segment.
    #[error(transparent)]
    Segment(#[from] crate::journal::ReadError),
    /// Nothing was changed.
    #[error(
        "the file system has fewer than {need} bytes left, which sled may need: filing goes on when it has more"
    )]
    NoRoom {
        /// Bytes.
        need: u64,
    },
    /// The spool is shutting down.
    #[error("the spool is shutting down: the checkpoint is repeated at the next start")]
    Stopped,
    /// A segment for survivors.
    #[error("rewriting a segment: {0}")]
    Rewrite(#[from] std::io::Error),
}
