//! Messages that were filed and then removed, replaced or aborted. The tombstones are recycled, and
//! some of the dead payloads are still in segments, when sled is lost. None of them comes back.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tidespool_core::{InDoubt, Spool as _, SpoolId};
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::wait;

use super::book::durable;
use super::images::{config, copy_running, file_all};
use super::*;
use crate::broken::{begin, committing};
use crate::setup::copy_dir;

const PUT: u32 = 1;
const REMOVE: u32 = 2;
const ABORT: u32 = 3;

/// The version of an aborted store: no other one has it.
const ABORTED: u64 = u64::MAX;

/// The ids of the records of this kind in segments that are in use.
fn records(spool: &Path, wanted: u32) -> BTreeSet<SpoolId> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(spool.join("journal")).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        let is_free = bytes[12..16] == [0; 4];
        let generation = &bytes[16..24];
        for at in (4096..bytes.len().saturating_sub(56)).step_by(8) {
            let kind = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
            if !is_free && kind == wanted && bytes[at + 8..at + 16] == *generation {
                found.insert(SpoolId::from_bytes(bytes[at + 32..at + 48].try_into().unwrap()));
            }
        }
    }
    found
}

/// Fills segments with messages that die at once, so that older segments are filed and recycled.
async fn churn(spool: &TieredSpool, book: &mut Book) {
    for _ in 0..3 {
        let mut short_lived = Book::default();
        short_lived.fill(spool, 3).await;
        file_all(spool).await;
        short_lived.remove_each(spool, 1).await;
        file_all(spool).await;
        book.add(short_lived);
    }
}

/// A spool whose filed messages are partly dead.
struct World {
    dir: TempDir,
    config: Config,
    disk: FaultyStorage,
    spool: Arc<TieredSpool>,
    book: Book,
}

impl World {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let config = config(&dir.path().join("spool"));
        let disk = FaultyStorage::new();
        let opened = TieredSpool::open_on(config.clone(), disk.storage()).await;
        let spool = Arc::new(opened.expect("open"));
        let mut book = Book::default();
        book.fill(&spool, 20).await;
        file_all(&spool).await;
        Self { dir, config, disk, spool, book }
    }

    fn marks(&self) -> BTreeSet<SpoolId> {
        &records(&self.config.path, REMOVE) | &records(&self.config.path, ABORT)
    }

    /// The tombstones go, and `kept` at least of the dead payloads stay.
    async fn assert_unmarked(&self, kept: usize) {
        durable(&self.spool).await;
        let (puts, marks) = (records(&self.config.path, PUT), self.marks());
        let dead: Vec<_> = self.book.removed().iter().filter(|id| puts.contains(id)).collect();
        let unmarked = dead.iter().filter(|id| !marks.contains(id)).count();
        let count = dead.len();
        assert!(unmarked >= kept, "of {count} dead payloads in segments, {unmarked} have no tombstone");
    }

    /// sled is lost while the spool is closed, after a kill, and while it is running.
    async fn assert_survives(self) {
        let Self { dir, config, spool, book, .. } = self;
        book.assert_exact(&spool).await;
        durable(&spool).await;
        let [killed, closed] = ["killed", "closed"].map(|name| dir.path().join(name));
        copy_running(&config.path, &killed);
        end(spool).await;
        copy_dir(&config.path, &closed);
        for state in [&killed, &closed] {
            for how in 0..3 {
                let mut copied = config.clone();
                copied.path = dir.path().join(format!("{}-{how}", state.file_name().unwrap().display()));
                copy_dir(state, &copied.path);
                lose_all(&copied.path, how);
                assert_is_whole(&copied, &book).await;
            }
        }
        let spool = open(&config).await;
        lose_all(&config.path, 0);
        report("cleanup", spool.cleanup().await);
        book.assert_exact(&spool).await;
        end(spool).await;
        assert_is_whole(&config, &book).await;
    }
}

async fn removed() {
    let mut world = World::new().await;
    // Of each length, and so few that their segments are not rewritten.
    world.book.remove_each(&world.spool, 13).await;
    churn(&world.spool, &mut world.book).await;
    world.assert_unmarked(1).await;
    world.assert_survives().await;
}

