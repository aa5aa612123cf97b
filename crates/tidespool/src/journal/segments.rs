//! The segments in use, by generation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::buffers::Buffers;
use super::pool::{FreeSegment, Pool};
use super::segment::{Role, Segment, SegmentHeader, Use};
use crate::storage::StorageFile;

/// Generations reserved ahead: more than can be used between two manifests.
const GENERATIONS_AHEAD: u64 = 1 << 20;

/// Every segment with content: the journal's and the retained ones.
#[derive(Debug)]
pub(crate) struct Segments {
    by_generation: RwLock<BTreeMap<u64, Arc<Segment>>>,
    /// Generations that the manifest lists and that were not found at open.
    missing: RwLock<BTreeSet<u64>>,
    /// Retired segments that still have readers. Each goes to the pool after its last reader.
    leaving: parking_lot::Mutex<Vec<Arc<Segment>>>,
    next_generation: AtomicU64,
    spool: [u8; 16],
    salt: u32,
    pool: Arc<Pool>,
    buffers: Buffers,
}

impl Segments {
    pub(crate) fn new(pool: Arc<Pool>, spool: [u8; 16], next_generation: u64) -> Self {
        Self {
            by_generation: RwLock::default(),
            missing: RwLock::default(),
            leaving: parking_lot::Mutex::default(),
            next_generation: AtomicU64::new(next_generation),
            spool,
            salt: salt_of(spool),
            pool,
            buffers: Buffers::default(),
        }
    }

    /// The gauge of the writer's memory.
    pub(super) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Memory of the writer in bytes: queued records and the batch buffer. Messages are not
    /// included: their permits count them.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        self.buffers.bytes()
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn salt(&self) -> u32 {
        self.salt
    }

    /// No generation from this one on is used before the manifest is written again.
    pub(crate) fn reserved_generation(&self) -> u64 {
        self.next_generation.load(Ordering::Relaxed) + GENERATIONS_AHEAD
    }

    /// The generation of the next use of a segment.
    pub(crate) fn next_generation(&self) -> u64 {
        self.next_generation.load(Ordering::Relaxed)
    }

    /// Begins a use of a free file, with the next generation. The caller writes the header page
    /// with its first batch.
    pub(crate) fn activate(
        &self,
        free: FreeSegment,
        role: Role,
        counted: bool,
    ) -> (Arc<Segment>, SegmentHeader) {
        if role == Role::Journal
            && let Some(bytes) = self.batch_bytes()
        {
            self.pool.note_batch_bytes(bytes);
        }
        let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
        let header = SegmentHeader { role, generation, size: free.size, spool: self.spool };
        let segment =
            Arc::new(Segment::new(header, free.slot, free.path, free.file, Use { settled: false, counted }));
        self.insert(segment.clone());
        (segment, header)
    }

    /// Average bytes that a sync of the journal's last segment covered.
    fn batch_bytes(&self) -> Option<u64> {
        let segments = self.by_generation.read();
        let last = segments.values().rfind(|segment| segment.role == Role::Journal)?;
        last.size.checked_div(last.syncs())
    }

    pub(super) fn spool(&self) -> [u8; 16] {
        self.spool
    }

    /// The generations from `from` on, at most `count`.
    pub(super) fn generations(&self, from: u64, count: usize) -> Vec<u64> {
        self.by_generation.read().range(from..).take(count).map(|(generation, _)| *generation).collect()
    }

    pub(crate) fn insert(&self, segment: Arc<Segment>) {
        self.by_generation.write().insert(segment.generation, segment);
    }

    /// The segment of this generation. It is not recycled while the `Arc` exists.
    pub(crate) fn get(&self, generation: u64) -> Option<Arc<Segment>> {
        self.by_generation.read().get(&generation).cloned()
    }

    /// Records that the manifest lists this generation and that its segment was not found.
    pub(crate) fn note_missing(&self, generation: u64) {
        self.missing.write().insert(generation);
    }

    /// Whether [`note_missing`](Self::note_missing) recorded this generation.
    pub(crate) fn is_missing(&self, generation: u64) -> bool {
        self.missing.read().contains(&generation)
    }

    /// All segments, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Segment>> {
        self.by_generation.read().values().cloned().collect()
    }

    /// Marks a recycled file as free, so that even without the manifest its records do not count as
    /// live. Not synced, and a failure is harmless: the manifest decides.
    fn mark_free(&self, path: &Path, file: &dyn StorageFile, size: u64) {
        let header = SegmentHeader { role: Role::Free, generation: 0, size, spool: self.spool };
        if let Err(error) = header.write(file) {
            tracing::debug!(path = %path.display(), %error, "a recycled segment could not be marked as free");
        }
    }

    /// Keeps a checkpointed segment for the messages in it. It no longer counts against the
    /// journal's capacity.
    pub(crate) fn retain(&self, segment: &Segment) {
        if segment.uncount() {
            self.pool.count_out();
        }
    }

    /// Ends the use of a segment. After its last reader, its file goes back to the pool. It is
    /// deleted instead if it failed, was lost, has another size than the pool's segments, or is
    /// surplus.
    pub(crate) fn retire(&self, generation: u64) {
        let segment = self.by_generation.write().remove(&generation);
        self.leaving.lock().extend(segment);
        self.release_unread();
    }

    /// Gives the files of retired segments without readers to the pool, or deletes them.
    pub(crate) fn release_unread(&self) {
        let released: Vec<Segment> = {
            let mut leaving = self.leaving.lock();
            let (unread, read): (Vec<_>, Vec<_>) =
                leaving.drain(..).map(Arc::try_unwrap).partition(Result::is_ok);
            leaving.extend(read.into_iter().filter_map(Result::err));
            unread.into_iter().filter_map(Result::ok).collect()
        };
        for segment in released {
            if segment.uncount() {
                self.pool.count_out();
            }
            if segment.has_failed() || segment.is_lost() {
                self.pool.delete(&segment.path);
            } else {
                let Segment { slot, path, file, size, .. } = segment;
                self.mark_free(&path, &*file, size);
                self.pool.give(FreeSegment { slot, path, file, size });
            }
        }
    }
}

/// The start value of the checksums of this spool's records.
pub(crate) fn salt_of(spool: [u8; 16]) -> u32 {
    crc32c::crc32c(&spool)
}
