//! The fingerprint of sled's files. sled must not read a damaged file: it takes a read error for
//! the end of its log, and clears the rest. So every byte is read and compared before sled is
//! opened.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};

use crate::index::Fingerprint;
use crate::index::tally::number_of;
use crate::storage::{at, is_ignored_name};

/// Bytes of a file that a thread processes at a time.
const PIECE: u64 = 8 << 20;

/// Bytes read at once: few enough to be in the processor's cache when they are summed up.
const BLOCK: usize = 256 << 10;

/// Larger directories get no fingerprint, because reading them would make a shutdown too slow.
const MAX_BYTES: u64 = 16 << 30;

struct ListedFile {
    path: PathBuf,
    /// Path within the directory.
    name: Vec<u8>,
    len: u64,
}

/// Takes the fingerprint of the files in `dir`. Its digest is the sum, modulo 2⁶⁴, of one number
/// for each piece of 8 MiB: the number covers the file's name and length, and the piece's offset
/// and CRC-32C. `None` if that would last beyond `until`, if there are more than 16 GiB, or if an
/// entry is no plain file.
pub(super) fn fingerprint_of(dir: &Path, until: Option<Instant>) -> io::Result<Option<Fingerprint>> {
    let mut files = Vec::new();
    if !list(dir, dir, &mut files)? {
        return Ok(None);
    }
    let bytes = files.iter().map(|file| file.len).sum();
    if bytes > MAX_BYTES {
        return Ok(None);
    }
    // An empty file has a piece too, so that its name counts.
    let pieces: Vec<(&ListedFile, u64)> = files
        .iter()
        .flat_map(|file| (0..file.len.div_ceil(PIECE).max(1)).map(move |n| (file, n * PIECE)))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || sum_up(&pieces, &next, until);
    let (one, other) = thread::scope(|scope| {
        let helper = thread::Builder::new().name("tide-open".to_owned()).spawn_scoped(scope, work);
        let one = work();
        // Without a second thread, the first one has processed all pieces.
        let other = helper.map_or(Ok(Ok(Some(0))), thread::ScopedJoinHandle::join);
        (one, other.unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))))
    });
    let digest = one?.zip(other?).map(|(one, other)| one.wrapping_add(other));
    Ok(digest.map(|digest| Fingerprint { bytes, digest }))
}

/// Lists the files in `dir`. Returns `false` if an entry is neither file nor directory.
fn list(root: &Path, dir: &Path, files: &mut Vec<ListedFile>) -> io::Result<bool> {
    for entry in fs::read_dir(dir).map_err(|error| at(dir, error))? {
        let entry = entry.map_err(|error| at(dir, error))?;
        if is_ignored_name(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let path = entry.path();
        let metadata = fs::symlink_metadata(&path).map_err(|error| at(&path, error))?;
        if metadata.is_dir() {
            if !list(root, &path, files)? {
                return Ok(false);
            }
        } else if metadata.is_file() {
            let name = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes().to_vec();
            files.push(ListedFile { path, name, len: metadata.len() });
        } else {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the digest of the pieces that this thread takes.
fn sum_up(
    pieces: &[(&ListedFile, u64)],
    next: &AtomicUsize,
    until: Option<Instant>,
) -> io::Result<Option<u64>> {
    let mut block = vec![0; BLOCK];
    let mut digest = 0_u64;
    while let Some((file, offset)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
        if until.is_some_and(|until| until <= Instant::now()) {
            return Ok(None);
        }
        let end = file.len.min(offset + PIECE);
        let crc = crc_of(&file.path, *offset, end, &mut block).map_err(|error| at(&file.path, error))?;
        let numbers = [file.len, *offset, u64::from(crc)].map(u64::to_le_bytes);
        digest = digest.wrapping_add(number_of(&file.name, numbers.as_flattened()));
    }
    Ok(Some(digest))
}

fn crc_of(path: &Path, from: u64, to: u64, block: &mut [u8]) -> io::Result<u32> {
    let file = File::open(path)?;
    if let Some(len) = std::num::NonZeroU64::new(to - from) {
        // Starts the read-ahead of the whole piece. If that fails, the piece is read anyway.
        let _ = fadvise(&file, from, Some(len), Advice::WillNeed);
    }
    let (mut crc, mut at) = (0, from);
    while at < to {
        let len = usize::try_from(to - at).unwrap_or(block.len()).min(block.len());
        file.read_exact_at(&mut block[..len], at)?;
        crc = crc32c::crc32c_append(crc, &block[..len]);
        at += len as u64;
    }
    Ok(crc)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn files() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("blobs")).unwrap();
        let large: Vec<u8> = (0..2 * PIECE + 12_345).map(|n| (n % 251) as u8).collect();
        fs::write(dir.path().join("db"), large).unwrap();
        fs::write(dir.path().join("conf"), "settings").unwrap();
        fs::write(dir.path().join("blobs").join("7"), "").unwrap();
        dir
    }

    fn of(dir: &Path) -> Fingerprint {
        fingerprint_of(dir, None).unwrap().unwrap()
    }

    #[test]
    fn equal_files_in_another_directory_have_the_same_fingerprint() {
        let (one, other) = (files(), files());
        assert_eq!(of(one.path()), of(other.path()));
    }

    #[test]
    fn every_change_is_detected() {
        let dir = files();
        let (root, good) = (dir.path(), of(dir.path()));
        let db = fs::File::options().read(true).write(true).open(root.join("db")).unwrap();
        let len = db.metadata().unwrap().len();
        for at in [0, 4_095, PIECE - 1, PIECE, 2 * PIECE, len - 1] {
            let mut byte = [0];
            db.read_exact_at(&mut byte, at).unwrap();
            db.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert_ne!(of(root), good, "byte {at}");
            db.write_all_at(&byte, at).unwrap();
        }
        db.set_len(len + 1).unwrap();
        assert_ne!(of(root), good, "a longer file");
        db.set_len(len).unwrap();
        fs::write(root.join("blobs").join("8"), "").unwrap();
        assert_ne!(of(root), good, "one more file");
        fs::remove_file(root.join("blobs").join("8")).unwrap();
        fs::rename(root.join("blobs").join("7"), root.join("7")).unwrap();
        assert_ne!(of(root), good, "a file in another place");
        fs::rename(root.join("7"), root.join("blobs").join("7")).unwrap();
        assert_eq!(of(root), good);
    }

    #[test]
    fn swapped_pieces_are_detected() {
        let dir = tempfile::tempdir().unwrap();
        let piece = usize::try_from(PIECE).unwrap();
        fs::write(dir.path().join("db"), [vec![1; piece], vec![2; piece]].concat()).unwrap();
        let good = of(dir.path());
        fs::write(dir.path().join("db"), [vec![2; piece], vec![1; piece]].concat()).unwrap();
        assert_ne!(of(dir.path()), good);
    }

    #[test]
    fn a_timeout_or_a_link_yields_no_fingerprint() {
        let dir = files();
        let past = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        assert_eq!(fingerprint_of(dir.path(), Some(past)).unwrap(), None);
        std::os::unix::fs::symlink("db", dir.path().join("link")).unwrap();
        assert_eq!(fingerprint_of(dir.path(), None).unwrap(), None);
        assert!(fingerprint_of(&dir.path().join("missing"), None).is_err());
    }
}
