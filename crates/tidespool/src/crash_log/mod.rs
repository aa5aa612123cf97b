//! The crash log: a mapped file, which outlives the process, with all changes that are acknowledged
//! and not on stable storage yet.
//!
//! A store or a removal is written here before its caller gets `Ok`. This copies to memory and
//! makes no system call. The pages belong to the kernel: they survive a panic, `abort`, `kill -9`
//! and the OOM killer, but not the end of the machine.
//!
//! # Rules
//!
//! * For each message the log holds the newest acknowledged version until that version is on stable
//!   storage, or until the message is removed and nothing of it is on disk. A replacement commits
//!   the new entry first and drops the old one after that, both under the lock of the id's shard.
//! * An entry counts when its commit word is written, which is written last. A thread that is
//!   killed before that leaves no entry.
//! * The file has a fixed size, and all its blocks are allocated when it is made. A change that
//!   does not fit into it goes to the journal, with a sync.
//! * The log is valid in one boot of the machine, for the spool whose id it has: [`read`].
//! * A page that can't be read or allocated breaks the log and not the process ([`mapping`]). Then
//!   another log replaces it, and all dirty data is written to the journal at once.
//!
//! # Layout
//!
//! `mapping` – the file as words, and all `unsafe` code. `layout` – the format. `arena` – free
//! slots. `read` – reads a file. `left` – reads what the last run left in a directory.

mod arena;
mod layout;
mod left;
mod mapping;
mod read;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::available_parallelism;

use arena::{Allocated, Arena};
use layout::{CHUNK, ChunkUse, LogHeader, MAX_ARENAS, SizeClass, SlotHeader, SlotPlace, Spread};

use crate::message_id::MessageId;

pub(crate) use left::LastRun;
use mapping::Mapping;
use parking_lot::Mutex;
pub(crate) use read::LoggedChange;
use read::{Foreign, LogContents, read};
use uuid::Uuid;

use crate::storage::{FileState, OpenMode, Storage, StorageFile, reserve};

/// The name of the file in the spool's directory.
pub(crate) const CRASH_LOG: &str = "crash-log";

/// The name under which a log is made before it replaces another.
pub(crate) const NEW_CRASH_LOG: &str = "crash-log.new";

/// The largest file, in bytes. [`SlotPlace`] counts words in 32 bits.
const MAX_BYTES: u64 = 16 << 30;

/// This part of the chunks, one in so many, is reserved for removals, because removals free room.
const REMOVAL_SHARE: u32 = 8;

/// The log of a running spool.
#[derive(Debug)]
pub(crate) struct CrashLog {
    file: Arc<dyn StorageFile>,
    mapping: Mapping,
    header: LogHeader,
    spare: Mutex<Spare>,
    /// The number of chunks that no arena has, readable without the lock of `spare`.
    spares: AtomicUsize,
    /// The number of chunks in the memory of the process, readable without the lock of `spare`.
    touched: AtomicUsize,
    arenas: Box<[Mutex<Arena>]>,
    /// Dropped slots keep their entries in the file.
    is_frozen: AtomicBool,
}

/// The chunks that no arena has.
#[derive(Debug)]
struct Spare {
    /// The last chunk is taken first.
    chunks: Vec<u32>,
    /// By chunk number, for all chunks: the chunk is in the memory of the process.
    is_touched: Vec<bool>,
}

/// An entry that is written but not committed: it does not count yet.
#[derive(Debug)]
pub(crate) struct Written {
    slot: Slot,
    id: MessageId,
    len: Option<u32>,
    payload_crc: u32,
}

/// The space of an entry. Dropping it removes the entry from the log.
///
/// 32 bytes, because each dirty message has one.
#[derive(Debug)]
pub(crate) struct Slot {
    log: Arc<CrashLog>,
    /// The further chunks of a large entry.
    #[expect(clippy::box_collection, reason = "few entries have further chunks, and each has this field")]
    more: Option<Box<Vec<u32>>>,
    chunk: u32,
    slot: u16,
    arena: u16,
    /// The checksum of the entry's header, if the entry is committed.
    crc: u32,
    class: SizeClass,
    is_committed: bool,
}

