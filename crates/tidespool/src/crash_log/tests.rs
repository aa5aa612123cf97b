//! Tests the entries that are read, among others after a process is killed at any written word.

use std::collections::HashMap;

use proptest::prelude::*;

use super::layout::{intent_at, sum_at};
use super::*;
use crate::storage::{OsStorage, read_exact_at};

const SPOOL: [u8; 16] = [7; 16];

struct LogBench {
    dir: tempfile::TempDir,
    log: Arc<CrashLog>,
    version: u64,
}

impl LogBench {
    fn new(chunks: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = CrashLog::create(&OsStorage, &dir.path().join(CRASH_LOG), SPOOL, chunks * CHUNK as u64);
        Self { dir, log: log.unwrap(), version: 0 }
    }

    fn put(&mut self, id: MessageId, data: &[u8]) -> Option<Slot> {
        let written = self.log.write(id, data, crc32c::crc32c(data))?;
        self.version += 1;
        written.commit(self.version)
    }

    fn remove(&mut self, id: MessageId) -> Option<Slot> {
        let written = self.log.write_removal(id)?;
        self.version += 1;
        written.commit(self.version)
    }

    fn file(&self) -> Arc<dyn StorageFile> {
        OsStorage.open(&self.dir.path().join(CRASH_LOG), OpenMode::Read).unwrap()
    }

    fn contents(&self) -> LogContents {
        read(&*self.file(), SPOOL, OsStorage.boot_id().unwrap()).unwrap()
    }

    fn kept(&self) -> Vec<(MessageId, Option<Vec<u8>>)> {
        match self.contents() {
            LogContents::Whole(kept) => kept.into_iter().map(|kept| (kept.id, kept.data)).collect(),
            other => panic!("{other:?}"),
        }
    }
}

