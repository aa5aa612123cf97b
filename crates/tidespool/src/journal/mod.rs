//! The journal: write-ahead log and value log in one.
//!
//! # Layout
//!
//! * `record` – one record's header as bytes (pure).
//! * `segment` – one segment file in one of its uses.
//! * `segments` – those in use, by generation.
//! * `pool` – those free for use, prewritten ahead.
//! * `cold` – what survives older segments, written together.
//! * `index` – id → place of the newest record, for one shard (pure).
//! * `writer` – the end of the journal: append, write, sync.
//! * `scan` – every record of a segment, from its bytes.
//! * `replay` – what all records amount to (pure).
//! * `recovery` – the segment files at open.

mod cold;
mod index;
mod pool;
mod record;
mod recovery;
mod replay;
mod scan;
mod segment;
mod segments;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use cold::ColdWriter;
pub(crate) use index::{Index, Newest, Place};
pub(crate) use pool::{Pool, PoolEvents, PoolSettings, RESERVED};
pub(crate) use record::{Kind, footprint};
pub(crate) use recovery::{FileDamage, Filed, Recovered, RecoveryError, recover};
pub(crate) use scan::{Found, scan};
pub(crate) use segment::{PAGE, ReadError, Role, Segment};
pub(crate) use segments::Segments;
pub(crate) use writer::{Change, Durable, Room, WriteError, Writer};
