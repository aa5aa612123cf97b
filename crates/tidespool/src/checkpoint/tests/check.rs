use std::time::Instant;

use super::*;

/// Ends the index in order, and opens it again as the next run does.
fn reopen(bench: &mut CheckpointBench) {
    let soon = || Instant::now() + Duration::from_secs(60);
    assert_eq!(bench.checkpointer.durable.close(soon()), Ok(true));
    let closed = bench.checkpointer.durable.sum_up(soon()).unwrap().unwrap();
    let durable = DiskIndex::new(bench.checkpointer.durable.path(), SledOptions::new(1 << 20));
    assert!(durable.open_closed(closed));
    bench.checkpointer.durable = Arc::new(durable);
}

fn two_filed() -> (CheckpointBench, [SpoolId; 2]) {
    let mut bench = CheckpointBench::new();
    let [a, b] = ids();
    bench.put(a);
    bench.put(b);
    bench.checkpoint();
    bench.steps();
    (bench, [a, b])
}

#[test]
fn an_index_that_holds_what_the_manifest_says_is_kept() {
    let (mut bench, _) = two_filed();
    let indexed = bench.indexed();
    reopen(&mut bench);
    assert!(bench.checkpointer.durable.is_unchecked());
    bench.checkpointer.have_index().unwrap();
    assert!(bench.checkpointer.durable.is_whole());
    assert_eq!(bench.steps(), []);
    assert_eq!(bench.indexed(), indexed);
}

/// Of damage that came before the files were summed up: one place less, one more, another one.
#[test]
fn an_index_that_differs_from_the_manifest_is_rebuilt() {
    use crate::durable::{IndexChange, IndexOp};
    let changes: [fn(Key, Record) -> IndexOp; 3] = [
        |key, _| IndexOp { key, change: IndexChange::Remove },
        |_, record| IndexOp { key: Key::of(&SpoolId::new()), change: IndexChange::Put(record) },
        |key, record| IndexOp { key, change: IndexChange::Put(Record { seq: record.seq + 1, ..record }) },
    ];
    for change in changes {
        let (mut bench, [a, _]) = two_filed();
        let (indexed, manifest) = (bench.indexed(), bench.checkpointer.manifest.clone());
        let op = change(Key::of(&a), indexed[&Key::of(&a)]);
        bench.checkpointer.durable.apply(&mut [op].into_iter(), &mut |_, _| ()).unwrap();
        reopen(&mut bench);
        bench.checkpointer.have_index().unwrap();
        assert_eq!(bench.steps(), [SourceCall::Rebuilt(2)], "and nothing was lost");
        assert_eq!(bench.indexed(), indexed);
        assert_eq!(bench.checkpointer.manifest, manifest, "the manifest never follows the index");
        bench.assert_consistent();
    }
}

#[test]
fn the_end_cuts_a_check_short_and_proves_nothing() {
    let (mut bench, _) = two_filed();
    reopen(&mut bench);
    bench.checkpointer.checkpoint_requests.stop();
    assert!(matches!(bench.checkpointer.tend(), Err(CheckpointError::Stopped)));
    assert!(bench.checkpointer.durable.is_unchecked() && !bench.checkpointer.durable.is_whole());
}

/// A damaged log is of no use for a rebuild. While there is an index that the manifest confirms, what
/// lives is known: the log is written anew from it.
#[test]
fn a_damaged_log_is_written_anew_from_a_checked_index() {
    let (mut bench, [a, b]) = two_filed();
    bench.remove(a);
    bench.checkpoint();
    let log = bench.checkpointer.liveness.path();
    let manifest = bench.checkpointer.manifest.clone();
    reopen(&mut bench);
    std::fs::remove_file(&log).unwrap();
    let is_retained = |generation: u64| manifest.retained.contains_key(&generation);
    let storage: Arc<dyn Storage> = bench.disk.clone();
    let opened = LivenessLog::open(storage, bench.dir.path(), manifest.liveness, &is_retained).unwrap();
    assert_eq!(opened.1.damage().len(), 1);
    bench.checkpointer.liveness = opened.0;
    bench.checkpointer.have_index().unwrap();
    assert_eq!(bench.checkpointer.durable.close(Instant::now() + Duration::from_secs(60)), Ok(true));
    bench.checkpointer.durable =
        Arc::new(DiskIndex::new(bench.checkpointer.durable.path(), SledOptions::new(1 << 20)));
    bench.checkpointer.rebuild().unwrap();
    assert_eq!(bench.messages().into_keys().collect::<Vec<_>>(), [b], "what was removed does not come back");
    bench.assert_consistent();
}
