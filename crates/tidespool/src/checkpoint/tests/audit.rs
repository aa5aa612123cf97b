use std::time::Instant;

use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Closes the index in an orderly way, and opens it again as the next run does.
fn reopen(bench: &mut CheckpointBench) {
    assert_eq!(bench.checkpointer.durable.close(soon()), Ok(true));
    let closed = bench.checkpointer.durable.sum_up(soon()).unwrap().unwrap();
    let durable = index_of(&bench.engine, bench.dir.path());
    assert!(durable.open_closed(closed));
    bench.checkpointer.durable = Arc::new(durable);
}

fn two_checkpointed(engine: Arc<dyn IndexEngine>) -> (CheckpointBench, [MessageId; 2]) {
    let mut bench = CheckpointBench::new(engine);
    let [a, b] = bench.put_new();
    bench.checkpoint();
    bench.steps();
    (bench, [a, b])
}

#[test]
fn an_index_that_matches_the_manifest_is_kept() {
    for (mut bench, _) in engines().map(two_checkpointed) {
        let indexed = bench.indexed();
        reopen(&mut bench);
        assert!(bench.checkpointer.durable.is_unchecked());
        bench.checkpointer.ensure_index().unwrap();
        assert!(bench.checkpointer.durable.is_whole());
        assert_eq!(bench.steps(), []);
        assert_eq!(bench.indexed(), indexed);
    }
}

/// Damage before the fingerprint was taken: one record is missing, added, or changed.
#[test]
fn an_index_that_differs_from_the_manifest_is_rebuilt() {
    for engine in engines() {
        use crate::index::{IndexChange, IndexOp};
        let changes: [fn(Key, Record) -> IndexOp; 3] = [
            |key, _| IndexOp { key, change: IndexChange::Remove },
            |_, record| IndexOp { key: Key::of(&MessageId::random()), change: IndexChange::Put(record) },
            |key, record| IndexOp { key, change: IndexChange::Put(Record { seq: record.seq + 1, ..record }) },
        ];
        for change in changes {
            let (mut bench, [a, _]) = two_checkpointed(engine.clone());
            let (indexed, manifest) = (bench.indexed(), bench.checkpointer.manifest.clone());
            let op = change(Key::of(&a), indexed[&Key::of(&a)]);
            bench.checkpointer.durable.apply(&mut [op].into_iter(), &mut |_, _| ()).unwrap();
            reopen(&mut bench);
            bench.checkpointer.ensure_index().unwrap();
            assert_eq!(bench.steps(), [SourceCall::Rebuilt(2)], "and nothing was lost");
            assert_eq!(bench.indexed(), indexed);
            assert_eq!(
                bench.checkpointer.manifest, manifest,
                "the manifest is never changed to match the index"
            );
            bench.assert_consistent();
        }
    }
}

#[test]
fn a_stop_interrupts_a_check_and_the_index_stays_unchecked() {
    for (mut bench, _) in engines().map(two_checkpointed) {
        reopen(&mut bench);
        bench.requests.stop();
        assert!(matches!(bench.checkpointer.run_due_work(), Err(CheckpointError::Stopped)));
        assert!(bench.checkpointer.durable.is_unchecked() && !bench.checkpointer.durable.is_whole());
    }
}

/// A damaged log is useless for a rebuild. While the manifest confirms the index, the log is
/// written again from the index.
#[test]
fn a_damaged_log_is_rewritten_from_a_checked_index() {
    for (mut bench, [a, b]) in engines().map(two_checkpointed) {
        bench.remove(a);
        bench.checkpoint();
        reopen(&mut bench);
        assert_eq!(bench.lose_log().len(), 1);
        bench.checkpointer.ensure_index().unwrap();
        assert_eq!(bench.checkpointer.durable.close(soon()), Ok(true));
        bench.checkpointer.durable = Arc::new(index_of(&bench.engine, bench.dir.path()));
        bench.checkpointer.rebuild().unwrap();
        assert_eq!(bench.ids_indexed(), [b], "the removed message does not come back");
        bench.assert_consistent();
    }
}
