//! A tiered memory-plus-disk message spool.
//!
//! A spool keeps messages between the moment a server says "accepted" and the moment their delivery
//! is done. Most of them live for seconds. [`TieredSpool`] keeps young messages in memory. It makes
//! each of them durable with one sequential write that all waiting stores share. The index of the
//! messages that stay moves into [sled](https://docs.rs/sled/0.34.7). A message that is removed
//! before its write is never written to the journal.
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
//!     // `path` is a directory. `open` creates it if it does not exist. All other settings have
//!     // defaults.
//!     let spool = Arc::new(TieredSpool::open(Config::new(path)).await?);
//!
//!     let id = SpoolId::new();
//!     let message: Arc<Box<[u8]>> = Arc::new(b"Subject: hi\r\n\r\nHello.\r\n".as_slice().into());
//!     let deadline = Instant::now() + Duration::from_secs(5);
//!     // `true`: the message is on stable storage when `store` returns. `false`: it survives the
//!     // death of the process, and is on stable storage soon.
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
//! | [`store`](core::Spool::store), `force_sync` or [`Durability::Synced`] | `fdatasync` of a file with the message in it has succeeded. Neither `kill -9` nor a power cut loses the message. |
//! | `store`, [`Durability::Process`] (the default) | The message is in memory and in the crash log: the death of the process does not lose it. It is on stable storage within [`dirty_expire`](Config::dirty_expire). A power cut before that loses it, but never loses an older message while it keeps a newer one. |
//! | `store`, [`Durability::Memory`] | The message is in memory. It is on stable storage within `dirty_expire`. A crash before that loses it, but never loses an older message while it keeps a newer one. |
//! | `store`, any level | Every later load returns this message: whole, and never mixed with an earlier version. |
//! | [`load`](core::Spool::load) | The bytes are those that were stored: bytes from disk are compared with their checksum. |
//! | [`remove`](core::Spool::remove) | The message is removed from every tier. Above [`Durability::Memory`], the death of the process does not bring it back. A power cut within `dirty_expire` can (at least once, never lost); after that no write, checkpoint or restart does. |
//! | [`remove_synced`](TieredSpool::remove_synced) | The same, and the removal is on stable storage. |
//! | [`enumerate`](core::Spool::enumerate) | Every message that was created before the given time and exists during the whole enumeration was sent exactly once, whichever tier has it. A damaged message was sent as its id. |
//! | [`shutdown`](core::Spool::shutdown) | Everything is on stable storage, every thread has ended. |
//!
//! * A `store` that returns `Err` has stored nothing, and an earlier version of the message stands.
//!   If the record is appended at the deadline (the disk may have it), the store waits up to one
//!   second longer for the result. Without a result the error has the context
//!   [`InDoubt`](core::InDoubt), and the journal cancels the record with a second one. Only a crash
//!   before the second record is on stable storage can bring the message back.
//! * At most [`dirty_limit`](Config::dirty_limit) bytes are at risk, or one message if it is larger
//!   than that. At the limit, stores wait until the caller's deadline or
//!   [`store_deadline`](Config::store_deadline), whichever is earlier.
//! * While the disk rejects writes, no message is acknowledged as synced. Messages that were
//!   accepted before stay in memory, and are written again to another file until a write succeeds.
//!   "Within `dirty_expire`" holds on a disk that works.
//! * Damage on disk is a typed error, [`Corrupt`](core::Corrupt), or a line in the
//!   [`RecoveryReport`]. It never causes wrong bytes or the silent loss of a message.
//! * Every call works on any executor, with or without a tokio runtime. Blocking work runs on
//!   threads of the spool, and a separate thread handles the deadlines.
//! * Dropping the future of a call, at any point, corrupts nothing and leaks no room.
//!
//! # What it is not
//!
//! * Not a queue: it has no schedules, destinations or retries.
//! * Not a database: the only transaction is [`Tidespool::accept`], and a message is found only by
//!   its id.
//! * Not shared and not replicated: one process at a time has a directory open.
//! * Not portable: it runs on Linux only.
//!
//! # Features
//!
//! All are on by default. Each works alone and without the others.
//!
//! * `toml` – [`Config::from_toml`], [`Config::from_toml_file`] and [`Config::to_toml`]. Without
//!   it, make a [`Config`] in code, or with serde from another format.
//! * `prometheus` – [`Tidespool::prometheus_text`], [`TieredSpool::prometheus_text`] and
//!   [`StatsSnapshot::prometheus_text`]. Without it, export [`Tidespool::stats`].
//! * `pressure-monitor` – the thread `tide-pressure`, which samples memory and asks the spool to
//!   free some. Without it, no [`PressureMonitor`] can be made, the settings in [`PressureConfig`]
//!   are checked and not used, no limit of a control group bounds
//!   [`memory_budget`](Config::memory_budget), and
//!   [`advise_low_memory`](core::Spool::advise_low_memory) frees memory on request.
//!
//! # Follow a message
//!
//! One file a step, in the order in which a message passes through. Each link leads to the source.
//!
//! 1. [`tiered/calls/store.rs`](../src/tidespool/tiered/calls/store.rs.html) checks size, health
//!    and room. An unsynced message goes to
//!    [`memory/pending.rs`](../src/tidespool/memory/pending.rs.html), and at
//!    [`Durability::Process`] also to the [crash log](../src/tidespool/crash_log/mod.rs.html). A
//!    synced message goes to the commit queue,
//!    [`tiered/state/commit_queue.rs`](../src/tidespool/tiered/state/commit_queue.rs.html).
//! 2. [`tiered/commit/mod.rs`](../src/tidespool/tiered/commit/mod.rs.html): the committer thread
//!    takes everything that waits, and passes it to
//!    [`journal/writer.rs`](../src/tidespool/journal/writer.rs.html): one write, one `fdatasync`.
//! 3. [`tiered/commit/publish.rs`](../src/tidespool/tiered/commit/publish.rs.html) adds the place
//!    of the durable message to the index in memory, and removes the message from pending. A clean
//!    copy of a flushed message goes to the cache; a synced store fills the cache itself.
//! 4. [`tiered/calls/load.rs`](../src/tidespool/tiered/calls/load.rs.html) and
//!    [`tiered/calls/lookup.rs`](../src/tidespool/tiered/calls/lookup.rs.html) search pending, the
//!    cache, the index in memory and the index on disk, in that order.
//! 5. [`checkpoint/checkpointer.rs`](../src/tidespool/checkpoint/checkpointer.rs.html): after
//!    [`checkpoint_after`](Config::checkpoint_after), the checkpointer thread moves the places of
//!    the messages that still exist to the index on disk. Their bytes stay in the segments.
//! 6. [`tiered/calls/remove.rs`](../src/tidespool/tiered/calls/remove.rs.html) removes the message
//!    from every tier. It writes a tombstone only if a durable version could bring the message
//!    back.
//!
//! # Layout
//!
//! * [`core`] – the contract: the trait [`Spool`](core::Spool), ids, entries, errors. Servers are
//!   written against it.
//! * [`Config`] – every setting, with unit, default and bounds. [`SpoolConfig`] – those of one
//!   spool.
//! * [`Tidespool`] – a store with several spools. [`TieredSpool`] – a spool. [`RecoveryReport`] –
//!   what an opening found.
//! * [`PressureMonitor`] – watches memory. [`TieredSpool::open_watched`] shares one among spools. A
//!   server registers its own caches with it: [`pressure`].
//! * [`StatsSnapshot`] – every counter and gauge, also as Prometheus text.
//! * [`inspect`] – reads and salvages a spool's directory that no process has open.
//! * [`storage`] – the files under the journal as a trait, for tests that inject faults.
//!
//! The private modules:
//!
//! * `tiered` combines all tiers: `calls`, `commit`, `lifecycle` and `background`. `memory`,
//!   `journal` and `index` do not depend on each other. `index` has the engine of the index on
//!   disk.
//! * `crash_log` keeps acknowledged changes across the death of the process.
//! * `checkpoint` moves places from the index in memory to that on disk: `checkpointer`,
//!   `manifest`, `reclaim` and `value_log`.
//! * `directory` holds the directory of a store: path, lock, format file, names of the spools.
//!   `message_id` is the identity of a message in a store.
//! * `health` and `stats` are beside the path of a message. `timer` handles deadlines,
//!   `mailbox` the waiting of threads for each other.
//!
//! Threads are named after their work: `tide-commit`, `tide-checkpoint` and so on. More is in
//! the repository: `docs/on-disk-format.md`, `docs/design.md`, `docs/settings.md`, and
//! `docs/operating.md` for health, metrics and alerts.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

