//! Single steps of the checkpointer, in states that are rare in a running spool.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::reclaim::ReclaimDecision;
use super::super::requests;
use super::*;
use crate::checkpoint::value_log::retained::{Retained, record_at};
use crate::index::{IndexChange, IndexOp, Key};
use crate::journal::ColdWriter;
use crate::message_id::MessageId;

impl CheckpointBench {
    /// Retains a segment with one message, and records these sizes for it in the manifest.
    fn retain(&mut self, size: u64, live_bytes: u64) {
        let (id, data) = (MessageId::random(), vec![1; 8192]);
        let crc = payload_crc(&data);
        let segments = self.checkpointer.segments.clone();
        let mut writer = ColdWriter::new(&segments, 1, data.len() as u64);
        let place = writer.append(id, 1, &data, crc).unwrap();
        writer.finish().unwrap();
        let op = IndexOp { key: Key::of(&id), change: IndexChange::Put(record_at(1, place)) };
        let delta = self.checkpointer.durable.apply(&mut [op].into_iter(), &mut |_, _| {}).unwrap();
        self.checkpointer.manifest.tally = self.checkpointer.manifest.tally.plus(delta);
        self.checkpointer.manifest.retained.insert(place.generation, Retained { size, live_bytes, live: 1 });
    }
}

/// Moving many survivors takes long. Segments that are sealed meanwhile are checkpointed before the
/// next round, or stores would wait for the last round.
#[test]
fn segments_are_checkpointed_between_rounds_of_rewriting() {
    for mut bench in engines().map(CheckpointBench::new) {
        // With 40 MiB of survivors, each segment gets its own round.
        bench.retain(100 * MIB, 40 * MIB);
        bench.retain(100 * MIB, 40 * MIB);
        *bench.reports.settles.lock() = Some(bench.activate());
        bench.checkpointer.collect_garbage().unwrap();
        assert_eq!(bench.steps(), [SourceCall::Rewritten, SourceCall::Checkpointed, SourceCall::Rewritten]);
    }
}

/// A round of rewriting may read gigabytes of segments with few survivors. Segments that stores
/// wait for are checkpointed after the first rewritten segment.
#[test]
fn a_segment_that_stores_need_is_checkpointed_before_the_next_rewrite() {
    for mut bench in engines().map(CheckpointBench::new) {
        // Both segments fit into one round.
        bench.retain(100 * MIB, MIB);
        bench.retain(100 * MIB, 2 * MIB);
        bench.activate().settle();
        (0..8).for_each(|_| bench.checkpointer.segments.pool().count_existing());
        bench.checkpointer.collect_garbage().unwrap();
        assert_eq!(bench.steps(), [SourceCall::Rewritten, SourceCall::Checkpointed, SourceCall::Rewritten]);
    }
}

/// Rewriting may take long. A stop interrupts it within a round.
#[test]
fn a_stop_does_not_wait_for_a_round_of_rewriting() {
    for mut bench in engines().map(CheckpointBench::new) {
        bench.retain(100 * MIB, MIB);
        bench.requests.stop();
        let before = bench.checkpointer.segments.all().len();
        assert!(matches!(bench.checkpointer.collect_garbage(), Err(CheckpointError::Stopped)));
        assert_eq!((bench.steps(), bench.checkpointer.segments.all().len()), (Vec::new(), before));
    }
}

/// `compact` checkpointed all segments at once. The collected records had no bound, and no segment
/// was free before the last one was done.
#[test]
fn a_compaction_checkpoints_a_few_segments_at_a_time() {
    for mut bench in engines().map(CheckpointBench::new) {
        let checkpoint_after = Duration::from_secs(3600);
        bench.checkpointer.settings.store(Arc::new(CheckpointSettings { checkpoint_after }));
        (0..20).for_each(|_| bench.activate().settle());
        let (done, mut receiver) = tokio::sync::oneshot::channel();
        bench.checkpointer.begin_compaction(done);
        bench.checkpointer.compact_some();
        assert!(receiver.try_recv().unwrap().is_ok());
        assert_eq!(
            bench.steps(),
            [SourceCall::Checkpointed, SourceCall::Checkpointed, SourceCall::Checkpointed]
        );
        assert!(bench.checkpointer.segments.all().is_empty());
    }
}

