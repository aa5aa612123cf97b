//! Tests for implementations of [`Spool`](tidespool_core::Spool): one named case for each promise
//! that a caller can observe, and random histories of calls.
//!
//! Implement [`Factory`], which opens the spool under test.
//! [`conformance_tests!`](crate::conformance_tests) makes a `#[test]` of each case, so the name of
//! a failing test says which promise is broken. A spool that supports less than everything, such as
//! a cache, lists the [`Claim`]s that it does not make; [`check`] then reports the cases that need
//! them as [`Outcome::NotClaimed`].
//!
//! # Example
//!
//! A spool in memory, and all cases:
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::atomic::{AtomicBool, Ordering};
//! use std::sync::{Arc, Mutex, MutexGuard};
//! use std::time::Instant;
//!
//! use tidespool_conformance::{CASES, Factory, Outcome, check, model};
//! use tidespool_core::anyhow::{Result, ensure};
//! use tidespool_core::async_channel::{Sender, WeakSender};
//! use tidespool_core::async_trait::async_trait;
//! use tidespool_core::chrono::{DateTime, Utc};
//! use tidespool_core::{
//!     Closed, NotFound, Spool, SpoolCallerDeadlineExceeded, SpoolEntry, SpoolId, TooLarge,
//! };
//!
//! const LIMIT: u64 = 1 << 20;
//!
//! type Messages = BTreeMap<SpoolId, Vec<u8>>;
//!
//! /// Each clone of `messages` is the same storage: it outlives the spool, like a directory.
//! #[derive(Default)]
//! struct InMemory {
//!     messages: Arc<Mutex<Messages>>,
//!     closed: AtomicBool,
//!     enumerations: Mutex<Vec<WeakSender<SpoolEntry>>>,
//! }
//!
//! impl InMemory {
//!     fn messages(&self) -> Result<MutexGuard<'_, Messages>> {
//!         ensure!(!self.closed.load(Ordering::SeqCst), Closed);
//!         Ok(self.messages.lock().unwrap())
//!     }
//! }
//!
//! #[async_trait]
//! impl Spool for InMemory {
//!     async fn load(&self, id: SpoolId) -> Result<Vec<u8>> {
//!         Ok(self.messages()?.get(&id).cloned().ok_or(NotFound { id })?)
//!     }
//!
//!     async fn remove(&self, id: SpoolId) -> Result<()> {
//!         self.messages()?.remove(&id);
//!         Ok(())
//!     }
//!
//!     async fn store(
//!         &self,
//!         id: SpoolId,
//!         data: Arc<Box<[u8]>>,
//!         _force_sync: bool,
//!         deadline: Option<Instant>,
//!     ) -> Result<()> {
//!         let size = data.len() as u64;
//!         ensure!(size <= LIMIT, TooLarge { id, size, limit: LIMIT });
//!         ensure!(deadline.is_none_or(|at| at > Instant::now()), SpoolCallerDeadlineExceeded);
//!         self.messages()?.insert(id, data.to_vec());
//!         Ok(())
//!     }
//!
//!     fn enumerate(&self, sender: Sender<SpoolEntry>, start_time: DateTime<Utc>) -> Result<()> {
//!         let mut entries: Vec<SpoolEntry> = Vec::new();
//!         for (id, data) in self.messages()?.iter() {
//!             if id.created().is_none_or(|created| created < start_time) {
//!                 entries.push(SpoolEntry::Item { id: *id, data: data.clone() });
//!             }
//!         }
//!         self.enumerations.lock().unwrap().push(sender.downgrade());
//!         // A send fails when the receiver is dropped or the spool is shut down.
//!         let send = move |entry| sender.send_blocking(entry);
//!         std::thread::spawn(move || entries.into_iter().try_for_each(send));
//!         Ok(())
//!     }
//!
//!     async fn cleanup(&self) -> Result<()> {
//!         self.messages().map(drop)
//!     }
//!
//!     async fn shutdown(&self) -> Result<()> {
//!         self.closed.store(true, Ordering::SeqCst);
//!         for sender in self.enumerations.lock().unwrap().drain(..) {
//!             sender.upgrade().map(|sender| sender.close());
//!         }
//!         Ok(())
//!     }
//!
//!     async fn advise_low_memory(&self) -> Result<isize> {
//!         self.messages().map(|_| 0)
//!     }
//!
//!     async fn compact(&self) -> Result<()> {
//!         self.messages().map(drop)
//!     }
//!
//!     fn unhealthy_reason(&self) -> Option<&'static str> {
//!         self.closed.load(Ordering::SeqCst).then_some("the spool is shut down")
//!     }
//! }
//!
//! #[derive(Default)]
//! struct Storage(Arc<Mutex<Messages>>);
//!
//! #[async_trait]
//! impl Factory for Storage {
//!     async fn open(&self) -> Result<Arc<dyn Spool>> {
//!         Ok(Arc::new(InMemory { messages: self.0.clone(), ..InMemory::default() }))
//!     }
//!
//!     fn max_message_size(&self) -> u64 {
//!         LIMIT
//!     }
//! }
//!
//! // In a file of tests: a `#[test]` of each case.
//! mod conformance {
//!     tidespool_conformance::conformance_tests!(super::Storage::default());
//! }
//!
//! // Elsewhere: each case and its outcome.
//! for case in CASES {
//!     assert_eq!(check(Box::new(Storage::default()), case.run), Outcome::Kept, "{}", case.name);
//! }
//!
//! // Random histories of calls and restarts.
//! model::run(1, Storage::default);
//! ```
//!
//! # Layout
//!
//! * [`cases`] – the cases, and the list of them.
//! * [`model`] – random operations and restarts, compared with the reference spool step by step.
//! * [`mod@reference`] – a small, correct in-memory spool that other spools are compared with.
//! * [`payload`] – messages that identify themselves, so that torn, mixed or foreign bytes are
//!   always detected.
//! * [`ids`] – ids of every kind that a spool may get.
//! * [`wait`] – bounded waits for events in other threads.
//! * [`env`](mod@env) – the seeds and sizes of random tests.
//!
//! # What it is not
//!
//! Not for use outside of tests: it panics if a spool breaks a promise. Not a test of durability:
//! no case kills a process or breaks a disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken promise ends the test")]

pub mod cases;
mod claims;
pub mod env;
pub mod ids;
pub mod model;
pub mod payload;
pub mod reference;
mod subject;
pub mod wait;

pub use cases::{CASES, NamedCase};
pub use claims::Claim;
pub use subject::{Case, Factory, Outcome, Subject, check, run};
