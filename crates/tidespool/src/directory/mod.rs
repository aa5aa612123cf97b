//! The directory of a spool, before anything in it is read: its path, its lock, its format file.
//!
//! * `path` – the path, resolved and created.
//! * `lock` – the directory, held by its lock.
//! * `format` – the format file: the version of the layout, and the spool's id.

mod format;
mod lock;
mod path;

pub(crate) use format::{FORMAT_FILE, FORMAT_VERSION, identify, render as render_format};
pub(crate) use lock::{Directory, LOCK_FILE, lock_again, lock_untouched};
pub(crate) use path::existing;