/// A compaction whose callers had given up ran to its end, and later tasks waited for it.
#[test]
fn a_compaction_without_callers_is_cancelled() {
    for mut bench in engines().map(CheckpointBench::new) {
        bench.retain(100 * MIB, 40 * MIB);
        let (done, receiver) = tokio::sync::oneshot::channel();
        bench.checkpointer.begin_compaction(done);
        assert!(bench.checkpointer.wake_at().is_some_and(|at| at <= Instant::now()));
        drop(receiver);
        bench.checkpointer.compact_some();
        assert_eq!(bench.steps(), []);
        assert!(bench.checkpointer.compaction.is_none());
    }
}

/// Each caller who gave up left a task in the queue while the thread was busy.
#[test]
fn the_queue_holds_one_task_of_each_kind() {
    let (checkpoint_requests, inbox) = checkpoint_requests();
    let ask = |task: fn(requests::TaskDone) -> CheckpointTask| {
        let (done, receiver) = tokio::sync::oneshot::channel();
        checkpoint_requests.ask(task(done));
        receiver
    };
    let mut receiver: Vec<_> =
        (0..10).flat_map(|_| [ask(CheckpointTask::Compact), ask(CheckpointTask::Cleanup)]).collect();
    let gone = |receiver: &mut tokio::sync::oneshot::Receiver<Result<(), CheckpointError>>| {
        matches!(receiver.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Closed))
    };
    assert_eq!(receiver.iter_mut().map(gone).filter(|gone| *gone).count(), 18);
    let kinds: Vec<_> = (0..2).map(|_| inbox.wait(None)).collect();
    assert!(matches!(
        kinds[..],
        [
            requests::CheckpointWork::Task(CheckpointTask::Cleanup(_)),
            requests::CheckpointWork::Task(CheckpointTask::Compact(_))
        ]
    ));
    checkpoint_requests.stop();
    assert!(gone(&mut ask(CheckpointTask::Cleanup)));
}

/// A segment whose messages can't be moved is chosen in every round. It must not cost two manifests
/// each time.
#[test]
fn a_round_that_moves_nothing_writes_nothing() {
    for mut bench in engines().map(CheckpointBench::new) {
        bench.retain(100 * MIB, 40 * MIB);
        for segment in bench.checkpointer.segments.all() {
            segment.file.write_vectored_at(&[io::IoSlice::new(&[9; 8192])], 4096).unwrap();
        }
        let before = bench.checkpointer.manifest.clone();
        bench.checkpointer.collect_garbage().unwrap();
        assert_eq!((bench.steps(), &bench.checkpointer.manifest), (Vec::new(), &before));
        assert!(!bench.checkpointer.manifest_file.path().exists());
        assert_eq!(bench.checkpointer.segments.all().len(), 1, "the damaged segment stays");
    }
}

/// The removals to checkpoint may not be in the journal yet. More requests to seal it would not
/// help.
#[test]
fn a_seal_is_requested_once_while_the_journal_is_empty() {
    for engine in engines() {
        let mut bench = CheckpointBench::with(engine, TestSource { removals: 1, ..TestSource::default() });
        bench.retain(100 * MIB, 8192);
        let checkpointer = &mut bench.checkpointer;
        let mut look = || {
            let Checkpointer { manifest, segments, source, inbox, reclaim, .. } = checkpointer;
            reclaim.look(
                &manifest.retained,
                segments,
                &**source,
                inbox,
                manifest.checkpointed_generation,
                || 0,
            )
        };
        let began = Instant::now();
        assert_eq!(look(), ReclaimDecision::Seal);
        let again = (0..1000).filter(|_| look() == ReclaimDecision::Seal).count();
        assert!(again as u128 <= began.elapsed().as_millis() / 100, "{again} times");
        assert!(checkpointer.reclaim.wake_at().is_some());
    }
}

/// Removals free space. They are checkpointed early even if survivors can't be moved, for example
/// for lack of space.
#[test]
fn removals_are_checkpointed_early_although_survivors_cannot_be_moved() {
    for engine in engines() {
        let mut bench = CheckpointBench::with(engine, TestSource { removals: 1, ..TestSource::default() });
        bench.retain(100 * MIB, 40 * MIB);
        // Blocks the manifest, without which nothing is moved.
        std::fs::create_dir(bench.dir.path().join("manifest.new")).unwrap();
        assert!(matches!(bench.checkpointer.run_due_work(), Err(CheckpointError::Manifest(_))));
        assert_eq!(bench.steps(), [SourceCall::Sealing]);
    }
}
