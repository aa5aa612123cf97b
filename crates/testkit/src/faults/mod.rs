//! A storage that breaks as told: the real files, with faults in between.
//!
//! # Layout
//!
//! * `fault` – what breaks, when, and how: a script of [`Fault`]s.
//! * `storage` – [`FaultyStorage`]: the real file system, counted, watched and broken.
//! * `unsynced` – what was written and not yet synced: what a power cut may take away.
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
