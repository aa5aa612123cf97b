//! The journal: write-ahead log and value log in one.
//!
//! # Layout
//!
//! * `record` – one record's header as bytes (pure).
//! * `segment` – one segment file in one of its uses.
//! * `segments` – those in use, by generation.
//! * `lost` – files of segments that something else deleted, moved or cut short, and how they are
//!   written again.
//! * `pool` – those free for use, prewritten ahead.
//! * `buffers` – how much memory the writer takes.
//! * `cold` – what survives older segments, written together.
//! * `index` – id → place of the newest record, for one shard (pure).
//! * `neighbours` – many records with one call (reads).
//! * `footer` – the list of records at the end of a sealed segment (pure).
//! * `listing` – every record of a settled segment, from its footer or from a scan.
//! * `writer` – the end of the journal: append, write, sync; with `room` (what fits) and `sync_job` (a sync for another thread).
//! * `scan` – every record of a segment, from its bytes.
//! * `scan_ahead` – the same for many segments, on threads of their own.
//! * `replay` – what all records amount to (pure).
//! * `recovery` – the segment files at open.
//! * `void_footers` – footers that list records of a torn tail.
//! * `spare` – a free one given up when an opening finds the disk full.

mod buffers;
mod cold;
mod footer;
mod index;
mod listing;
mod lost;
mod neighbours;
mod pool;
mod record;
mod recovery;
mod replay;
mod room;
mod scan;
mod scan_ahead;
mod segment;
mod segments;
mod spare;
mod sync_job;
#[cfg(test)]
mod tests;
mod void_footers;
mod writer;

pub(crate) use cold::ColdWriter;
pub(crate) use footer::footer_len;
pub(crate) use index::{MemoryIndex, NewestRecord, RecordPlace};
#[cfg(test)]
pub(crate) use pool::FreeSegment;
pub(crate) use pool::{NoPoolEvents, Pool, PoolEvents, PoolSettings, RESERVED};
pub(crate) use record::{RecordKind, footprint, payload_crc};
pub(crate) use recovery::{FileDamage, Filed, Recovered, RecoveryError, recover};
pub(crate) use replay::NewestById;
pub(crate) use room::{JournalRoom, cost, needs_own_segment};
pub(crate) use scan::{FoundRecord, scan};
pub(crate) use segment::{PAGE, ReadError, Role, Segment, spool_of_segment};
pub(crate) use segments::{Segments, salt_of};
pub(crate) use spare::give_up_a_free_segment;
pub(crate) use sync_job::{SyncEnd, SyncJob};
pub(crate) use writer::{DurableState, JournalChange, WriteError, Writer};
