use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::index::sled::block;
use crate::index::sled::store::open_with_retry;

#[test]
fn removing_a_missing_record_writes_nothing() {
    let (dir, store) = new_store();
    fill(&store, 1_000);
    let before = fs::read(dir.path().join("sled/db")).unwrap();
    let (delta, replaced) = replace(&store, (1_000..3_000).map(remove));
    assert!(replaced.iter().all(|(_, old)| old.is_none()));
    assert_eq!((replaced.len(), delta), (2_000, Tally::default()));
    assert!(fs::read(dir.path().join("sled/db")).unwrap() == before, "the file changed");
    close(store);
}

#[test]
fn only_the_owner_may_read_the_files() {
    let (dir, store) = new_store();
    fill(&store, 100);
    close(store);
    close(open(dir.path()));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let sled = dir.path().join("sled");
    assert_eq!(mode(&sled), 0o700);
    let mut files = 0;
    for entry in fs::read_dir(&sled).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        files += 1;
    }
    assert!(files >= 4, "db, conf, blobs, a snapshot");
}

/// Ascending keys are written in any order, also in the span of full blocks.
#[test]
fn records_can_be_read_while_their_block_is_split() {
    const KEYS: u32 = 6_000;
    let (_dir, store) = new_store();
    let rounds = 4;
    // Records that stay fill their blocks. The others are inserted between them.
    let stays = |n: u32| n.is_multiple_of(rounds);
    let staying = || (0..KEYS).filter(|n| stays(*n));
    apply(&store, staying().map(|n| put(n, place(1, 100)))).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for reader in 0..2 {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                let mut reads = 0_u32;
                while !done.load(Ordering::Relaxed) || reads < KEYS {
                    let n = (reads.wrapping_mul(2_654_435_761) ^ reader) % (KEYS / rounds) * rounds;
                    assert_eq!(store.get(&key(n)).unwrap(), Some(place(1, 100)), "{n}");
                    reads += 1;
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_scan_finds(&store, staying().map(key));
            }
        });
        for _ in 0..3 {
            for round in 1..rounds {
                let coming = (0..KEYS).filter(|n| n % rounds == round);
                apply(&store, coming.map(|n| put(n, place(2, 300)))).unwrap();
            }
            assert_eq!(all(&store).len(), KEYS as usize);
            apply(&store, (0..KEYS).filter(|n| !stays(*n)).map(remove)).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    let expected: Vec<_> = staying().map(|n| (key(n), place(1, 100))).collect();
    assert_eq!(all(&store), expected);
    close(store);
}

/// Writes entries such as damage inside a value, or another program, would leave.
fn write_raw(dir: &Path, pairs: &[(&[u8], &[u8])]) {
    // A sled that was just dropped may still hold its lock.
    let db = open_with_retry(&sled::Config::new().path(dir.join("sled")).flush_every_ms(None)).unwrap();
    let tree = db.open_tree("places").unwrap();
    for (key, value) in pairs {
        tree.insert(key, *value).unwrap();
    }
}

/// Asserts that each call that meets `bytes` under `at` fails, and that the engine is poisoned
/// after the first.
fn assert_poisons(at: &[u8], bytes: &[u8], meet: impl Fn(&SledStore) -> Result<(), IndexError>) {
    let dir = dir();
    close(open(dir.path()));
    let good = block::encode(&key(1), &[(key(1), place(1, 20))]);
    write_raw(dir.path(), &[(key(1).as_bytes(), &good), (at, bytes)]);
    let store = open(dir.path());
    assert_eq!(store.get(&key(1)).unwrap(), Some(place(1, 20)));
    let err = meet(&store).unwrap_err();
    assert!(err.poisons() && err.to_string().contains("are not a block of the index"), "{err}");
    let err = store.get(&key(1)).unwrap_err();
    assert!(err.poisons() && err.to_string().contains("poisoned"), "{err}");
    close(store);
}

#[test]
fn an_unreadable_record_poisons_the_engine() {
    let mut bad = block::encode(&key(2), &[(key(2), place(2, 20))]);
    let cut = bad[..bad.len() - 1].to_vec();
    bad[9] ^= 1;
    let of_another = block::encode(&key(3), &[(key(3), place(2, 20))]);
    for bytes in [&bad[..], &of_another, &cut, &[]] {
        let at = key(2);
        assert_poisons(at.as_bytes(), bytes, |store| store.get(&key(2)).map(drop));
        assert_poisons(at.as_bytes(), bytes, |store| apply(store, [remove(2)]).map(drop));
        assert_poisons(at.as_bytes(), bytes, |store| apply(store, [put(2, place(9, 9))]).map(drop));
        assert_poisons(at.as_bytes(), bytes, |store| tally_of(store).map(drop));
    }
}

#[test]
fn a_malformed_key_poisons_the_engine() {
    for at in [&b"\0"[..], &[0xfe; 17]] {
        assert_poisons(at, b"not a block", |store| tally_of(store).map(drop));
    }
}
