//! Deletes a free segment before the spool is opened: on a full disk, opening may need its room.

use std::io;
use std::path::Path;

use super::pool::parse_segment_file_name;
use super::segment::{Role, SegmentHeader};
use crate::storage::{OpenMode, Storage, at, read_exact_at};

/// Deletes one segment file of this spool whose header says that it is free. False if there is
/// none.
pub(crate) fn give_up_a_free_segment(storage: &dyn Storage, dir: &Path, spool: [u8; 16]) -> io::Result<bool> {
    for name in storage.list(dir).map_err(|error| at(dir, error))? {
        let path = dir.join(&name);
        if parse_segment_file_name(&name).is_some() && is_free(storage, &path, spool) {
            storage.remove_file(&path).map_err(|error| at(&path, error))?;
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_free(storage: &dyn Storage, path: &Path, spool: [u8; 16]) -> bool {
    let mut bytes = [0; 48];
    // An unreadable file is kept: recovery reports it.
    let read = storage.open(path, OpenMode::Read).and_then(|file| read_exact_at(&*file, &mut bytes, 0));
    let header = read.ok().and_then(|()| SegmentHeader::decode(&bytes));
    header.is_some_and(|header| header.role == Role::Free && header.spool == spool)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::pool::segment_file_name;
    use crate::storage::OsStorage;

    #[test]
    fn only_free_segments_of_this_spool_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let write = |slot: u32, role, spool| {
            let header = SegmentHeader { role, generation: 1, size: 4096, spool };
            std::fs::write(dir.path().join(segment_file_name(slot)), header.encode()).unwrap();
        };
        write(1, Role::Journal, [1; 16]);
        write(2, Role::Cold, [1; 16]);
        write(3, Role::Free, [2; 16]);
        std::fs::write(dir.path().join(segment_file_name(4)), "short").unwrap();
        write(5, Role::Free, [1; 16]);
        let give_up = || give_up_a_free_segment(&OsStorage, dir.path(), [1; 16]).unwrap();
        assert!(give_up());
        assert!(!give_up());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
        assert!(!dir.path().join(segment_file_name(5)).exists());
    }
}