const _: () = assert!(size_of::<Slot>() == 32);

impl CrashLog {
    /// Makes a log of about `bytes` in a new file, and allocates all blocks of the file.
    pub(crate) fn create(
        storage: &dyn Storage,
        path: &Path,
        spool: [u8; 16],
        bytes: u64,
    ) -> io::Result<Arc<Self>> {
        let arenas = available_parallelism().map_or(1, usize::from).clamp(1, MAX_ARENAS.min(16));
        let chunks = u32::try_from(bytes.min(MAX_BYTES) / CHUNK as u64).unwrap_or(0).max(1);
        let (nonce, _) = Uuid::new_v4().as_u64_pair();
        let arenas_too = u32::try_from(arenas).unwrap_or(1);
        let header = LogHeader { spool, boot: storage.boot_id()?, nonce, chunks, arenas: arenas_too };
        let file = storage.open(path, OpenMode::Create)?;
        let Some(descriptor) = file.descriptor() else { return Err(io::ErrorKind::Unsupported.into()) };
        reserve(&*file, header.file_len() as u64)?;
        let mapping = Mapping::new(descriptor, header.file_len())?;
        for (at, word) in header.encode().into_iter().enumerate() {
            mapping.store(at, word);
        }
        let log = Self {
            mapping,
            header,
            spare: Mutex::new(Spare {
                chunks: (0..chunks).rev().collect(),
                is_touched: vec![false; chunks as usize],
            }),
            spares: AtomicUsize::new(chunks as usize),
            touched: AtomicUsize::new(0),
            arenas: (0..arenas).map(|_| Mutex::new(Arena::new(chunks as usize))).collect(),
            is_frozen: AtomicBool::new(false),
            file,
        };
        match log.mapping.is_broken() {
            false => Ok(Arc::new(log)),
            true => Err(io::Error::other("a page of the file could not be written")),
        }
    }

    /// Writes a message, which does not count before it is committed. Returns `None` if there is no
    /// room.
    pub(crate) fn write(self: &Arc<Self>, id: MessageId, data: &[u8], payload_crc: u32) -> Option<Written> {
        let len = u32::try_from(data.len()).ok()?;
        let spread = Spread::of(data.len());
        let class = SizeClass::of(data.len()).unwrap_or(SizeClass::WHOLE);
        let slot = self.allocate(class, spread.more, false)?;
        let at = self.place(&slot) as usize;
        for (place, pair) in LogHeader::list_of(at, slot.more()) {
            self.mapping.store(place, pair);
        }
        self.mapping.fill(at + LogHeader::payload_at(spread), &data[..spread.first]);
        for (chunk, range) in slot.more().iter().zip(spread.others(data.len())) {
            self.mapping.fill(self.header.chunk_at(*chunk), &data[range]);
        }
        Some(Written { slot, id, len: Some(len), payload_crc })
    }

    /// Writes a removal, which does not count before it is committed. Returns `None` if there is no
    /// room.
    pub(crate) fn write_removal(self: &Arc<Self>, id: MessageId) -> Option<Written> {
        let slot = self.allocate(SizeClass::of(0)?, 0, true)?;
        Some(Written { slot, id, len: None, payload_crc: 0 })
    }

    /// From now on, dropped slots keep their entries in the log. For a spool that ends before
    /// everything is durable.
    pub(crate) fn freeze(&self) {
        self.is_frozen.store(true, Ordering::Release);
    }

    /// True if a page could not be read or allocated. Entries written since then are lost with the
    /// process.
    pub(crate) fn is_broken(&self) -> bool {
        self.mapping.is_broken()
    }

    /// Invalidates the file if the log is broken, because the file keeps entries that are dropped
    /// after the fault. Call it after each change, and before a change is acknowledged. Returns
    /// whether the log is broken.
    fn end_if_broken(&self) -> bool {
        let is_broken = self.is_broken();
        if is_broken {
            self.mapping.store(0, 0);
        }
        is_broken
    }