async fn replaced() {
    let mut world = World::new().await;
    world.book.replace_each(&world.spool, 3).await;
    churn(&world.spool, &mut world.book).await;
    world.spool.compact().await.expect("compact");
    churn(&world.spool, &mut world.book).await;
    world.assert_survives().await;
}

/// The newest version and its segment are gone: the one before it stays dead.
async fn replaced_and_then_removed() {
    let mut world = World::new().await;
    let twice: Vec<SpoolId> = (0..5).filter_map(|n| world.book.nth(6 * n)).collect();
    for id in &twice {
        world.book.store(&world.spool, *id, 9000).await;
    }
    file_all(&world.spool).await;
    for id in &twice {
        world.book.remove(&world.spool, *id).await;
    }
    churn(&world.spool, &mut world.book).await;
    world.assert_unmarked(1).await;
    world.assert_survives().await;
}

/// The segments are rewritten, some of them twice, between one death and the next.
async fn removed_from_rewritten_segments() {
    let mut world = World::new().await;
    for n in [2, 3, 4] {
        world.book.remove_each(&world.spool, n).await;
        world.book.replace_each(&world.spool, n + 1).await;
        file_all(&world.spool).await;
        world.spool.compact().await.expect("compact");
        world.book.fill(&world.spool, 2).await;
        file_all(&world.spool).await;
    }
    world.book.remove_each(&world.spool, 5).await;
    churn(&world.spool, &mut world.book).await;
    world.assert_unmarked(1).await;
    world.assert_survives().await;
}

/// Stored, removed, and stored again, with checkpoints between: the last store counts.
async fn stored_again() {
    let mut world = World::new().await;
    let again: Vec<SpoolId> = (0..5).filter_map(|n| world.book.nth(6 * n)).collect();
    for id in &again {
        world.book.remove(&world.spool, *id).await;
    }
    churn(&world.spool, &mut world.book).await;
    for id in &again {
        world.book.store(&world.spool, *id, 6000).await;
    }
    churn(&world.spool, &mut world.book).await;
    world.assert_survives().await;
}

/// Each rebuilt sled is lost in turn, and more messages die between.
async fn removed_between_losses() {
    let mut world = World::new().await;
    for round in 0..4 {
        world.book.remove_each(&world.spool, 4).await;
        world.book.replace_each(&world.spool, 5).await;
        churn(&world.spool, &mut world.book).await;
        end(world.spool).await;
        lose_all(&world.config.path, round);
        world.spool = open(&world.config).await;
        world.book.assert_exact(&world.spool).await;
        world.book.fill(&world.spool, 2).await;
    }
    world.assert_survives().await;
}

/// A store on a disk that hangs until its deadline is over. A deadline may pass before
/// the record is written: the next one is longer.
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

/// Aborted stores of a new id, of a filed one and of a removed one. Their segments are retained for
/// the messages beside them.
async fn aborted() {
    let mut world = World::new().await;
    let (filed, gone) = (world.book.nth(3).unwrap(), world.book.nth(4).unwrap());
    world.book.remove(&world.spool, gone).await;
    world.book.fill(&world.spool, 1).await;
    let fresh = SpoolId::new();
    for id in [filed, gone, fresh] {
        abort(&world, id).await;
        world.book.fill(&world.spool, 1).await;
    }
    world.book.expect_absent(fresh);
    file_all(&world.spool).await;
    churn(&world.spool, &mut world.book).await;
    world.assert_unmarked(1).await;
    world.assert_survives().await;
}

alone_tests! {
    removed_ones_stay_removed: removed();
    replaced_ones_stay_replaced: replaced();
    an_older_version_of_a_removed_one_stays_dead: replaced_and_then_removed();
    ones_removed_from_rewritten_segments_stay_removed: removed_from_rewritten_segments();
    ones_stored_again_are_there: stored_again();
    ones_removed_between_losses_stay_removed: removed_between_losses();
    aborted_ones_stay_aborted: aborted();
}
