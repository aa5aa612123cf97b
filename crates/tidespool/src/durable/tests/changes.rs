use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, thread};

use chrono::{TimeDelta, Utc};
use proptest::prelude::*;

use super::*;
use crate::durable::block;
use crate::durable::sled_store::open_with_retry;

fn all(store: &dyn DurableStore) -> Vec<(Key, Record)> {
    let mut found = Vec::new();
    store
        .scan(&[KeyRange::ALL], &mut |key, record| {
            found.push((key, record));
            true
        })
        .unwrap();
    found
}

#[derive(Debug, Clone)]
enum IndexStep {
    Apply(Vec<(u32, Option<Record>)>),
    Reopen,
}

fn records() -> impl Strategy<Value = Record> {
    (any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>())
        .prop_map(|(seq, generation, offset, len)| Record { seq, generation, offset, len })
}

fn steps() -> impl Strategy<Value = Vec<IndexStep>> {
    let op = || (0_u32..60, prop::option::of(records()));
    // As checkpoints bring them: in the order of their keys, each once.
    let in_order = prop::collection::btree_map(0_u32..60, prop::option::of(records()), 0..60)
        .prop_map(|changes| IndexStep::Apply(changes.into_iter().collect()));
    let step = prop_oneof![
        4 => prop::collection::vec(op(), 0..40).prop_map(IndexStep::Apply),
        4 => in_order,
        1 => Just(IndexStep::Reopen),
    ];
    prop::collection::vec(step, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_engine_behaves_like_a_map(steps in steps()) {
        let dir = dir();
        let mut store = open(dir.path());
        let mut model: BTreeMap<Key, Record> = BTreeMap::new();
        let mut tally = Tally::default();
        for step in steps {
            match step {
                IndexStep::Reopen => {
                    close(store);
                    store = open(dir.path());
                }
                IndexStep::Apply(changes) => {
                    let before: Vec<_> = changes
                        .iter()
                        .map(|(n, new)| match new {
                            Some(record) => (key(*n), model.insert(key(*n), *record)),
                            None => (key(*n), model.remove(&key(*n))),
                        })
                        .collect();
                    let ops = changes.into_iter().map(|(n, new)| new.map_or_else(|| remove(n), |record| put(n, record)));
                    let mut replaced = Vec::new();
                    let delta = store.apply(&mut { ops }, &mut |key, old| replaced.push((*key, old))).unwrap();
                    prop_assert_eq!(replaced, before);
                    tally = tally.plus(delta);
                }
            }
            prop_assert_eq!(tally_of(&store).unwrap(), tally);
            prop_assert_eq!(tally.records, model.len() as u64);
            prop_assert_eq!(all(&store), model.clone().into_iter().collect::<Vec<_>>());
            for n in 0..60 {
                prop_assert_eq!(store.get(&key(n)).unwrap(), model.get(&key(n)).copied());
            }
        }
        close(store);
    }
}

#[test]
fn an_apply_of_many_batches_is_complete() {
    let dir = dir();
    let store = open(dir.path());
    let filed = fill(&store, 5_000);
    assert_eq!(filed.records, 5_000);
    assert_eq!(tally_of(&store).unwrap(), filed);
    let mut replaced = Vec::new();
    let delta = store
        .apply(
            &mut (0..5_000).map(|n| if n % 2 == 0 { remove(n) } else { put(n, place(1, 50)) }),
            &mut |key, old| {
                replaced.push((*key, old));
            },
        )
        .unwrap();
    let expected: Vec<_> = (0..5_000).map(|n| (key(n), Some(place(n.into(), 200)))).collect();
    assert!(replaced == expected, "each earlier record, in order");
    assert_eq!(filed.plus(delta), tally_of(&store).unwrap());
    assert_eq!(filed.plus(delta).records, 2_500);
    close(store);
}

#[test]
fn removing_a_missing_record_writes_nothing() {
    let dir = dir();
    let store = open(dir.path());
    fill(&store, 1_000);
    let before = fs::read(dir.path().join("sled/db")).unwrap();
    let mut replaced = 0;
    let delta = store
        .apply(&mut (1_000..3_000).map(remove), &mut |_, old| {
            assert_eq!(old, None);
            replaced += 1;
        })
        .unwrap();
    assert_eq!((replaced, delta), (2_000, Tally::default()));
    assert!(fs::read(dir.path().join("sled/db")).unwrap() == before, "the file changed");
    close(store);
}

#[test]
fn the_same_record_again_changes_nothing() {
    let dir = dir();
    let store = open(dir.path());
    let filed = fill(&store, 300);
    let mut replaced = Vec::new();
    let again = &mut (0..300).map(|n| put(n, place(n.into(), 200)));
    let delta = store.apply(again, &mut |_, old| replaced.push(old)).unwrap();
    assert_eq!(delta, Tally::default());
    assert_eq!(replaced, (0..300).map(|n| Some(place(n, 200))).collect::<Vec<_>>());
    assert_eq!(tally_of(&store).unwrap(), filed);
    close(store);
}

#[test]
fn only_the_owner_may_read_the_files() {
    let dir = dir();
    let store = open(dir.path());
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

#[test]
fn a_scan_of_ids_created_before_a_time_is_exact() {
    let dir = dir();
    let store = open(dir.path());
    let ids: Vec<SpoolId> = (0..1_000).map(|_| SpoolId::new()).collect();
    let timeless = [SpoolId::from_bytes([0; 16]), SpoolId::from_bytes([0xff; 16])];
    let ops = ids
        .iter()
        .chain(&timeless)
        .map(|id| IndexOp { key: Key::of(id), change: IndexChange::Put(place(1, 10)) });
    apply(&store, ops).unwrap();
    for start in [ids[0].created(), ids[400].created(), Some(Utc::now() + TimeDelta::days(1))] {
        let start = start.unwrap();
        let mut found = Vec::new();
        let visit = &mut |key: Key, _| {
            found.push(key.id());
            true
        };
        store.scan(&KeyRange::created_before(start), visit).unwrap();
        let before = ids.iter().filter(|id| id.created().unwrap() < start);
        assert_eq!(found, timeless.iter().chain(before).copied().collect::<Vec<_>>());
    }
    let mut visited = 0;
    let visit = &mut |_, _| {
        visited += 1;
        visited < 7
    };
    store.scan(&KeyRange::created_before(Utc::now() + TimeDelta::days(1)), visit).unwrap();
    assert_eq!(visited, 7, "it stops in all ranges");
    close(store);
}

#[test]
fn a_scan_during_changes_visits_lasting_records_exactly_once() {
    const KEYS: u32 = 12_000;
    let dir = dir();
    let store = open(dir.path());
    // Every tenth key stays. The others come and go, so that leaves split and merge during the
    // scan.
    let stays = |n: u32| n.is_multiple_of(10);
    apply(&store, (0..KEYS).map(|n| put(n, place(1, 100)))).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                apply(&store, (0..KEYS).filter(|n| !stays(*n)).map(remove)).unwrap();
                apply(&store, (0..KEYS).filter(|n| !stays(*n)).map(|n| put(n, place(2, 300)))).unwrap();
            }
        });
        for _ in 0..20 {
            let mut found = Vec::new();
            let visit = &mut |key, _| {
                found.push(key);
                true
            };
            store.scan(&[KeyRange::ALL], visit).unwrap();
            assert!(found.is_sorted_by(|a, b| a < b), "in order, none twice");
            let mut staying = (0..KEYS).filter(|n| stays(*n)).map(key);
            assert!(staying.all(|key| found.binary_search(&key).is_ok()), "none left out");
        }
        done.store(true, Ordering::Relaxed);
    });
    close(store);
}

/// Ascending keys are written in any order, also in the span of full blocks.
#[test]
fn records_can_be_read_while_their_block_is_split() {
    const KEYS: u32 = 6_000;
    let dir = dir();
    let store = open(dir.path());
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
                let mut found = Vec::new();
                let visit = &mut |key, _| {
                    found.push(key);
                    true
                };
                store.scan(&[KeyRange::ALL], visit).unwrap();
                assert!(found.is_sorted_by(|a, b| a < b), "in order, none twice");
                assert!(staying().all(|n| found.binary_search(&key(n)).is_ok()), "none left out");
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
fn assert_poisons(at: &[u8], bytes: &[u8], meet: impl Fn(&SledStore) -> Result<(), DurableError>) {
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
