use std::time::Instant;

use super::*;

/// Ends the index in order, and opens it again as the next run does.
fn reopen(bench: &mut Bench) {
    let soon = || Instant::now() + Duration::from_secs(60);
    assert_eq!(bench.filer.durable.close(soon()), Ok(true));
    let closed = bench.filer.durable.sum_up(soon()).unwrap().unwrap();
    let durable = Durable::new(bench.filer.durable.path(), SledOptions::new(1 << 20));
    assert!(durable.open_closed(closed));
    bench.filer.durable = Arc::new(durable);
}

fn two_filed() -> (Bench, [SpoolId; 2]) {
    let mut bench = Bench::new();
    let [a, b] = ids();
    bench.put(a);
    bench.put(b);
    bench.checkpoint();
    bench.steps();
    (bench, [a, b])
}

#[test]
fn an_index_that_holds_what_the_ledger_says_is_kept() {
    let (mut bench, _) = two_filed();
    let indexed = bench.indexed();
    reopen(&mut bench);
    assert!(bench.filer.durable.is_unchecked());
    bench.filer.have_index().unwrap();
    assert!(bench.filer.durable.is_whole());
    assert_eq!(bench.steps(), []);
    assert_eq!(bench.indexed(), indexed);
}

/// Of damage that came before the files were summed up: one place less, one more, another one.
#[test]
fn an_index_that_differs_from_the_ledger_is_rebuilt() {
    use crate::durable::{Change, Op};
    let changes: [fn(Key, Record) -> Op; 3] = [
        |key, _| Op { key, change: Change::Remove },
        |_, record| Op { key: Key::of(&SpoolId::new()), change: Change::Put(record) },
        |key, record| Op { key, change: Change::Put(Record { seq: record.seq + 1, ..record }) },
    ];
    for change in changes {
        let (mut bench, [a, _]) = two_filed();
        let (indexed, ledger) = (bench.indexed(), bench.filer.ledger.clone());
        let op = change(Key::of(&a), indexed[&Key::of(&a)]);
        bench.filer.durable.apply(&mut [op].into_iter(), &mut |_, _| ()).unwrap();
        reopen(&mut bench);
        bench.filer.have_index().unwrap();
        assert_eq!(bench.steps(), [Step::Rebuilt(2)], "and nothing was lost");
        assert_eq!(bench.indexed(), indexed);
        assert_eq!(bench.filer.ledger, ledger, "the ledger never follows the index");
        bench.assert_consistent();
    }
}

#[test]
fn the_end_cuts_a_check_short_and_proves_nothing() {
    let (mut bench, _) = two_filed();
    reopen(&mut bench);
    bench.filer.filing.stop();
    assert!(matches!(bench.filer.tend(), Err(FilingError::Stopped)));
    assert!(bench.filer.durable.is_unchecked() && !bench.filer.durable.is_whole());
}

/// A damaged log is of no use for a rebuild. While there is an index that the ledger confirms, what
/// lives is known: the log is written anew from it.
#[test]
fn a_damaged_log_is_written_anew_from_a_checked_index() {
    let (mut bench, [a, b]) = two_filed();
    bench.remove(a);
    bench.checkpoint();
    let log = bench.filer.liveness.path();
    let ledger = bench.filer.ledger.clone();
    reopen(&mut bench);
    std::fs::remove_file(&log).unwrap();
    let is_retained = |generation: u64| ledger.retained.contains_key(&generation);
    let storage: Arc<dyn Storage> = bench.disk.clone();
    let opened = LivenessLog::open(storage, bench.dir.path(), ledger.liveness, &is_retained).unwrap();
    assert_eq!(opened.1.damage().len(), 1);
    bench.filer.liveness = opened.0;
    bench.filer.have_index().unwrap();
    assert_eq!(bench.filer.durable.close(Instant::now() + Duration::from_secs(60)), Ok(true));
    bench.filer.durable = Arc::new(Durable::new(bench.filer.durable.path(), SledOptions::new(1 << 20)));
    bench.filer.rebuild().unwrap();
    assert_eq!(bench.messages().into_keys().collect::<Vec<_>>(), [b], "what was removed does not come back");
    bench.assert_consistent();
}
