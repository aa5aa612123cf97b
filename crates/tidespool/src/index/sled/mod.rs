//! sled 0.34.7 as the index engine, and every workaround for sled.
//!
//! sled holds the place of every checkpointed message, and no message: decision 0010. Its newer
//! alphas lose data when they are killed while opening.
//!
//! # Workarounds
//!
//! Each point was tried, or read in sled's source. The decisions are in `docs/decisions`.
//!
//! | sled | this folder |
//! |---|---|
//! | It takes a read error for the end of its log, and clears the rest. | It is never opened after an error or an unclean end. [`fingerprint`] reads every byte before an open: decisions 0007, 0016. |
//! | `flush` makes nothing durable. | An orderly end calls `fdatasync` on its data file, through a descriptor opened before sled's ([`files`]). sled flushes when it is called, not every 500 ms. |
//! | `open`, changes and `drop` can panic or hang. | They run on a separate thread, with a timeout ([`worker`]). Reads run on the caller's thread, with panics caught. |
//! | A record costs 11 000 instructions and 25 to 150 bytes of memory, whatever its length. | A record of sled is a [`block`] of up to 32 messages ([`packed`]): decision 0011. |
//! | `apply_batch` leaks memory for each key. | Changes are single inserts and removes, in key order. |
//! | It accepts changes faster than a disk does, and buffers them. | It must flush after each 8 MiB of changes ([`store`]). |
//! | A full disk makes it unusable: it cannot open again there. | A checkpoint first frees the bytes that sled may write, an opening the bytes that sled needs ([`engine`]). |
//! | A write beyond `RLIMIT_FSIZE` raises a signal, which ends the process by default. | The limit is checked before an open, and before each checkpoint. |
//! | Damaged files cause the same error as a file system without `sync_file_range`. | An empty sled beside it separates the two cases ([`trial`]). |
//! | It relies on closing its file to release its lock, but a forked child may hold the file. | The lock is released explicitly ([`lock`]). |
//! | It starts seven threads once in a process, and hangs if it can't. | An opening of the spool reserves them ([`worker`]). |
//! | It panics while the clock is before 1970. | An opening of the spool checks the clock ([`engine`]). |
//! | It reports no memory use, and uses four times its `cache_capacity`. | It gets a quarter of the setting. [`footprint`] estimates the rest. |
//! | It leaves the mode of its files to the umask. | The files are restricted to the owner ([`files`]). |
//!
//! `Mode` keeps its default: 0.34.7 stores the setting and never reads it.

mod block;
mod engine;
mod files;
mod fingerprint;
mod footprint;
mod lock;
mod packed;
mod store;
#[cfg(test)]
mod tests;
mod trial;
mod worker;

pub(super) use engine::SledEngine;
pub(crate) use engine::check_clock;
pub(crate) use worker::threads_to_start;

/// The directory of the indexes, in the spool's directory. It has the engine's name, so that no
/// other engine opens it.
pub(crate) const INDEX_DIR: &str = "sled";

/// The directory of the empty sled with which a file system is tried, in the spool's directory.
pub(crate) const TRIAL_DIR: &str = "sled.trial";
