use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use chrono::{TimeDelta, Utc};
use proptest::prelude::*;

use super::*;
use crate::index::IndexEngine;

fn open(engine: &dyn IndexEngine, dir: &TempDir) -> Box<dyn IndexStore> {
    engine.open(&dir.path().join("1")).unwrap()
}

/// Returns each engine, and an empty store of it.
fn stores() -> impl Iterator<Item = (Arc<dyn IndexEngine>, TempDir, Box<dyn IndexStore>)> {
    engines().map(|engine| {
        let dir = dir();
        let store = open(&*engine, &dir);
        (engine, dir, store)
    })
}

fn close(engine: &dyn IndexEngine, store: Box<dyn IndexStore>) {
    store.close();
    drop(store);
    assert_eq!(engine.join(LONG), 0);
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
        for engine in engines() {
            let dir = dir();
            let mut store = open(&*engine, &dir);
            let mut model: BTreeMap<Key, Record> = BTreeMap::new();
            let mut tally = Tally::default();
            for step in &steps {
                match step {
                    IndexStep::Reopen => {
                        close(&*engine, store);
                        store = open(&*engine, &dir);
                    }
                    IndexStep::Apply(changes) => {
                        let before: Vec<_> = changes
                            .iter()
                            .map(|(n, new)| match new {
                                Some(record) => (key(*n), model.insert(key(*n), *record)),
                                None => (key(*n), model.remove(&key(*n))),
                            })
                            .collect();
                        let ops = changes.iter().map(|(n, new)| new.map_or_else(|| remove(*n), |record| put(*n, record)));
                        let (delta, replaced) = replace(&*store, ops);
                        prop_assert_eq!(replaced, before);
                        tally = tally.plus(delta);
                    }
                }
                prop_assert_eq!(tally_of(&*store).unwrap(), tally);
                prop_assert_eq!(tally.records, model.len() as u64);
                prop_assert_eq!(all(&*store), model.clone().into_iter().collect::<Vec<_>>());
                for n in 0..60 {
                    prop_assert_eq!(store.get(&key(n)).unwrap(), model.get(&key(n)).copied());
                }
            }
            close(&*engine, store);
        }
    }
}

#[test]
fn an_apply_of_many_batches_is_complete() {
    for (engine, _dir, store) in stores() {
        let filled = fill(&*store, 5_000);
        assert_eq!(filled.records, 5_000);
        assert_eq!(tally_of(&*store).unwrap(), filled);
        let ops = (0..5_000).map(|n| if n % 2 == 0 { remove(n) } else { put(n, place(1, 50)) });
        let (delta, replaced) = replace(&*store, ops);
        let expected: Vec<_> = (0..5_000).map(|n| (key(n), Some(place(n.into(), 200)))).collect();
        assert!(replaced == expected, "each earlier record, in order");
        assert_eq!(filled.plus(delta), tally_of(&*store).unwrap());
        assert_eq!(filled.plus(delta).records, 2_500);
        close(&*engine, store);
    }
}

#[test]
fn the_same_record_again_changes_nothing() {
    for (engine, _dir, store) in stores() {
        let filled = fill(&*store, 300);
        let (delta, replaced) = replace(&*store, (0..300).map(|n| put(n, place(n.into(), 200))));
        assert_eq!(delta, Tally::default());
        assert!(replaced.into_iter().eq((0..300).map(|n| (key(n), Some(place(n.into(), 200))))));
        assert_eq!(tally_of(&*store).unwrap(), filled);
        close(&*engine, store);
    }
}

#[test]
fn a_scan_of_ids_created_before_a_time_is_exact() {
    for (engine, _dir, store) in stores() {
        let ids: Vec<MessageId> = (0..1_000).map(|_| MessageId::random()).collect();
        let timeless = [MessageId::from_bytes([0; 16]), MessageId::from_bytes([0xff; 16])];
        let ops = ids
            .iter()
            .chain(&timeless)
            .map(|id| IndexOp { key: Key::of(id), change: IndexChange::Put(place(1, 10)) });
        apply(&*store, ops).unwrap();
        for start in [ids[0].id().created(), ids[400].id().created(), Some(Utc::now() + TimeDelta::days(1))] {
            let start = start.unwrap();
            let mut found = Vec::new();
            let visit = &mut |key: Key, _| {
                found.push(key.message());
                true
            };
            store.scan(&KeyRange::created_before(ids[0].spool(), start), visit).unwrap();
            let before = ids.iter().filter(|id| id.id().created().unwrap() < start);
            assert_eq!(found, timeless.iter().chain(before).copied().collect::<Vec<_>>());
        }
        let mut visited = 0;
        let visit = &mut |_, _| {
            visited += 1;
            visited < 7
        };
        store
            .scan(&KeyRange::created_before(ids[0].spool(), Utc::now() + TimeDelta::days(1)), visit)
            .unwrap();
        assert_eq!(visited, 7, "it stops in all ranges");
        close(&*engine, store);
    }
}

#[test]
fn a_scan_during_changes_visits_lasting_records_exactly_once() {
    const KEYS: u32 = 12_000;
    for (engine, _dir, store) in stores() {
        // Every tenth key stays. The others come and go, so that leaves split and merge during the
        // scan.
        let stays = |n: u32| n.is_multiple_of(10);
        apply(&*store, (0..KEYS).map(|n| put(n, place(1, 100)))).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    apply(&*store, (0..KEYS).filter(|n| !stays(*n)).map(remove)).unwrap();
                    apply(&*store, (0..KEYS).filter(|n| !stays(*n)).map(|n| put(n, place(2, 300)))).unwrap();
                }
            });
            for _ in 0..20 {
                assert_scan_finds(&*store, (0..KEYS).filter(|n| stays(*n)).map(key));
            }
            done.store(true, Ordering::Relaxed);
        });
        close(&*engine, store);
    }
}