/// Returns bytes in which each byte differs from its neighbours.
fn bytes(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

#[test]
fn committed_entries_are_read_and_dropped_entries_are_not() {
    let mut bench = LogBench::new(64);
    let lens = [0, 1, 7, 8, 512, 16 << 10, 64 << 10, CHUNK - 40, CHUNK - 39, 200_000, 1 << 20];
    let ids: Vec<MessageId> = lens.iter().map(|_| MessageId::random()).collect();
    let slots: Vec<Slot> =
        ids.iter().zip(lens).map(|(id, len)| bench.put(*id, &bytes(len)).unwrap()).collect();
    let expected: Vec<_> = ids.iter().zip(lens).map(|(id, len)| (*id, Some(bytes(len)))).collect();
    assert_eq!(bench.kept(), expected);
    let removed = bench.remove(ids[4]).unwrap();
    assert_eq!(bench.kept().last(), Some(&(ids[4], None)), "the newest version counts");
    drop(slots);
    assert_eq!(bench.kept(), [(ids[4], None)]);
    drop(removed);
    assert_eq!(bench.kept(), []);
}

#[test]
fn an_uncommitted_entry_is_not_read() {
    let bench = LogBench::new(8);
    let written = bench.log.write(MessageId::random(), &bytes(100), 0).unwrap();
    assert_eq!(bench.kept(), []);
    drop(written);
    assert_eq!(bench.kept(), []);
}

#[test]
fn a_frozen_log_keeps_dropped_entries() {
    let mut bench = LogBench::new(8);
    let id = MessageId::random();
    let slot = bench.put(id, b"kept").unwrap();
    bench.log.freeze();
    drop(slot);
    assert_eq!(bench.kept(), [(id, Some(b"kept".to_vec()))]);
}

#[test]
fn removals_have_room_when_messages_have_none() {
    let mut bench = LogBench::new(32);
    let mut slots = Vec::new();
    while let Some(slot) = bench.put(MessageId::random(), &bytes(60_000)) {
        slots.push(slot);
    }
    assert_eq!(slots.len(), 28, "an eighth is reserved");
    let removals: Vec<Slot> = (0..4 * 1_700).map_while(|_| bench.remove(MessageId::random())).collect();
    assert!(removals.len() >= 4 * 1_700, "{}", removals.len());
    assert!(bench.put(MessageId::random(), b"x").is_none());
    slots.clear();
    // Chunks that one class has emptied are used for another class.
    let small: Vec<Slot> = (0..9_900).map_while(|_| bench.put(MessageId::random(), &bytes(100))).collect();
    assert_eq!(small.len(), 9_900);
}

#[test]
fn a_log_of_another_spool_or_boot_and_garbage_are_ignored() {
    let mut bench = LogBench::new(8);
    let _slot = bench.put(MessageId::random(), b"x").unwrap();
    let (file, boot) = (bench.file(), OsStorage.boot_id().unwrap());
    let of = |spool, boot| read(&*file, spool, boot).unwrap();
    assert_eq!(of([8; 16], boot), LogContents::Foreign(Foreign::OtherSpool));
    assert_eq!(of(SPOOL, [8; 16]), LogContents::Foreign(Foreign::OtherBoot));
    let path = bench.dir.path().join(CRASH_LOG);
    for garbage in [vec![], vec![0; 100], vec![1; 100_000]] {
        std::fs::write(&path, garbage).unwrap();
        assert_eq!(bench.contents(), LogContents::Foreign(Foreign::Unfinished));
    }
}

/// A message may contain the bytes of an entry. They can be at the start of a slot when the chunk
/// has slots of another size later.
#[test]
fn what_was_a_payload_is_never_an_entry() {
    let mut bench = LogBench::new(1);
    let entry = SlotHeader { version: 1, id: MessageId::random(), len: None, payload_crc: 0 };
    let header: Vec<u8> =
        bench.log.header.encode_entry(&entry).iter().flat_map(|word| word.to_le_bytes()).collect();
    let slot = bench.put(MessageId::random(), &header.repeat(1_000)).unwrap();
    drop(slot);
    // Allocated and not committed, as a kill can leave the slots.
    let written: Vec<Written> =
        (0..10).map(|_| bench.log.write_removal(MessageId::random()).unwrap()).collect();
    assert_eq!(bench.kept(), []);
    drop(written);
    assert_eq!(bench.kept(), []);
}

#[test]
fn a_header_that_does_not_match_its_commit_word_is_no_entry() {
    let header = LogHeader { spool: SPOOL, boot: [1; 16], nonce: 5 << 40 | 9, chunks: 1, arenas: 1 };
    let entry = SlotHeader { version: 3, id: MessageId::random(), len: Some(10), payload_crc: 77 };
    let words = header.encode_entry(&entry);
    let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(header.decode_entry(&bytes(&words)), Some(entry));
    for word in 0..words.len() {
        for bit in [0, 31, 32, 63] {
            let mut other = words;
            other[word] ^= 1 << bit;
            assert_eq!(header.decode_entry(&bytes(&other)), None, "bit {bit} of word {word}");
        }
    }
    let next = LogHeader { nonce: header.nonce + 1, ..header };
    assert_eq!(next.decode_entry(&bytes(&words)), None, "an entry of an earlier log");
}

#[test]
fn a_log_in_a_file_that_is_cut_short_breaks_and_is_not_used() {
    let mut bench = LogBench::new(64);
    let _slot = bench.put(MessageId::random(), &bytes(1 << 20)).unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(bench.dir.path().join(CRASH_LOG))
        .unwrap()
        .set_len(300_000)
        .unwrap();
    assert!(matches!(bench.contents(), LogContents::Torn(_)));
    let more: Vec<Option<Slot>> = (0..31).map(|_| bench.put(MessageId::random(), &bytes(60_000))).collect();
    assert!(bench.log.is_broken());
    assert!(more.iter().all(Option::is_none), "there is room for all of them, but none is protected");
    assert_eq!(bench.contents(), LogContents::Foreign(Foreign::Unfinished), "it was invalidated");
}

/// One page is older than the others, as after a device lost its cache.
#[test]
fn a_log_of_which_a_page_is_older_is_not_used() {
    let mut bench = LogBench::new(8);
    let old = bench.put(MessageId::random(), b"old").unwrap();
    let before = std::fs::read(bench.dir.path().join(CRASH_LOG)).unwrap();
    drop(old);
    let _new = bench.put(MessageId::random(), b"new").unwrap();
    let after = std::fs::read(bench.dir.path().join(CRASH_LOG)).unwrap();
    let pages: Vec<usize> = (0..after.len() / 4096)
        .filter(|page| before[page * 4096..][..4096] != after[page * 4096..][..4096])
        .collect();
    assert!(pages.len() > 1, "the sum and the entry have pages of their own");
    for page in pages {
        let mut mixed = after.clone();
        mixed[page * 4096..][..4096].copy_from_slice(&before[page * 4096..][..4096]);
        std::fs::write(bench.dir.path().join("mixed"), mixed).unwrap();
        let file = OsStorage.open(&bench.dir.path().join("mixed"), OpenMode::Read).unwrap();
        let contents = read(&*file, SPOOL, OsStorage.boot_id().unwrap()).unwrap();
        assert!(matches!(contents, LogContents::Torn(_)), "page {page}: {contents:?}");
    }
}

/// A file in memory: the log as a kill leaves it.
#[derive(Debug)]
struct Image(Vec<u8>);

impl StorageFile for Image {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.0.get(usize::try_from(offset).unwrap()..).unwrap_or(&[]);
        let len = buf.len().min(rest.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_vectored_at(&self, _: &[io::IoSlice<'_>], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

type Expected = HashMap<MessageId, Option<Vec<u8>>>;

fn state_of(image: &Image, boot: [u8; 16]) -> Expected {
    match read(image, SPOOL, boot).unwrap() {
        LogContents::Whole(kept) => kept.into_iter().map(|kept| (kept.id, kept.data)).collect(),
        other => panic!("a kill left: {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A process that is killed after any word that it wrote leaves the log in the state before or
    /// after the call.
    #[test]
    fn a_kill_after_any_word_leaves_the_state_before_or_after_the_call(
        steps in prop::collection::vec((0..4usize, 0..5usize, any::<prop::sample::Index>()), 1..40),
    ) {
        let lens = [0, 8, 300, 9_000, 150_000];
        let mut bench = LogBench::new(24);
        let boot = OsStorage.boot_id().unwrap();
        let ids: Vec<MessageId> = (0..4).map(|_| MessageId::random()).collect();
        let mut slots: HashMap<MessageId, Slot> = HashMap::new();
        let mut state = Expected::new();
        let mut image = Image(vec![0; usize::try_from(bench.log.size()).unwrap()]);
        for (which, what, len) in steps {
            let id = ids[which];
            let mut after = state.clone();
            bench.log.mapping.trace.lock().clear();
            read_exact_at(&*bench.file(), &mut image.0, 0).unwrap();
            match what {
                0 => {
                    let _ = slots.remove(&id);
                    after.remove(&id);
                }
                1 => {
                    let Some(slot) = bench.remove(id) else { continue };
                    after.insert(id, None);
                    slots.insert(id, slot);
                }
                _ => {
                    let data = bytes(lens[len.index(lens.len())]);
                    let Some(slot) = bench.put(id, &data) else { continue };
                    after.insert(id, Some(data));
                    slots.insert(id, slot);
                }
            }
            let trace = std::mem::take(&mut *bench.log.mapping.trace.lock());
            let mut is_after = false;
            // The words of the payload have no order, so that only some of them are checked.
            let step = (trace.len() / 64).max(1);
            for (number, (at, word)) in trace.iter().enumerate() {
                image.0[at * 8..][..8].copy_from_slice(&word.to_le_bytes());
                if trace.len() - number > 24 && number % step != 0 {
                    continue;
                }
                let left = state_of(&image, boot);
                prop_assert!(left == state || left == after, "after word {number} of {}", trace.len());
                prop_assert!(!is_after || left == after, "it went back");
                is_after = left == after;
            }
            prop_assert_eq!(&state_of(&image, boot), &after);
            state = after;
        }
        // Between calls no change is in progress.
        let words = |at: usize| u64::from_le_bytes(image.0[at * 8..][..8].try_into().unwrap());
        for arena in 0..bench.log.arenas.len() {
            prop_assert_eq!(words(intent_at(arena)), 0);
            prop_assert!(!state.is_empty() || words(sum_at(arena)) == 0);
        }
    }
}

#[test]
fn many_threads_share_a_log() {
    let bench = LogBench::new(64);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let log = &bench.log;
            scope.spawn(move || {
                let mut slots = Vec::new();
                for round in 0..2_000usize {
                    let data = bytes((round * 37) % 3_000);
                    let version = round as u64 * 4 + thread;
                    let written = log.write(MessageId::random(), &data, crc32c::crc32c(&data)).unwrap();
                    slots.push(written.commit(version).unwrap());
                    if slots.len() > 50 {
                        slots.swap_remove(round % 50);
                    }
                }
                std::mem::forget(slots);
            });
        }
    });
    assert_eq!(bench.kept().len(), 200);
}
