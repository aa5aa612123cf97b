//! The directory of a spool, before anything in it is read: its path, its lock, its format file.
//!
//! * `path` – the path, resolved and created.
//! * `lock` – the directory, held by its lock.
//! * `format` – the format file: the version of the layout, the store's id, the names of its
//!   spools.
//! * `names` – the spools of a store.

mod format;
mod lock;
mod names;
mod path;

pub(crate) use format::{FORMAT_FILE, FORMAT_VERSION, Format, identify, render as render_format};
pub(crate) use lock::{Directory, LOCK_FILE, lock_again, lock_untouched};
pub(crate) use names::{MAX_NAME, MAX_SPOOLS, NoSpool, SpoolNames, is_name};
pub(crate) use path::existing;
