//! The space that a file system has left.

use std::io;
use std::path::Path;

/// The space that a file system has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes that an unprivileged user may still write.
    pub free_bytes: u64,
    /// Bytes of the file system. 0: it does not report its size (ramfs, some FUSE file systems),
    /// and [`free_bytes`](Self::free_bytes) means nothing.
    pub total_bytes: u64,
    /// Files that an unprivileged user may still create.
    pub free_inodes: u64,
    /// Inodes of the file system. 0: it creates inodes on demand, or does not report them.
    pub total_inodes: u64,
    /// The file system keeps its files in memory (tmpfs, ramfs). Its figures are exact.
    pub is_in_memory: bool,
}

/// `TMPFS_MAGIC` and `RAMFS_MAGIC`.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

impl Space {
    /// Returns the space of the file system of `path`, from `statvfs`. Most file systems do not
    /// include quotas. Only [`OsStorage`](super::OsStorage) calls this.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let stat = rustix::io::retry_on_intr(|| rustix::fs::statvfs(path))?;
        let kind = rustix::io::retry_on_intr(|| rustix::fs::statfs(path))?.f_type;
        Ok(Self {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_inodes: stat.f_favail,
            total_inodes: stat.f_files,
            is_in_memory: IN_MEMORY.contains(&kind),
        })
    }

    /// Whether `bytes` more fit. True if the file system does not report its size.
    #[must_use]
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.total_bytes == 0 || self.free_bytes >= bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_file_system_reports_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::of(dir.path()).unwrap();
        assert!(space.total_bytes >= space.free_bytes && space.total_bytes > 0, "{space:?}");
        let err = Space::of(&dir.path().join("missing")).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::NotFound);
    }

    /// ramfs reports zero blocks. The health gate treated that as an unknown size, and the segment
    /// pool as a full disk: no segment was ever created.
    #[test]
    fn a_file_system_that_does_not_report_its_size_has_room() {
        assert!(Space::default().has_room_for(u64::MAX));
        let full = Space { total_bytes: 1 << 30, ..Space::default() };
        assert!(!full.has_room_for(1) && full.has_room_for(0));
    }
}