    /// Returns the state of the open file, also if it was renamed or deleted.
    pub(crate) fn state(&self) -> io::Result<FileState> {
        self.file.state()
    }

    /// Returns the size of the file in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.header.file_len() as u64
    }

    /// Returns how many bytes of the file's chunks are in the memory of the process.
    pub(crate) fn touched_bytes(&self) -> u64 {
        (self.touched.load(Ordering::Relaxed) * CHUNK) as u64
    }

    /// Removes unused chunks from the memory of the process.
    pub(crate) fn trim(&self) {
        self.collect_empty();
        let mut spare = self.spare.lock();
        let Spare { chunks, is_touched } = &mut *spare;
        for chunk in chunks.iter().filter(|chunk| std::mem::take(&mut is_touched[**chunk as usize])) {
            self.mapping.release_resident(self.header.chunk_at(*chunk), layout::CHUNK_WORDS);
            self.touched.fetch_sub(1, Ordering::Relaxed);
        }
        // Chunks at the start of the file are taken first, as in a new log.
        chunks.sort_unstable_by(|one, other| other.cmp(one));
    }

    /// Allocates a slot and `more` further chunks.
    fn allocate(self: &Arc<Self>, class: SizeClass, more: usize, is_removal: bool) -> Option<Slot> {
        let number = arena_of_thread() % self.arenas.len();
        let arena = u16::try_from(number).ok()?;
        let kept = if is_removal { 0 } else { self.header.chunks / REMOVAL_SHARE } as usize;
        let others = match more {
            0 => Vec::new(),
            _ => self.take_chunks(more, kept)?,
        };
        let mut state = self.arenas[number].lock();
        let allocated = match state.allocate(class) {
            Some(allocated) => allocated,
            None => {
                drop(state);
                let Some(chunk) = self.take_chunks(1, kept).and_then(|mut chunks| chunks.pop()) else {
                    self.put_back(&others);
                    return None;
                };
                state = self.arenas[number].lock();
                self.set_use(chunk, ChunkUse { class, arena, used: 0 });
                state.add(chunk, class);
                state.allocate(class)?
            }
        };
        if allocated.is_new {
            // Before the table counts the slot as used: it may still have bytes of a slot of
            // another class.
            self.mapping.store(self.place_of(allocated.chunk, allocated.slot, class) as usize, 0);
            self.set_use(allocated.chunk, ChunkUse { class, arena, used: u32::from(allocated.slot) + 1 });
        }
        drop(state);
        let Allocated { chunk, slot, .. } = allocated;
        let more = (!others.is_empty()).then(|| Box::new(others));
        Some(Slot { log: self.clone(), more, chunk, slot, arena, crc: 0, class, is_committed: false })
    }

    /// Takes `count` spare chunks. Returns `None` if fewer than `kept` would be left.
    fn take_chunks(&self, count: usize, kept: usize) -> Option<Vec<u32>> {
        let take = || {
            let mut spare = self.spare.lock();
            let left = spare.chunks.len().checked_sub(count).filter(|left| *left >= kept)?;
            let taken = spare.chunks.split_off(left);
            self.spares.store(left, Ordering::Relaxed);
            let mut is_new = |chunk: &u32| !std::mem::replace(&mut spare.is_touched[*chunk as usize], true);
            let new = taken.iter().filter(|chunk| is_new(chunk)).count();
            self.touched.fetch_add(new, Ordering::Relaxed);
            Some(taken)
        };
        take().or_else(|| {
            self.collect_empty();
            take()
        })
    }

    /// Takes the empty chunks from all arenas.
    #[cold]
    fn collect_empty(&self) {
        for arena in &self.arenas {
            let mut arena = arena.lock();
            let empty = arena.release_empty();
            empty.iter().for_each(|chunk| self.clear_use(*chunk));
            drop(arena);
            self.put_back(&empty);
        }
    }

    fn put_back(&self, chunks: &[u32]) {
        if !chunks.is_empty() {
            let mut spare = self.spare.lock();
            spare.chunks.extend_from_slice(chunks);
            self.spares.store(spare.chunks.len(), Ordering::Relaxed);
        }
    }

    fn set_use(&self, chunk: u32, used: ChunkUse) {
        self.mapping.store(layout::table_at(chunk), used.encode());
    }

    fn clear_use(&self, chunk: u32) {
        self.mapping.store(layout::table_at(chunk), 0);
    }

    fn place(&self, slot: &Slot) -> SlotPlace {
        self.place_of(slot.chunk, slot.slot, slot.class)
    }

    fn place_of(&self, chunk: u32, slot: u16, class: SizeClass) -> SlotPlace {
        let place = self.header.chunk_at(chunk) + usize::from(slot) * class.slot_words();
        // A place always fits, because MAX_BYTES bounds the file.
        SlotPlace::try_from(place).unwrap_or(SlotPlace::MAX)
    }

    /// Commits or drops an entry: `change` writes its words, and `more` is added to the arena's
    /// sum. The caller holds the lock of the arena.
    ///
    /// If the thread is killed at any word, [`read`] finds the sum correct, either with or without
    /// the entry at the intent's place.
    fn change(&self, arena: u16, place: SlotPlace, more: u64, change: impl FnOnce(&Mapping, usize)) {
        let (mapping, arena) = (&self.mapping, usize::from(arena));
        let (sum, intent) = (layout::sum_at(arena), layout::intent_at(arena));
        mapping.store(intent, u64::from(place));
        change(mapping, place as usize);
        mapping.store(sum, mapping.load(sum).wrapping_add(more));
        mapping.store(intent, 0);
    }
}

