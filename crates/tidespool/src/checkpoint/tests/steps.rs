//! Single steps of the checkpoint thread, in states that a running spool seldom comes to.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidespool_core::SpoolId;

use super::super::reclaim::ReclaimDecision;
use super::super::requests;
use super::*;
use crate::checkpoint::value_log::retained::{Retained, record_at};
use crate::durable::{IndexChange, IndexOp, Key};
use crate::journal::{ColdWriter, Role};

impl CheckpointBench {
    /// Retains a segment with one message in it, as if both were as large as that.
    fn retain(&mut self, size: u64, live_bytes: u64) {
        let (id, data) = (SpoolId::new(), vec![1; 8192]);
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

/// Moving many survivors takes long. What is sealed meanwhile is filed before the next of them are
/// moved, or stores would wait for the last.
#[test]
fn segments_are_filed_between_rounds_of_rewriting() {
    let mut bench = CheckpointBench::new();
    // Of 40 MiB each, so that they are moved one by one.
    bench.retain(100 * MIB, 40 * MIB);
    bench.retain(100 * MIB, 40 * MIB);
    let segments = &bench.checkpointer.segments;
    let (active, _) = segments.activate(segments.pool().allocate(MIB).unwrap(), Role::Journal, false);
    *bench.reports.settles.lock() = Some(active);
    bench.checkpointer.tidy().unwrap();
    assert_eq!(bench.steps(), [SourceCall::Rewritten, SourceCall::Filed, SourceCall::Rewritten]);
}

/// A segment is read whole to find its survivors, and a round of rewriting may take many:
/// gigabytes, where little lives in each. What stores wait for is filed after the first.
#[test]
fn what_stores_wait_for_is_filed_before_the_next_segment_is_rewritten() {
    let mut bench = CheckpointBench::new();
    // Both in one round.
    bench.retain(100 * MIB, MIB);
    bench.retain(100 * MIB, 2 * MIB);
    let segments = &bench.checkpointer.segments;
    let (sealed, _) = segments.activate(segments.pool().allocate(MIB).unwrap(), Role::Journal, false);
    sealed.settle();
    drop(sealed);
    (0..8).for_each(|_| segments.pool().count_existing());
    bench.checkpointer.tidy().unwrap();
    assert_eq!(bench.steps(), [SourceCall::Rewritten, SourceCall::Filed, SourceCall::Rewritten]);
}

/// Rewriting goes on for as long as there is something to rewrite. The end cuts it short within a
/// round.
#[test]
fn the_end_does_not_wait_for_a_round_of_rewriting() {
    let mut bench = CheckpointBench::new();
    bench.retain(100 * MIB, MIB);
    bench.checkpointer.checkpoint_requests.stop();
    let before = bench.checkpointer.segments.all().len();
    assert!(matches!(bench.checkpointer.tidy(), Err(CheckpointError::Stopped)));
    assert_eq!((bench.steps(), bench.checkpointer.segments.all().len()), (Vec::new(), before));
}

/// `compact` filed all segments in one go: what it collected had no bound, and not one of them was
/// free before the last was filed.
#[test]
fn a_compaction_files_a_few_segments_at_a_time() {
    let mut bench = CheckpointBench::new();
    let checkpoint_after = Duration::from_secs(3600);
    bench.checkpointer.settings.store(Arc::new(CheckpointSettings { checkpoint_after }));
    let segments = &bench.checkpointer.segments;
    for _ in 0..20 {
        let (sealed, _) = segments.activate(segments.pool().allocate(MIB).unwrap(), Role::Journal, false);
        sealed.settle();
    }
    let (done, mut heard) = tokio::sync::oneshot::channel();
    bench.checkpointer.begin_compaction(done);
    bench.checkpointer.compact_some();
    assert!(heard.try_recv().unwrap().is_ok());
    assert_eq!(bench.steps(), [SourceCall::Filed, SourceCall::Filed, SourceCall::Filed]);
    assert!(bench.checkpointer.segments.all().is_empty());
}

/// A compaction whose callers were gone ran to its end, and those behind it waited.
#[test]
fn a_compaction_that_nobody_waits_for_is_given_up() {
    let mut bench = CheckpointBench::new();
    bench.retain(100 * MIB, 40 * MIB);
    let (done, heard) = tokio::sync::oneshot::channel();
    bench.checkpointer.begin_compaction(done);
    assert!(bench.checkpointer.wake_at().is_some_and(|at| at <= Instant::now()));
    drop(heard);
    bench.checkpointer.compact_some();
    assert_eq!(bench.steps(), []);
    assert!(bench.checkpointer.compaction.is_none());
}

/// Callers who gave up left a task each, for as long as the thread was at another.
#[test]
fn there_is_room_for_one_task_of_each_kind() {
    let checkpoint_requests = CheckpointRequests::default();
    let ask = |task: fn(requests::TaskDone) -> CheckpointTask| {
        let (done, heard) = tokio::sync::oneshot::channel();
        checkpoint_requests.ask(task(done));
        heard
    };
    let mut heard: Vec<_> =
        (0..10).flat_map(|_| [ask(CheckpointTask::Compact), ask(CheckpointTask::Cleanup)]).collect();
    let gone = |heard: &mut tokio::sync::oneshot::Receiver<Result<(), CheckpointError>>| {
        matches!(heard.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Closed))
    };
    assert_eq!(heard.iter_mut().map(gone).filter(|gone| *gone).count(), 18);
    let kinds: Vec<_> = (0..2).map(|_| checkpoint_requests.wait(None)).collect();
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

/// A segment of which nothing can be moved is chosen at every look: it must not cost two manifests
/// each time.
#[test]
fn a_round_that_moves_nothing_writes_nothing() {
    let mut bench = CheckpointBench::new();
    bench.retain(100 * MIB, 40 * MIB);
    for segment in bench.checkpointer.segments.all() {
        segment.file.write_vectored_at(&[io::IoSlice::new(&[9; 8192])], 4096).unwrap();
    }
    let before = bench.checkpointer.manifest.clone();
    bench.checkpointer.tidy().unwrap();
    assert_eq!((bench.steps(), &bench.checkpointer.manifest), (Vec::new(), &before));
    assert!(!bench.checkpointer.manifest_file.path().exists());
    assert_eq!(bench.checkpointer.segments.all().len(), 1, "what is damaged stays");
}

/// The removals that are to be filed may not be in the journal yet. Asking again and again would
/// bring them there no sooner.
#[test]
fn the_journals_end_is_asked_for_once_while_it_has_nothing() {
    let mut bench = CheckpointBench::with(TestSource { removals: 1, ..TestSource::default() });
    bench.retain(100 * MIB, 8192);
    let checkpointer = &mut bench.checkpointer;
    let mut look = || {
        let Checkpointer { manifest, segments, source, checkpoint_requests, reclaim, .. } = checkpointer;
        reclaim.look(
            &manifest.retained,
            segments,
            &**source,
            checkpoint_requests,
            manifest.filed_generation,
            || 0,
        )
    };
    let began = Instant::now();
    assert_eq!(look(), ReclaimDecision::Seal);
    let again = (0..1000).filter(|_| look() == ReclaimDecision::Seal).count();
    assert!(again as u128 <= began.elapsed().as_millis() / 100, "{again} times");
    assert!(checkpointer.reclaim.wake_at().is_some());
}

/// Where nothing can be moved, be it for want of room, removals are filed early all the same: they
/// give room.
#[test]
fn removals_are_filed_early_although_survivors_cannot_be_moved() {
    let mut bench = CheckpointBench::with(TestSource { removals: 1, ..TestSource::default() });
    bench.retain(100 * MIB, 40 * MIB);
    // In the way of the manifest, without which nothing is moved.
    std::fs::create_dir(bench.dir.path().join("manifest.new")).unwrap();
    assert!(matches!(bench.checkpointer.tend(), Err(CheckpointError::Manifest(_))));
    assert_eq!(bench.steps(), [SourceCall::Sealing]);
}
