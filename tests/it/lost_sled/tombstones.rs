//! Messages were checkpointed and then removed, replaced or aborted. Their tombstones are recycled,
//! and some of their payloads are still in segments, when sled is lost. No such message is
//! restored.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tidespool_core::{InDoubt, Spool as _, SpoolId};
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::wait;

use super::expected::durable;
use super::images::{checkpoint_all, config, copy_running};
use super::*;
use crate::broken::{begin, committing};
use crate::setup::copy_dir;

const PUT: u32 = 1;
const REMOVE: u32 = 2;
const ABORT: u32 = 3;

/// The version of an aborted store. No other store has it.
const ABORTED: u64 = u64::MAX;

/// The ids of the records of this kind in segments in use.
fn records(spool: &Path, wanted: u32) -> BTreeSet<SpoolId> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(spool.join("journal")).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        let is_free = bytes[12..16] == [0; 4];
        let generation = &bytes[16..24];
        for at in (4096..bytes.len().saturating_sub(56)).step_by(8) {
            let kind = u32::from(bytes[at + 4]);
            if !is_free && kind == wanted && bytes[at + 8..at + 16] == *generation {
                found.insert(SpoolId::from_bytes(bytes[at + 32..at + 48].try_into().unwrap()));
            }
        }
    }
    found
}

/// Fills segments with messages that are removed at once, so that older segments are checkpointed
/// and recycled.
async fn churn(spool: &TieredSpool, expected: &mut Expected) {
    for _ in 0..3 {
        let mut short_lived = Expected::default();
        short_lived.fill(spool, 3).await;
        checkpoint_all(spool).await;
        short_lived.remove_each(spool, 1).await;
        checkpoint_all(spool).await;
        expected.add(short_lived);
    }
}

/// A spool in which some checkpointed messages are removed.
struct World {
    dir: TempDir,
    config: Config,
    disk: FaultyStorage,
    spool: Arc<TieredSpool>,
    expected: Expected,
}

impl World {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let config = config(&dir.path().join("spool"));
        let disk = FaultyStorage::new();
        let opened = TieredSpool::open_on(config.clone(), disk.storage()).await;
        let spool = Arc::new(opened.expect("open"));
        let mut expected = Expected::default();
        expected.fill(&spool, 20).await;
        checkpoint_all(&spool).await;
        Self { dir, config, disk, spool, expected }
    }

    fn tombstones(&self) -> BTreeSet<SpoolId> {
        &records(&self.config.path, REMOVE) | &records(&self.config.path, ABORT)
    }

    /// Asserts that at least `kept` payloads of removed messages are in segments without a
    /// tombstone.
    async fn assert_without_tombstones(&self, kept: usize) {
        durable(&self.spool).await;
        let (puts, tombstones) = (records(&self.config.path, PUT), self.tombstones());
        let dead: Vec<_> = self.expected.removed().iter().filter(|id| puts.contains(id)).collect();
        let without_tombstone = dead.iter().filter(|id| !tombstones.contains(id)).count();
        let count = dead.len();
        assert!(
            without_tombstone >= kept,
            "of {count} dead payloads in segments, {without_tombstone} have no tombstone"
        );
    }

    /// Loses sled while the spool is closed, after a kill, and while it is running.
    async fn assert_survives(self) {
        let Self { dir, config, spool, expected, .. } = self;
        expected.assert_exact(&spool).await;
        durable(&spool).await;
        let [killed, closed] = ["killed", "closed"].map(|name| dir.path().join(name));
        copy_running(&config.path, &killed);
        shut_down(spool).await;
        copy_dir(&config.path, &closed);
        for state in [&killed, &closed] {
            for how in 0..3 {
                let mut copied = config.clone();
                copied.path = dir.path().join(format!("{}-{how}", state.file_name().unwrap().display()));
                copy_dir(state, &copied.path);
                lose_all(&copied.path, how);
                assert_is_whole(&copied, &expected).await;
            }
        }
        let spool = open(&config).await;
        lose_all(&config.path, 0);
        report("cleanup", spool.cleanup().await);
        expected.assert_exact(&spool).await;
        shut_down(spool).await;
        assert_is_whole(&config, &expected).await;
    }
}

async fn removed() {
    let mut world = World::new().await;
    // Messages of each length, and so few that their segments are not rewritten.
    world.expected.remove_each(&world.spool, 13).await;
    churn(&world.spool, &mut world.expected).await;
    world.assert_without_tombstones(1).await;
    world.assert_survives().await;
}

