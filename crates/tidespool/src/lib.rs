//! A tiered memory-plus-disk message spool.
//!
//! A spool keeps messages between the moment a server says "accepted" and the moment their delivery is done. Most
//! of them live for seconds. [`TieredSpool`] keeps young messages in memory, makes every message durable with one
//! sequential write that it shares with all others that wait, and files those that stay in
//! [sled](https://docs.rs/sled/0.34.7). A message that is removed before its write never touches the disk.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::{Duration, Instant};
//!
//! use tidespool::core::{NotFound, Spool, SpoolId};
//! use tidespool::{Config, TieredSpool};
//!
//! #[tokio::main]
//! async fn main() -> anyhow::Result<()> {
//! #   let dir = tempfile::tempdir()?;
//! #   let path = dir.path().join("spool");
//!     // `path`: a directory, made where there is none. Everything else has a default.
//!     let spool = Arc::new(TieredSpool::open(Config::new(path)).await?);
//!
//!     let id = SpoolId::new();
//!     let message: Arc<Box<[u8]>> = Arc::new(b"Subject: hello\r\n\r\nHello.\r\n".as_slice().into());
//!     let deadline = Instant::now() + Duration::from_secs(5);
//!     // `true`: on stable storage when it returns. `false`: safe from the death of the process,
//!     // and on stable storage soon.
//!     spool.store(id, message, true, Some(deadline)).await?;
//!
//!     assert!(spool.load(id).await?.starts_with(b"Subject"));
//!     spool.remove(id).await?;
//!     let error = spool.load(id).await.unwrap_err();
//!     assert!(error.root_cause().is::<NotFound>());
//!
//!     spool.shutdown().await
//! }
//! ```
//!
//! # Promises
//!
//! | call | what holds when it returns `Ok` |
//! |---|---|
//! | [`store`](core::Spool::store), `force_sync` or [`Durability::Synced`] | `fdatasync` of a file with the message in it has succeeded. Neither `kill -9` nor a power cut loses it. |
//! | `store`, [`Durability::Process`] (the default) | It is in memory and in the crash log: the death of the process does not lose it. On stable storage within [`dirty_expire`](Config::dirty_expire); a power cut before that loses it, and never an older one while a newer one is kept. |
//! | `store`, [`Durability::Memory`] | It is in memory. On stable storage within `dirty_expire`; a crash before that loses it, and never an older one while a newer one is kept. |
//! | `store`, any | It is what every later load returns: whole, and never a mixture with an earlier version. |
//! | [`load`](core::Spool::load) | The bytes are those that were stored: what is read from disk is compared with its checksum. |
//! | [`remove`](core::Spool::remove) | It is gone, from every tier. Above [`Durability::Memory`], the death of the process does not bring it back. A power cut within `dirty_expire` can (at least once, never lost); after that no write, checkpoint or restart does. |
//! | [`remove_synced`](TieredSpool::remove_synced) | The same, and its removal is on stable storage. |
//! | [`enumerate`](core::Spool::enumerate) | Every message created before the given time that is there all the while comes exactly once, wherever it lives; each damaged one by its id. |
//! | [`shutdown`](core::Spool::shutdown) | Everything is on stable storage, every thread has ended. |
//!
//! * A `store` that returns `Err` has stored nothing: the earlier version, if there was one,
//!   stands. If the disk has the record at the deadline, the store waits one second longer for the
//!   disk's answer. Without an answer the error has the context [`InDoubt`](core::InDoubt), and the
//!   journal takes the record back with a second one. Only a crash before that one is on stable
//!   storage can bring the message back.
//! * At most [`dirty_limit`](Config::dirty_limit) bytes are at risk (or one message, if it is larger than that). At the limit stores wait,
//!   until the caller's deadline or [`store_deadline`](Config::store_deadline), whichever is earlier.
//! * While the disk refuses writes nothing is acknowledged as synced, and what was accepted before is kept in memory
//!   and written again, to another file, until it succeeds. "Within `dirty_expire`" holds on a disk that works.
//! * Damage on disk is a typed error, [`Corrupt`](core::Corrupt), or a line in the [`RecoveryReport`]: never wrong bytes, and never just one
//!   message fewer.
//! * Every call works on any executor, in a tokio runtime or outside of one: what blocks runs on
//!   threads of the spool, and one of them keeps the deadlines.
//! * Dropping the future of any call, at any point, corrupts nothing and leaks no room.
//!
//! # What it is not
//!
//! * Not a queue: it knows nothing of schedules, destinations or retries.
//! * Not a database: there are no transactions over several messages, and no search but by id.
//! * Not shared: one process has a directory open at a time. Nothing is replicated.
//! * Not for other systems than Linux.
//!
//! # Follow a message
//!
//! One verb a file, in the order in which a message meets them; each link leads to its source.
//!
//! 1. [`tiered/store.rs`](../src/tidespool/tiered/store.rs.html): size, health, room. Unsynced, it goes to
//!    [`memory/pending.rs`](../src/tidespool/memory/pending.rs.html) and that is all; synced, to the committer's
//!    [`tiered/commit_queue.rs`](../src/tidespool/tiered/mailbox.rs.html).
//! 2. [`tiered/committer.rs`](../src/tidespool/tiered/committer.rs.html) takes everything that waits, and hands it to
//!    [`journal/writer.rs`](../src/tidespool/journal/writer.rs.html): one write, one `fdatasync`.
//! 3. [`tiered/publish.rs`](../src/tidespool/tiered/publish.rs.html): the index learns its place, pending lets go, the cache gets the clean copy.
//! 4. [`tiered/load.rs`](../src/tidespool/tiered/load.rs.html) and
//!    [`tiered/lookup.rs`](../src/tidespool/tiered/lookup.rs.html): pending, cache, journal, sled, in that order.
//! 5. [`checkpoint/checkpointer.rs`](../src/tidespool/checkpoint/checkpointer.rs.html) files what is still there after [`checkpoint_after`](Config::checkpoint_after).
//! 6. [`tiered/remove.rs`](../src/tidespool/tiered/remove.rs.html): out of every tier; a tombstone only where something durable could bring it back.
//!
//! # Layout
//!
//! * [`core`] – the contract: the trait [`Spool`](core::Spool), ids, entries, errors. Servers are written against it.
//! * [`Config`] – every setting, with unit, default and bounds.
//! * [`TieredSpool`] – the spool; [`RecoveryReport`] – what opening it found.
//! * [`PressureMonitor`] – watches memory; a process with several spools gives them one in common.
//! * [`StatsSnapshot`] – every counter and gauge; also as Prometheus text.
//! * [`inspect`] – a look at a spool's directory while nobody has it open.
//! * [`storage`] – the files under the journal, as a trait, for tests that break them.
//!
//! Inside: `tiered` knows every tier; `memory`, `journal` and `durable` do not know each other;
//! `crash_log` keeps what is acknowledged over the death of the process; `checkpoint` moves
//! messages from the journal to sled; `pressure`, `health` and `stats` stand beside the path, and
//! `timer` keeps callers' deadlines. Formats on disk and the reasons are in ARCHITECTURE.md,
//! settings and metrics for operators in README.md.

mod checkpoint;
mod config;
mod crash_log;
mod durable;
mod health;
pub mod inspect;
mod journal;
mod memory;
mod pressure;
mod seldom;
mod stats;
pub mod storage;
mod thread_limit;
mod tiered;
mod timer;
mod varint;
mod whole_text;

pub use config::{
    BacklogRefusal, CachePolicy, Config, ConfigError, ConfigPlace, Durability, HealthConfig, HealthSignal,
    PressureConfig, SignalTimes,
};
pub use memory::keep_the_heap_small;
pub use pressure::{Level as PressureLevel, PressureMonitor, PressureReading, Source as PressureSource};
pub use stats::{Gauges, Latency, StatsSnapshot};
pub use tidespool_core as core;
pub use tiered::{RecoveryReport, TieredSpool};
