use proptest::prelude::*;

use super::*;

#[test]
fn a_rebuild_creates_the_same_index() {
    for mut bench in engines().map(CheckpointBench::new) {
        let all: [MessageId; 40] = ids();
        for (number, chunk) in all.chunks(10).enumerate() {
            chunk.iter().for_each(|id| _ = bench.put(*id));
            bench.put(chunk[0]);
            let aborted = bench.put(chunk[1]);
            bench.abort(chunk[1], aborted);
            bench.remove(chunk[2]);
            if number > 0 {
                bench.put(all[number * 10 - 4]);
                bench.remove(all[number * 10 - 5]);
            }
            bench.checkpoint();
        }
        assert_eq!(bench.messages().len(), 40 - 4 - 3);
        bench.assert_consistent();
        bench.assert_rebuilds();
        bench.steps();
        bench.compact();
        assert_eq!(bench.steps(), [SourceCall::Rewritten]);
        bench.assert_consistent();
        let messages = bench.messages();
        bench.assert_rebuilds();
        assert_eq!(bench.messages(), messages);
        assert_eq!(bench.steps(), [SourceCall::Rebuilt(33)]);
    }
}

/// The log decides which records of a segment live. No older version, removed message or aborted
/// store is indexed, whatever the segments hold.
#[test]
fn dead_versions_stay_dead() {
    for mut bench in engines().map(CheckpointBench::new) {
        let [a, b] = bench.put_new();
        let [c] = ids();
        let good = bench.put(c);
        bench.put(a);
        bench.checkpoint();
        // The segment of this store and of its abort is recycled.
        let version = bench.put(c);
        bench.abort(c, version);
        bench.remove(b);
        bench.checkpoint();
        assert_eq!(bench.generations(), [1]);
        let indexed = bench.indexed();
        assert_eq!(indexed[&Key::of(&c)].seq, good);
        assert_eq!(indexed.len(), 2);
        bench.assert_rebuilds();
    }
}

#[test]
fn a_stop_interrupts_a_rebuild_and_its_index_is_not_used() {
    for mut bench in engines().map(CheckpointBench::new) {
        let [a] = bench.put_new();
        bench.checkpoint();
        bench.requests.stop();
        assert!(matches!(bench.checkpointer.rebuild(), Err(CheckpointError::Stopped)));
        assert!(!bench.checkpointer.durable.is_whole());
        assert_eq!(bench.checkpointer.rebuilding.progress(), None);
        assert!(matches!(bench.checkpointer.durable.get(&Key::of(&a)), Err(IndexError::Unavailable { .. })));
    }
}

/// A long rebuild must not fill the journal, so segments without live messages are recycled
/// meanwhile.
#[test]
fn segments_without_live_messages_are_recycled_during_a_rebuild() {
    for mut bench in engines().map(CheckpointBench::new) {
        bench.put(MessageId::random());
        let kept = bench.checkpoint();
        for _ in 0..5 {
            let [brief] = bench.put_new();
            bench.remove(brief);
            bench.seal();
        }
        assert_eq!(bench.generations().len(), 6);
        let indexed = bench.indexed();
        bench.checkpointer.rebuild().unwrap();
        assert_eq!(bench.generations(), [kept]);
        assert_eq!(bench.indexed(), indexed);
        bench.assert_consistent();
    }
}

/// The checkpointer calls `ensure_index` again and again. A complete index must not be rebuilt.
#[test]
fn a_complete_index_is_not_rebuilt() {
    for mut bench in engines().map(CheckpointBench::new) {
        bench.put(MessageId::random());
        bench.checkpoint();
        bench.checkpointer.ensure_index().unwrap();
        assert_eq!(bench.steps(), [SourceCall::Checkpointed]);
        bench.checkpointer.durable.let_go("for a test");
        bench.checkpointer.ensure_index().unwrap();
        bench.checkpointer.ensure_index().unwrap();
        assert_eq!(bench.steps(), [SourceCall::Rebuilt(1)]);
    }
}

#[derive(Debug, Clone)]
enum RebuildOp {
    Put(usize),
    /// A put that is aborted.
    Abort(usize),
    Remove(usize),
    Checkpoint,
    Compact,
    Rebuild,
}

fn ops() -> impl Strategy<Value = Vec<RebuildOp>> {
    let op = prop_oneof![
        6 => (0..8usize).prop_map(RebuildOp::Put),
        2 => (0..8usize).prop_map(RebuildOp::Abort),
        4 => (0..8usize).prop_map(RebuildOp::Remove),
        3 => Just(RebuildOp::Checkpoint),
        1 => Just(RebuildOp::Compact),
        1 => Just(RebuildOp::Rebuild),
    ];
    prop::collection::vec(op, 1..60)
}

/// Runs a history. The model holds the checkpointed messages.
fn run(engine: Arc<dyn IndexEngine>, history: &[RebuildOp]) {
    let mut bench = CheckpointBench::new(engine);
    let all: [MessageId; 8] = ids();
    let mut model = BTreeMap::<MessageId, u64>::new();
    for op in history {
        match *op {
            RebuildOp::Put(n) => drop(model.insert(all[n], bench.put(all[n]))),
            RebuildOp::Abort(n) => {
                let seq = bench.put(all[n]);
                bench.abort(all[n], seq);
            }
            RebuildOp::Remove(n) => {
                model.remove(&all[n]);
                bench.remove(all[n]);
            }
            RebuildOp::Checkpoint if bench.appended.is_empty() => {}
            RebuildOp::Checkpoint => drop(bench.checkpoint()),
            RebuildOp::Compact => bench.compact(),
            RebuildOp::Rebuild if bench.checkpointer.manifest.number == 0 => {}
            RebuildOp::Rebuild => bench.assert_rebuilds(),
        }
    }
    bench.put(MessageId::random());
    bench.checkpoint();
    bench.assert_rebuilds();
    let mut indexed: BTreeMap<MessageId, u64> =
        bench.indexed().into_iter().map(|(key, record)| (key.message(), record.seq)).collect();
    indexed.retain(|id, _| all.contains(id));
    assert_eq!(indexed, model);
    bench.messages();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_history_is_rebuilt(history in ops()) {
        for engine in engines() {
            run(engine, &history);
        }
    }
}
