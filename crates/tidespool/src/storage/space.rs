//! How much room a file system has: the one implementation, for the health gate, new segments and
//! the ballast.

use std::io;
use std::path::Path;

/// What a file system has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes that an ordinary user may still write.
    pub free_bytes: u64,
    /// Bytes of the file system. 0: it does not report its size (ramfs, some FUSE file systems),
    /// and [`free_bytes`](Self::free_bytes) means nothing.
    pub total_bytes: u64,
    /// Files that an ordinary user may still make.
    pub free_inodes: u64,
    /// 0 on a file system that makes inodes as it needs them, or does not report them.
    pub total_inodes: u64,
}

impl Space {
    /// Of the file system on which `path` lies, from `statvfs`. Quotas are not in it on most file
    /// systems.
    ///
    /// # Errors
    ///
    /// The path is gone, or the file system does not answer.
    pub fn of(path: &Path) -> io::Result<Self> {
        let stat = rustix::io::retry_on_intr(|| rustix::fs::statvfs(path))?;
        Ok(Self {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_inodes: stat.f_favail,
            total_inodes: stat.f_files,
        })
    }

    /// Whether `bytes` more fit. A file system that does not report its size has room.
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

    /// ramfs reports zero blocks. The gate took that for an unknown size, and the pool of segments
    /// for a full disk: no segment was ever made.
    #[test]
    fn a_file_system_that_does_not_report_its_size_has_room() {
        assert!(Space::default().has_room_for(u64::MAX));
        let full = Space { total_bytes: 1 << 30, ..Space::default() };
        assert!(!full.has_room_for(1) && full.has_room_for(0));
    }
}
