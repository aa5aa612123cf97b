//! Footers that a crash invalidated: they list records of a torn tail.
//!
//! A footer is written before its segment's last sync ends. A power cut may keep the footer and
//! lose records before it. Later records reuse the sequence numbers of the lost ones, so such a
//! footer must never be read.

use std::io::IoSlice;
use std::sync::Arc;

use super::error::{RecoveryError, failed};
use super::footer::{TRAILER_BYTES, TRAILER_LEN};
use super::segment::{ReadError, Segment};
use crate::storage::write_all_at;

/// Finds the footers that list a record from number `cut_from` on. Listings scan these segments
/// from now on.
pub(super) fn void_footers(
    segments: &[Arc<Segment>],
    salt: u32,
    cut_from: u64,
) -> Result<Vec<Arc<Segment>>, RecoveryError> {
    let mut void = Vec::new();
    for segment in segments {
        let trailer = segment.read_trailer(salt).map_err(|error| reading(segment, error))?;
        if trailer.is_some_and(|trailer| trailer.last_seq >= cut_from) {
            segment.void_footer();
            void.push(segment.clone());
        }
    }
    Ok(void)
}

fn reading(segment: &Segment, error: ReadError) -> RecoveryError {
    let source = match error {
        ReadError::Io { source, .. } => source,
        damaged @ ReadError::Damaged { .. } => std::io::Error::other(damaged),
    };
    failed("reading", &segment.path)(source)
}

/// Overwrites a footer. Must run before records are cut: afterwards nothing shows that the footer
/// is invalid.
pub(super) fn erase_footer(segment: &Segment) -> Result<(), RecoveryError> {
    let zeros = [0; TRAILER_BYTES];
    write_all_at(&*segment.file, &mut [IoSlice::new(&zeros)], segment.size - TRAILER_LEN)
        .and_then(|()| segment.file.sync_data())
        .map_err(failed("erasing the footer of", &segment.path))
}
