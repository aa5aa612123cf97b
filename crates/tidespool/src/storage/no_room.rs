//! One definition of "no room": which errors mean that a file cannot grow.

use std::io;

/// True if the file system, a quota or a limit has no room for the write. Removing files or raising
/// the limit helps. Writing to another file of the same spool does not.
///
/// * `ENOSPC` – no block or no inode is free.
/// * `EDQUOT` – a quota of a user, group, project, subvolume or data set is used up. `statvfs`
///   shows only some of these quotas.
/// * `EFBIG` – the file would be larger than the file system or `RLIMIT_FSIZE` allows.
pub(crate) fn is_no_room(error: &io::Error) -> bool {
    is_no_room_kind(error.kind())
}

/// The same check on the error kind, which is all that the index engine's errors keep.
pub(crate) const fn is_no_room_kind(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(kind, StorageFull | QuotaExceeded | FileTooLarge)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    /// Every check was for `ENOSPC` alone. A file system with a quota returns `EDQUOT`, so a spool
    /// on it never used its ballast, and could be neither emptied nor opened.
    #[test]
    fn full_disks_quotas_and_file_size_limits_count_as_no_room() {
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            assert!(is_no_room(&errno.into()), "{errno:?}");
        }
        for errno in [Errno::IO, Errno::ROFS, Errno::ACCESS, Errno::MFILE, Errno::NOMEM, Errno::INVAL] {
            assert!(!is_no_room(&errno.into()), "{errno:?}");
        }
    }
}