mod checkpoint;
mod config;
mod crash_log;
mod damage;
mod directory;
mod health;
mod index;
pub mod inspect;
mod journal;
mod mailbox;
mod memory;
mod message_id;
mod rate_limit;
mod stats;
pub mod storage;
mod store_error;
mod thread_limit;
mod tiered;
mod timer;
mod varint;
mod whole_text;

pub use config::{
    BacklogRefusal, Config, ConfigError, ConfigPlace, Durability, HealthCause, HealthConfig, HealthSignal,
    MinFree, SpoolConfig,
};
pub use memory::keep_the_heap_small;
pub use stats::{Gauges, Latency, SpoolCounts, StatsSnapshot};
pub use store_error::{AcceptError, SpoolNameError};
pub use tidespool_core as core;
pub use tidespool_core::{anyhow, async_channel, async_trait, bytes, chrono};
pub use tidespool_pressure as pressure;
#[doc(inline)]
pub use tidespool_pressure::{
    Level as PressureLevel, PressureConfig, PressureMonitor, Reading as PressureReading,
    Source as PressureSource,
};
pub use tiered::{Listed, ListedTier, RecoveryReport, Scan, Tidespool, TieredSpool};
/// The channel of [`TieredSpool::health_changes`].
pub use tokio::sync::watch;