async fn replaced() {
    let mut world = World::new().await;
    world.expected.replace_each(&world.spool, 3).await;
    churn(&world.spool, &mut world.expected).await;
    world.spool.compact().await.expect("compact");
    churn(&world.spool, &mut world.expected).await;
    world.assert_survives().await;
}

/// The newest version and its segment are gone. The previous version must not be restored.
async fn replaced_and_then_removed() {
    let mut world = World::new().await;
    let twice: Vec<SpoolId> = (0..5).filter_map(|n| world.expected.nth(6 * n)).collect();
    for id in &twice {
        world.expected.store(&world.spool, *id, 9000).await;
    }
    checkpoint_all(&world.spool).await;
    for id in &twice {
        world.expected.remove(&world.spool, *id).await;
    }
    churn(&world.spool, &mut world.expected).await;
    world.assert_without_tombstones(1).await;
    world.assert_survives().await;
}

/// Segments are rewritten between the removals, some of them twice.
async fn removed_from_rewritten_segments() {
    let mut world = World::new().await;
    for n in [2, 3, 4] {
        world.expected.remove_each(&world.spool, n).await;
        world.expected.replace_each(&world.spool, n + 1).await;
        checkpoint_all(&world.spool).await;
        world.spool.compact().await.expect("compact");
        world.expected.fill(&world.spool, 2).await;
        checkpoint_all(&world.spool).await;
    }
    world.expected.remove_each(&world.spool, 5).await;
    churn(&world.spool, &mut world.expected).await;
    world.assert_without_tombstones(1).await;
    world.assert_survives().await;
}

/// Stored, removed and stored again, with checkpoints in between. The last store counts.
async fn stored_again() {
    let mut world = World::new().await;
    let again: Vec<SpoolId> = (0..5).filter_map(|n| world.expected.nth(6 * n)).collect();
    for id in &again {
        world.expected.remove(&world.spool, *id).await;
    }
    churn(&world.spool, &mut world.expected).await;
    for id in &again {
        world.expected.store(&world.spool, *id, 6000).await;
    }
    churn(&world.spool, &mut world.expected).await;
    world.assert_survives().await;
}

/// Loses each rebuilt sled in turn, with removals in between.
async fn removed_between_losses() {
    let mut world = World::new().await;
    for round in 0..4 {
        world.expected.remove_each(&world.spool, 4).await;
        world.expected.replace_each(&world.spool, 5).await;
        churn(&world.spool, &mut world.expected).await;
        shut_down(world.spool).await;
        lose_all(&world.config.path, round);
        world.spool = open(&world.config).await;
        world.expected.assert_exact(&world.spool).await;
        world.expected.fill(&world.spool, 2).await;
    }
    world.assert_survives().await;
}

/// Aborts a store: its deadline passes on a hanging disk. If the deadline passes before the record
/// is written, it is doubled.
async fn abort(world: &World, id: SpoolId) {
    world.disk.inject(committing(Fault::on(Call::Sync)).always().block());
    let mut deadline = Duration::from_millis(50);
    loop {
        let store = begin(&world.spool, id, ABORTED, 7000, Some(deadline));
        let error = wait::bounded("a store", store).await.unwrap().expect_err("the disk hangs");
        if error.is::<InDoubt>() {
            break;
        }
        deadline *= 2;
    }
    world.disk.heal();
}

/// Aborts stores of a new, a checkpointed and a removed id. Their segments are retained for other
/// messages.
async fn aborted() {
    let mut world = World::new().await;
    let (indexed, gone) = (world.expected.nth(3).unwrap(), world.expected.nth(4).unwrap());
    world.expected.remove(&world.spool, gone).await;
    world.expected.fill(&world.spool, 1).await;
    let fresh = SpoolId::new();
    for id in [indexed, gone, fresh] {
        abort(&world, id).await;
        world.expected.fill(&world.spool, 1).await;
    }
    world.expected.expect_absent(fresh);
    checkpoint_all(&world.spool).await;
    churn(&world.spool, &mut world.expected).await;
    world.assert_without_tombstones(1).await;
    world.assert_survives().await;
}

alone_tests! {
    removed_messages_stay_removed: removed();
    replaced_messages_stay_replaced: replaced();
    an_older_version_of_a_removed_message_is_not_restored: replaced_and_then_removed();
    messages_removed_from_rewritten_segments_stay_removed: removed_from_rewritten_segments();
    messages_stored_again_are_found: stored_again();
    messages_removed_between_losses_stay_removed: removed_between_losses();
    aborted_stores_stay_aborted: aborted();
}
