//! The journal: write-ahead log and value log in one.
//!
//! # Layout
//!
//! * `record` – the header of one record, as bytes (pure).
//! * `segment` – one use of a segment file.
//! * `segments` – the segments in use, by generation.
//! * `lost` – segment files that something else deleted, moved or cut short, and how they are
//!   written again.
//! * `pool` – the free segments, prepared ahead.
//! * `buffers` – the memory that the writer's tables and buffers take.
//! * `cold` – writes the messages that survive older segments into cold segments.
//! * `index` – id → place of the newest record, for one shard (pure).
//! * `neighbours` – reads neighbouring records with one call.
//! * `footer` – the list of records at the end of a sealed segment (pure).
//! * `listing` – lists the records of a settled segment, from its footer or from a scan.
//! * `writer` – appends, writes and syncs. `room` – what fits into the segments. `sync_job` – a
//!   sync that another thread runs.
//! * `scan` – finds the records of a segment in its bytes.
//! * `scan_ahead` – scans many segments on threads of their own.
//! * `replay` – computes the journal's state from all records (pure).
//! * `recovery` – reads the segment files at open, and repairs them. `error` – why that failed.
//! * `void_footers` – footers that list records of a torn tail.
//! * `spare` – deletes a free segment if an opening finds the disk full.

mod buffers;
mod cold;
mod error;
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
pub(crate) use error::RecoveryError;
pub(crate) use footer::footer_len;
pub(crate) use index::{Learned, MemoryIndex, NewestRecord, RecordPlace};
#[cfg(test)]
pub(crate) use pool::FreeSegment;
pub(crate) use pool::{NoPoolEvents, Pool, PoolEvents, PoolSettings, RESERVED};
pub(crate) use record::{RecordKind, footprint, payload_crc};
pub(crate) use recovery::{Checkpointed, FileDamage, Recovered, recover};
pub(crate) use replay::NewestById;
pub(crate) use room::{JournalRoom, cost, needs_own_segment};
pub(crate) use scan::{FoundRecord, scan};
pub(crate) use segment::{PAGE, ReadError, Role, Segment, spool_of_segment};
pub(crate) use segments::{Segments, salt_of};
pub(crate) use spare::give_up_a_free_segment;
pub(crate) use sync_job::{SyncEnd, SyncJob};
pub(crate) use writer::{DurableState, JournalChange, Synced, WriteError, Writer};
