//! Lists the records of a settled segment, from its footer or from a scan.

use std::io;

use super::footer::{FooterEntry, Records, TRAILER_BYTES, TRAILER_LEN, Trailer, footer_len};
use super::scan::{FoundRecord, scan, scan_headers};
use super::segment::{PAGE, ReadError, Segment};
use crate::storage::read_exact_at;

/// The records of a segment in file order, in 32 bytes of memory each.
///
/// Payloads are not read, so a listed record may be damaged. A listing from a footer also contains
/// records whose headers were damaged later.
#[derive(Debug)]
pub(crate) struct Listing {
    records: Records,
    /// The listing is from the footer, not from a scan.
    #[cfg(test)]
    pub(super) from_footer: bool,
}

impl Listing {
    /// The records, in file order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = FooterEntry> {
        self.records.iter()
    }

    /// The number of records.
    #[cfg(test)]
    pub(super) fn len(&self) -> u64 {
        self.records.len()
    }

    const fn new(records: Records, from_footer: bool) -> Self {
        #[cfg(not(test))]
        let _ = from_footer;
        Self {
            records,
            #[cfg(test)]
            from_footer,
        }
    }
}

impl Segment {
    /// Lists the records of a segment to which nothing more is written.
    ///
    /// # Errors
    ///
    /// [`ReadError::Io`], also if two scans differ. A missing or damaged footer is not an error:
    /// the segment is scanned.
    pub(crate) fn listing(&self, salt: u32) -> Result<Listing, ReadError> {
        if let Some(records) = self.read_footer(salt)? {
            return Ok(Listing::new(records, true));
        }
        let records = self.read_confirmed(|| {
            let mut records = Records::default();
            scan_headers(&*self.file, salt, self.generation, &mut |found| {
                records.push(&FooterEntry {
                    id: found.header.id,
                    kind: found.header.kind,
                    seq: found.header.seq,
                    offset: found.offset,
                    len: found.header.payload_len,
                    abort_of: found.abort_of,
                });
            })?;
            Ok(records)
        })?;
        Ok(Listing::new(records, false))
    }

    /// Every record with an intact header, in file order. Payloads are checked.
    ///
    /// # Errors
    ///
    /// As [`listing`](Self::listing).
    pub(crate) fn records(&self, salt: u32) -> Result<Vec<FoundRecord>, ReadError> {
        self.read_confirmed(|| {
            let mut records = Vec::new();
            scan(&*self.file, salt, self.generation, &mut |found| records.push(found))?;
            Ok(records)
        })
    }

    /// Reads twice, the second time from the disk, and fails if the results differ. A scan skips a
    /// header that was misread, so one scan does not prove that a record is gone.
    fn read_confirmed<T: PartialEq>(&self, read: impl Fn() -> io::Result<T>) -> Result<T, ReadError> {
        let read_again = || {
            let first = read()?;
            self.file.forget_cached();
            let second = read()?;
            match first == second {
                true => Ok(second),
                false => Err(io::Error::other("two reads differ: the disk or memory is faulty")),
            }
        };
        read_again().map_err(|source| ReadError::Io { path: self.path.clone(), source })
    }

    /// Reads the footer. `None`: there is no intact one.
    fn read_footer(&self, salt: u32) -> Result<Option<Records>, ReadError> {
        if self.is_footer_void() {
            return Ok(None);
        }
        self.retry_if_none(|| self.read_footer_once(salt))
    }

    /// Repeats a read that found nothing, from the disk. The first read may have been corrupted in
    /// transfer or in memory.
    fn retry_if_none<T>(
        &self,
        read: impl Fn() -> Result<Option<T>, ReadError>,
    ) -> Result<Option<T>, ReadError> {
        if let Some(found) = read()? {
            return Ok(Some(found));
        }
        self.file.forget_cached();
        read()
    }

    fn read_footer_once(&self, salt: u32) -> Result<Option<Records>, ReadError> {
        let Some(trailer) = self.read_trailer_once(salt)? else { return Ok(None) };
        let len = footer_len(trailer.count.into());
        let Some(end) = self.size.checked_sub(len).filter(|end| *end >= PAGE) else { return Ok(None) };
        let mut bytes = vec![0; usize::try_from(trailer.entries_len()).unwrap_or(0)];
        let from = self.size - TRAILER_LEN - trailer.entries_len();
        Ok(self
            .read_within_file(&mut bytes, from)?
            .then_some(bytes)
            .and_then(|bytes| Records::decode(bytes, trailer, salt, end)))
    }

    /// Reads the trailer of the footer. `None`: there is no intact one.
    pub(super) fn read_trailer(&self, salt: u32) -> Result<Option<Trailer>, ReadError> {
        self.retry_if_none(|| self.read_trailer_once(salt))
    }

    fn read_trailer_once(&self, salt: u32) -> Result<Option<Trailer>, ReadError> {
        let mut bytes = [0; TRAILER_BYTES];
        let Some(from) = self.size.checked_sub(TRAILER_LEN) else { return Ok(None) };
        let is_within_file = self.read_within_file(&mut bytes, from)?;
        Ok(is_within_file.then(|| Trailer::decode(&bytes, salt, self.generation)).flatten())
    }

    /// Reads exactly `bytes`. False if the file ends before.
    fn read_within_file(&self, bytes: &mut [u8], offset: u64) -> Result<bool, ReadError> {
        match read_exact_at(&*self.file, bytes, offset) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(ReadError::Io { path: self.path.clone(), source }),
        }
    }
}
