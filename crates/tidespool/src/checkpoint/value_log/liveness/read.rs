//! Reads a liveness log up to its committed length.

use std::io;
use std::path::Path;

use super::record::{
    BATCH_HEADER_LEN, BatchHeader, FileHeader, HEADER_LEN, VERSION, decode_entries, payload_crc,
};
use super::state::Liveness;
use super::{LivenessError, LogPosition};
use crate::storage::{StorageFile, read_exact_at};

/// Returns the live records of the retained segments, according to the file.
///
/// Damage is no error: the result reports it, and holds the intact part.
pub(super) fn read(
    path: &Path,
    file: &dyn StorageFile,
    position: LogPosition,
    is_retained: &dyn Fn(u64) -> bool,
) -> Result<Liveness, LivenessError> {
    Reader { path, file, position, liveness: Liveness::default() }.read(is_retained)
}

struct Reader<'a> {
    path: &'a Path,
    file: &'a dyn StorageFile,
    position: LogPosition,
    liveness: Liveness,
}

/// A batch whose header is intact.
struct ReadBatch {
    start: u64,
    header: BatchHeader,
}

impl Reader<'_> {
    fn read(mut self, is_retained: &dyn Fn(u64) -> bool) -> Result<Liveness, LivenessError> {
        let len = self.file.len().map_err(|source| self.io(source))?;
        if len < self.position.len {
            self.damage(&format!("it has {len} of {} bytes", self.position.len));
        }
        self.check_file_header(len)?;
        let (batches, is_whole) = self.find_batches(len.min(self.position.len))?;
        for batch in batches {
            let (number, start, crc) = (self.position.number, batch.start, batch.header.crc);
            let check = |payload: &[u8]| {
                let is_whole = payload_crc(number, start, payload) == crc;
                is_whole.then(|| decode_entries(payload)).flatten()
            };
            let len = u64::from(batch.header.len);
            match self.read_checked(start + BATCH_HEADER_LEN, len, check)? {
                Some(entries) => entries
                    .into_iter()
                    .filter(|entry| entry.is_of_all() || is_retained(entry.generation))
                    .for_each(|entry| self.liveness.apply(entry)),
                None => {
                    self.damage(&format!("the batch of {len} bytes at {start} fails its checksum"));
                    self.liveness.gap();
                }
            }
        }
        if !is_whole {
            self.liveness.gap();
        }
        self.liveness.settle();
        Ok(self.liveness)
    }

    /// Checks the header of the file. Damage there loses no entry, because each batch has a
    /// checksum that covers the number of the file.
    fn check_file_header(&mut self, len: u64) -> Result<(), LivenessError> {
        if len < HEADER_LEN {
            return Ok(());
        }
        match self.read_checked(0, HEADER_LEN, FileHeader::decode)? {
            Some(header) if header.version != VERSION => {
                Err(LivenessError::Version { path: self.path.to_owned(), version: header.version })
            }
            Some(header) if header.number != self.position.number => {
                self.damage(&format!("its header has the number {}", header.number));
                Ok(())
            }
            Some(_) => Ok(()),
            None => {
                self.damage("its header fails its checksum");
                Ok(())
            }
        }
    }

    /// Returns the batches that count, and whether none is missing.
    fn find_batches(&mut self, end: u64) -> Result<(Vec<ReadBatch>, bool), LivenessError> {
        let (mut batches, mut at) = (Vec::<ReadBatch>::new(), HEADER_LEN);
        while at < end {
            if end - at < BATCH_HEADER_LEN {
                self.damage(&format!("it ends within the header of the batch at {at}"));
                return Ok((batches, false));
            }
            let (number, start) = (self.position.number, at);
            let decode = |bytes: &[u8]| BatchHeader::decode(bytes, number, start);
            let Some(header) = self.read_checked(at, BATCH_HEADER_LEN, decode)? else {
                self.damage(&format!(
                    "the header of the batch at {at} fails its checksum: what follows is lost"
                ));
                return Ok((batches, false));
            };
            at += BATCH_HEADER_LEN + u64::from(header.len);
            if at > end {
                self.damage(&format!("it ends within the batch at {start}"));
                return Ok((batches, false));
            }
            // Batches that were written and never committed do not count.
            while batches.last().is_some_and(|batch| batch.start >= header.after) {
                batches.pop();
            }
            batches.push(ReadBatch { start, header });
        }
        Ok((batches, end == self.position.len))
    }

    /// Reads bytes and decodes them with `check`. If `check` rejects them, reads them once more
    /// from the disk.
    fn read_checked<T>(
        &self,
        offset: u64,
        len: u64,
        check: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, LivenessError> {
        // The caller has checked the length against the file.
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        read_exact_at(self.file, &mut bytes, offset).map_err(|source| self.io(source))?;
        if let Some(checked) = check(&bytes) {
            return Ok(Some(checked));
        }
        self.file.forget_cached();
        read_exact_at(self.file, &mut bytes, offset).map_err(|source| self.io(source))?;
        let checked = check(&bytes);
        if checked.is_some() {
            tracing::warn!(path = %self.path.display(), offset, "a second read returned intact data: the disk or the memory is faulty");
        }
        Ok(checked)
    }

    fn damage(&mut self, what: &str) {
        self.liveness.note_damage(format!("{}: {what}", self.path.display()));
    }

    fn io(&self, source: io::Error) -> LivenessError {
        LivenessError::Io { doing: "reading", path: self.path.to_owned(), source }
    }
}
