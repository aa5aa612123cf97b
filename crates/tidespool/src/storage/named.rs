//! I/O errors that name their file.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The inner error of an [`io::Error`] made by [`at`].
///
/// It has no `source`, so that the [`io::Error`] is the root cause.
#[derive(Debug, Error)]
#[error("{}: {error}", path.display())]
struct Named {
    path: PathBuf,
    error: io::Error,
}

/// Adds the path to the text of `error`. The kind and [`os_code`] stay the same. An error that has
/// a path is returned unchanged.
pub(crate) fn at(path: &Path, error: io::Error) -> io::Error {
    if named(&error).is_some() {
        return error;
    }
    io::Error::new(error.kind(), Named { path: path.to_owned(), error })
}

/// The system's error number. `None`: the error is not from the system.
pub(crate) fn os_code(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| named(error)?.error.raw_os_error())
}

fn named(error: &io::Error) -> Option<&Named> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_named_error_keeps_its_kind_and_code() {
        let path = Path::new("/spool/journal/00000001.seg");
        let error = at(path, Errno::DQUOT.into());
        assert!(error.to_string().starts_with("/spool/journal/00000001.seg: "), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        assert_eq!(os_code(&error), Some(Errno::DQUOT.raw_os_error()));
        let again = at(Path::new("/spool"), error);
        assert!(again.to_string().starts_with("/spool/journal/00000001.seg: "), "{again}");
        assert_eq!(os_code(&at(path, io::ErrorKind::StorageFull.into())), None);
    }
}
