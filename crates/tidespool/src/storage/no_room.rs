//! One definition of "no room": which errors mean that a file cannot grow.

use std::io;

/// The file system, a quota or a limit leaves no room for what was to be written. Removing files,
/// or raising the limit, helps; writing to another file of the same spool does not.
///
/// * `ENOSPC` – no block or no inode is free.
/// * `EDQUOT` – a quota of a user, group, project, subvolume or data set is used up. `statvfs`
///   shows only some of these quotas.
/// * `EFBIG` – the file would be larger than the file system or `RLIMIT_FSIZE` allows.
pub(crate) fn is_no_room(error: &io::Error) -> bool {
    is_no_room_kind(error.kind())
}

/// The same for the kind alone, which is all that sled's errors keep.
pub(crate) const fn is_no_room_kind(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(kind, StorageFull | QuotaExceeded | FileTooLarge)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    /// Every check was for `ENOSPC` alone. A spool on a file system with a quota, which answers
    /// `EDQUOT`, never used its ballast: it could be neither emptied nor opened again.
    #[test]
    fn full_disks_used_up_quotas_and_files_at_their_limit_leave_no_room() {
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            assert!(is_no_room(&errno.into()), "{errno:?}");
        }
        for errno in [Errno::IO, Errno::ROFS, Errno::ACCESS, Errno::MFILE, Errno::NOMEM, Errno::INVAL] {
            assert!(!is_no_room(&errno.into()), "{errno:?}");
        }
    }
}
