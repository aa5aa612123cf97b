//! A storage that injects faults into calls to the real file system.
//!
//! # Layout
//!
//! * `fault` – which calls fail, when, and how: a script of [`Fault`]s.
//! * `storage` – [`FaultyStorage`]: the real file system, with counted calls, a watcher and faults.
//! * `unsynced` – the writes that are not synced, which a power cut may undo.
//!
//! ```
//! use tidespool::storage::{OpenMode, Storage as _};
//! use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
//!
//! let dir = tempfile::tempdir()?;
//! let storage = FaultyStorage::new();
//! let file = storage.open(&dir.path().join("a"), OpenMode::Create)?;
//! storage.inject(Fault::on(Call::Sync).nth(2));
//! file.sync_data()?;
//! assert!(file.sync_data().is_err());
//! file.sync_data()?;
//! assert_eq!(storage.count(Call::Sync), 3);
//! # Ok::<(), std::io::Error>(())
//! ```

mod fault;
mod storage;
#[cfg(test)]
mod tests;
mod unsynced;

pub use fault::{Call, Fault, Moment, Strike};
pub use storage::FaultyStorage;
pub use unsynced::Unsynced;
