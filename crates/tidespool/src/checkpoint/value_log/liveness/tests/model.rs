//! Compares random histories of commits, failures and crashes with a model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::io::Errno;

use super::disk::LogDisk;
use crate::checkpoint::value_log::liveness::*;

/// The live records of each retained segment.
type Lists = BTreeMap<u64, BTreeSet<u64>>;

#[derive(Debug, Clone)]
struct Checkpoint {
    /// Records of a new segment, and of the newest earlier segment.
    checkpointed: Vec<u64>,
    more: Vec<u64>,
    /// Which of the live records die.
    dead: Vec<prop::sample::Index>,
    releases: bool,
    compacts: bool,
    root: Root,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    Written,
    /// The write failed, and the manifest is not on disk.
    Lost,
    /// The write failed, and the manifest may be on disk.
    InDoubt,
}

#[derive(Debug, Clone)]
enum ModelStep {
    Checkpoint(Checkpoint),
    Fail(u64, Errno),
    /// A power cut. The manifest is one of those that may be on disk.
    Crash(u64, prop::sample::Index),
    Reopen,
    /// Deletes the file.
    Delete,
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let root = prop_oneof![
        3 => Just(Root::Written),
        1 => Just(Root::Lost),
        1 => Just(Root::InDoubt),
    ];
    let records = || proptest::collection::vec(0..300u64, 0..12);
    let dead = proptest::collection::vec(any::<prop::sample::Index>(), 0..8);
    (records(), records(), dead, prop::bool::weighted(0.2), prop::bool::weighted(0.2), root).prop_map(
        |(checkpointed, more, dead, releases, compacts, root)| Checkpoint {
            checkpointed,
            more,
            dead,
            releases,
            compacts,
            root,
        },
    )
}

fn step() -> impl Strategy<Value = ModelStep> {
    let errno = prop_oneof![Just(Errno::IO), Just(Errno::NOSPC)];
    prop_oneof![
        12 => checkpoint().prop_map(ModelStep::Checkpoint),
        3 => (0..8u64, errno).prop_map(|(after, errno)| ModelStep::Fail(after, errno)),
        2 => (any::<u64>(), any::<prop::sample::Index>()).prop_map(|(seed, index)| ModelStep::Crash(seed, index)),
        1 => Just(ModelStep::Reopen),
        1 => Just(ModelStep::Delete),
    ]
}

struct World {
    disk: LogDisk,
    log: LivenessLog,
    /// The contents of the manifests that may be on disk. The first one is committed.
    manifests: Vec<(LogPosition, Lists)>,
    next_generation: u64,
}

fn open(disk: &LogDisk, position: LogPosition, lists: &Lists) -> LivenessLog {
    let retained: BTreeSet<u64> = lists.keys().copied().collect();
    let is_retained = |generation| retained.contains(&generation);
    let disk = Arc::new(disk.clone());
    let (log, liveness) = LivenessLog::open(disk, Path::new("/spool"), position, &is_retained).unwrap();
    assert_eq!(liveness.damage(), [""; 0]);
    let read: Lists = liveness.generations().map(|one| (one, liveness.of(one).unwrap().collect())).collect();
    assert_eq!(&read, lists);
    assert!(lists.keys().all(|generation| liveness.is_exact(*generation)));
    log
}

impl World {
    fn new() -> Self {
        let (disk, first) = (LogDisk::default(), (LogPosition::default(), Lists::new()));
        let log = open(&disk, first.0, &first.1);
        Self { disk, log, manifests: vec![first], next_generation: 1 }
    }

    fn checkpoint(&mut self, step: &Checkpoint) {
        let mut lists = self.manifests[0].1.clone();
        if step.releases {
            lists.pop_first();
        }
        let mut changes = LivenessChanges::default();
        let earlier = lists.keys().last().copied().filter(|_| !step.more.is_empty());
        let checkpointed = (!step.checkpointed.is_empty()).then_some(self.next_generation);
        self.next_generation += 1;
        for (generation, records) in [(earlier, &step.more), (checkpointed, &step.checkpointed)] {
            let Some(generation) = generation else { continue };
            for record in records {
                changes.live(generation, record * 8);
                lists.entry(generation).or_default().insert(record * 8);
            }
        }
        for index in &step.dead {
            let all: Vec<(u64, u64)> =
                lists.iter().flat_map(|(one, list)| list.iter().map(|record| (*one, *record))).collect();
            if all.is_empty() {
                break;
            }
            let (generation, record) = all[index.index(all.len())];
            changes.dead(generation, record);
            lists.get_mut(&generation).unwrap().remove(&record);
        }
        let retained: BTreeSet<u64> = lists.keys().copied().collect();
        let written = match step.compacts {
            true => self.log.compact(&|generation| retained.contains(&generation), &changes),
            false => self.log.append(&changes),
        };
        let Ok(position) = written else { return };
        match step.root {
            Root::Written => {
                self.log.committed(position);
                self.manifests = vec![(position, lists)];
            }
            Root::Lost => {}
            Root::InDoubt => self.manifests.push((position, lists)),
        }
    }

    fn reopen(&mut self, index: usize) {
        self.disk.heal();
        let (position, lists) = self.manifests[index].clone();
        self.log = open(&self.disk, position, &lists);
        self.manifests = vec![(position, lists)];
    }

    fn step(&mut self, step: &ModelStep) {
        match step {
            ModelStep::Checkpoint(checkpoint) => self.checkpoint(checkpoint),
            ModelStep::Fail(after, errno) => self.disk.fail(*after, *errno),
            ModelStep::Crash(seed, index) => {
                let index = index.index(self.manifests.len());
                self.disk.crash(*seed);
                self.reopen(index);
            }
            ModelStep::Reopen => self.reopen(0),
            ModelStep::Delete => {
                self.disk.heal();
                if self.disk.remove_file(&self.log.path()).is_ok() {
                    assert_eq!(self.log.loss(), Some(crate::storage::Loss::Gone));
                    // The log is written again before any other step.
                    let Ok(position) = self.log.append(&LivenessChanges::default()) else { unreachable!() };
                    self.log.committed(position);
                    self.manifests = vec![(position, self.manifests[0].1.clone())];
                }
            }
        }
    }
}

use crate::storage::Storage as _;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_manifest_that_may_be_on_disk_has_its_log(steps in proptest::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.disk.heal();
        world.disk.crash(1);
        let last = world.manifests.len() - 1;
        world.reopen(last);
    }
}
