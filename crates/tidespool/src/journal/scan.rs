//! Scans a segment for all records of one generation, whatever lies between them.

use std::io;

use super::record::{HEADER_LEN, RECORD_ALIGN, RecordHeader, RecordKind};
use super::segment::PAGE;
use crate::storage::{StorageFile, read_exact_at};

/// Bytes of one read.
const WINDOW: usize = 1 << 20;

/// A record with an intact header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FoundRecord {
    pub(crate) header: RecordHeader,
    /// Offset of the header in the file.
    pub(crate) offset: u64,
    /// The payload matches its checksum.
    pub(crate) intact: bool,
    /// The sequence number in an abort's payload.
    pub(crate) abort_of: Option<u64>,
}

/// Calls `visit` for each record of `generation`, in file order.
///
/// Where no header decodes, the scan tries the next offset, eight bytes on. So it skips padding,
/// stale records and damage. Missing records show in the sequence numbers, except the last ones.
/// Hence the return value: the number of places where a header of this generation may have been and
/// is broken.
pub(crate) fn scan(
    file: &dyn StorageFile,
    salt: u32,
    generation: u64,
    visit: &mut dyn FnMut(FoundRecord),
) -> io::Result<u64> {
    walk(file, salt, generation, Payloads::Check, visit)
}

/// Like [`scan`], but reads no payloads except those of aborts. [`FoundRecord::intact`] is true if
/// the file contains the whole payload. A payload that is larger than one read is not read at all.
pub(super) fn scan_headers(
    file: &dyn StorageFile,
    salt: u32,
    generation: u64,
    visit: &mut dyn FnMut(FoundRecord),
) -> io::Result<u64> {
    walk(file, salt, generation, Payloads::PassOver, visit)
}

/// How a scan treats payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payloads {
    Check,
    PassOver,
}

fn walk(
    file: &dyn StorageFile,
    salt: u32,
    generation: u64,
    payloads: Payloads,
    visit: &mut dyn FnMut(FoundRecord),
) -> io::Result<u64> {
    let mut window = ScanWindow::new(file)?;
    let mut offset = PAGE;
    let mut broken = 0;
    while offset + HEADER_LEN as u64 <= window.end {
        let Some(header) = window.header(offset, salt, generation)? else {
            broken += u64::from(window.u64_at(offset + 8)? == generation);
            offset = window.next_candidate(offset + RECORD_ALIGN, generation)?;
            continue;
        };
        let payload_at = offset + HEADER_LEN as u64;
        let payload_end = payload_at + u64::from(header.payload_len);
        let is_checked = payloads == Payloads::Check || header.kind == RecordKind::Abort;
        let intact = payload_end <= window.end
            && (!is_checked || window.crc(payload_at, payload_end)? == header.payload_crc);
        let abort_of = match header.kind {
            RecordKind::Abort if intact && header.payload_len == 8 => Some(window.u64_at(payload_at)?),
            _ => None,
        };
        visit(FoundRecord { header, offset, intact, abort_of });
        offset += header.footprint();
    }
    Ok(broken)
}

/// The newest generation that begins a batch in the file, for a segment with a damaged header page.
pub(crate) fn newest_generation(file: &dyn StorageFile, salt: u32) -> io::Result<Option<u64>> {
    let mut window = ScanWindow::new(file)?;
    let mut newest = None;
    let mut offset = PAGE;
    while offset + HEADER_LEN as u64 <= window.end {
        let claimed = window.u64_at(offset + 8)?;
        if claimed != 0 && window.header(offset, salt, claimed)?.is_some() {
            newest = newest.max(Some(claimed));
        }
        offset += PAGE;
    }
    Ok(newest)
}

/// The part of the file that is in memory. It moves with the scan.
struct ScanWindow<'a> {
    file: &'a dyn StorageFile,
    end: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> ScanWindow<'a> {
    fn new(file: &'a dyn StorageFile) -> io::Result<Self> {
        Ok(Self { file, end: file.len()?, start: 0, bytes: Vec::new() })
    }

    /// Up to `len` bytes from `offset`: fewer only if `len` exceeds [`WINDOW`].
    fn bytes(&mut self, offset: u64, len: u64) -> io::Result<&[u8]> {
        let len = usize::try_from(len).unwrap_or(WINDOW).min(WINDOW);
        let have = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + len as u64 > have {
            let size = usize::try_from(self.end - offset).unwrap_or(WINDOW).min(WINDOW);
            self.bytes.resize(size, 0);
            read_exact_at(self.file, &mut self.bytes, offset)?;
            self.start = offset;
        }
        let from = usize::try_from(offset - self.start).unwrap_or(0);
        Ok(&self.bytes[from..from + len])
    }

    fn header(&mut self, offset: u64, salt: u32, generation: u64) -> io::Result<Option<RecordHeader>> {
        let mut header = [0; HEADER_LEN];
        header.copy_from_slice(self.bytes(offset, HEADER_LEN as u64)?);
        Ok(RecordHeader::decode(&header, salt, generation))
    }

    /// The first offset from `offset` on where a header of this generation may start, judged by the
    /// bytes in memory.
    fn next_candidate(&mut self, offset: u64, generation: u64) -> io::Result<u64> {
        if offset + HEADER_LEN as u64 > self.end {
            return Ok(offset);
        }
        // Loads at least the bytes of one header.
        self.bytes(offset, HEADER_LEN as u64)?;
        let from = usize::try_from(offset - self.start).unwrap_or(0);
        let (words, _) = self.bytes[from..].as_chunks::<8>();
        // The generation is the second word of a header.
        let found = words[1..].iter().position(|word| u64::from_le_bytes(*word) == generation);
        let passed = found.unwrap_or(words.len() - 1) as u64;
        Ok(offset + passed * RECORD_ALIGN)
    }

    fn u64_at(&mut self, offset: u64) -> io::Result<u64> {
        let mut field = [0; 8];
        field.copy_from_slice(self.bytes(offset, 8)?);
        Ok(u64::from_le_bytes(field))
    }

    fn crc(&mut self, from: u64, to: u64) -> io::Result<u32> {
        let mut crc = 0;
        let mut at = from;
        while at < to {
            let part = self.bytes(at, to - at)?;
            crc = crc32c::crc32c_append(crc, part);
            at += part.len() as u64;
        }
        Ok(crc)
    }
}