impl Written {
    /// Commits the entry as this version of its message. Call it under the lock that orders the
    /// versions of the message. Returns `None` if the log is broken: the entry is lost with the
    /// process.
    pub(crate) fn commit(mut self, version: u64) -> Option<Slot> {
        let entry = SlotHeader { version, id: self.id, len: self.len, payload_crc: self.payload_crc };
        let log = &self.slot.log;
        let [commit, fields @ ..] = log.header.encode_entry(&entry);
        let (crc, place) = (layout::low(commit), log.place(&self.slot));
        let arena = log.arenas[usize::from(self.slot.arena)].lock();
        log.change(self.slot.arena, place, layout::weight(crc, place), |mapping, at| {
            for (at, field) in (at + 1..).zip(fields) {
                mapping.store(at, field);
            }
            mapping.store(at, commit);
        });
        drop(arena);
        (self.slot.crc, self.slot.is_committed) = (crc, true);
        (!self.slot.log.end_if_broken()).then_some(self.slot)
    }
}

impl Slot {
    /// True if the slot is in `log`.
    pub(crate) fn is_of(&self, log: &Arc<CrashLog>) -> bool {
        Arc::ptr_eq(&self.log, log)
    }

    fn more(&self) -> &[u32] {
        self.more.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let log = &self.log;
        if log.is_frozen.load(Ordering::Acquire) {
            return;
        }
        let place = log.place(self);
        let mut arena = log.arenas[usize::from(self.arena)].lock();
        if self.is_committed {
            let less = layout::weight(self.crc, place).wrapping_neg();
            log.change(self.arena, place, less, |mapping, at| mapping.store(at, 0));
        }
        let is_empty = arena.free(self.chunk, self.slot);
        // While at least half of the chunks are spare, an arena keeps its empty chunks for reuse.
        let is_wanted = log.spares.load(Ordering::Relaxed) < log.header.chunks as usize / 2;
        let is_released = is_empty && is_wanted && arena.release(self.chunk);
        if is_released {
            log.clear_use(self.chunk);
        }
        drop(arena);
        log.end_if_broken();
        if is_released {
            log.put_back(&[self.chunk]);
        }
        log.put_back(self.more());
    }
}

/// Returns a number for each thread, so that concurrent threads seldom share an arena.
fn arena_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static ARENA: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    ARENA.with(|arena| {
        if arena.get() == usize::MAX {
            arena.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        arena.get()
    })
}
