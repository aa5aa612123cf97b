use std::time::Instant;

use super::*;

/// Closes the index in an orderly way, and opens it again as the next run does.
fn reopen(bench: &mut CheckpointBench) {
    let soon = || Instant::now() + Duration::from_secs(60);
    assert_eq!(bench.checkpointer.durable.close(soon()), Ok(true));
    let closed = bench.checkpointer.durable.sum_up(soon()).unwrap().unwrap();
    let durable = index_of(&bench.engine, bench.dir.path());
    assert!(durable.open_closed(closed));
    bench.checkpointer.durable = Arc::new(durable);
}

fn two_checkpointed(engine: &Arc<dyn IndexEngine>) -> (CheckpointBench, [SpoolId; 2]) {
    let mut bench = CheckpointBench::new(engine);
    let [a, b] = ids();
    bench.put(a);
    bench.put(b);
    bench.checkpoint();
    bench.steps();
    (bench, [a, b])
}

#[test]
fn an_index_that_matches_the_manifest_is_kept() {
    for engine in engines() {
        let (mut bench, _) = two_checkpointed(&engine);
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
            |_, record| IndexOp { key: Key::of(&SpoolId::new()), change: IndexChange::Put(record) },
            |key, record| IndexOp { key, change: IndexChange::Put(Record { seq: record.seq + 1, ..record }) },
        ];
        for change in changes {
            let (mut bench, [a, _]) = two_checkpointed(&engine);
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
    for engine in engines() {
        let (mut bench, _) = two_checkpointed(&engine);
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
    for engine in engines() {
        let (mut bench, [a, b]) = two_checkpointed(&engine);
        bench.remove(a);
        bench.checkpoint();
        let log = bench.checkpointer.liveness.path();
        let manifest = bench.checkpointer.manifest.clone();
        reopen(&mut bench);
        std::fs::remove_file(&log).unwrap();
        let is_retained = |generation: u64| manifest.retained.contains_key(&generation);
        let storage: Arc<dyn Storage> = Arc::new(bench.disk.clone());
        let opened = LivenessLog::open(storage, bench.dir.path(), manifest.liveness, &is_retained).unwrap();
        assert_eq!(opened.1.damage().len(), 1);
        bench.checkpointer.liveness = opened.0;
        bench.checkpointer.ensure_index().unwrap();
        assert_eq!(bench.checkpointer.durable.close(Instant::now() + Duration::from_secs(60)), Ok(true));
        bench.checkpointer.durable = Arc::new(index_of(&bench.engine, bench.dir.path()));
        bench.checkpointer.rebuild().unwrap();
        assert_eq!(
            bench.messages().into_keys().collect::<Vec<_>>(),
            [b],
            "the removed message does not come back"
        );
        bench.assert_consistent();
    }
}
