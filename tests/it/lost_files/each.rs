use std::sync::atomic::{AtomicU64, Ordering};

use tidespool_testkit::faults::{Call, Fault, Moment};

use super::*;
use crate::broken::is_thread;

/// The purpose of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum File {
    /// The segment of a message larger than a normal segment.
    Large,
    Active,
    Sealed,
    Retained,
    Cold,
    Free,
    /// The liveness log of the retained segments.
    Liveness,
    /// sled's data file.
    Index,
    Named(&'static str),
}

impl File {
    fn path(self, world: &World) -> PathBuf {
        let checkpointed = world.checkpointed_generation();
        let segments = world.segments();
        let journal =
            segments.iter().filter(|(role, generation, _)| *role == 1 && *generation > checkpointed);
        let mut journal = journal.map(|(_, _, path)| path.clone());
        let other = |wanted: &dyn Fn(u32, u64) -> bool| {
            let found = segments.iter().find(|(role, generation, _)| wanted(*role, *generation));
            found.unwrap_or_else(|| panic!("no {self:?} segment in {segments:?}")).2.clone()
        };
        match self {
            Self::Large => journal.find(|path| fs::metadata(path).unwrap().len() > 256 * KIB).unwrap(),
            Self::Sealed => journal.nth(1).unwrap(),
            Self::Active => journal.next_back().unwrap(),
            Self::Retained => other(&|role, generation| role == 1 && generation <= checkpointed),
            Self::Cold => other(&|role, _| role == 2),
            Self::Free => other(&|role, _| role == 0),
            Self::Liveness => only(&world.path(), "liveness."),
            Self::Index => only(&world.path().join("sled"), "").join("db"),
            Self::Named(name) => world.path().join(name),
        }
    }

    /// True if the spool creates a new file with another name instead.
    fn is_replaceable(self) -> bool {
        matches!(self, Self::Free | Self::Liveness | Self::Index)
    }
}

/// The only file in `dir` whose name starts with `prefix`.
fn only(dir: &Path, prefix: &str) -> PathBuf {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let has_prefix = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(prefix);
    let found: Vec<PathBuf> = paths.filter(has_prefix).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

async fn assert_is_detected_and_restored(file: File, way: Way) {
    println!("{file:?}: {way:?}");
    let mut world = World::new().await;
    let path = file.path(&world);
    way.strike(&path, world.aside.path());
    world.assert_detected().await;
    assert_eq!(world.spool.stats().gauges.unhealthy, Some(HealthSignal::LostFiles));
    assert_eq!(world.check(&world.spool).await, 0, "loads continue");
    world.open_gate().await;
    assert_eq!(world.spool.stats().lost_files, 1, "each loss counts once");
    if !file.is_replaceable() {
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    }
    world.fill(2).await;
    world.remove_some(9).await;
    assert_eq!(world.check(&world.spool).await, 0);
    world.assert_survives().await;
}

/// A truncated segment loses some messages. They are reported as damaged and never returned with
/// wrong bytes. All others are found, and removed ones stay removed.
async fn assert_only_the_truncated_part_is_lost(file: File, way: Way) {
    println!("{file:?}: {way:?}");
    let world = World::new().await;
    way.strike(&file.path(&world), world.aside.path());
    world.assert_detected().await;
    wait::until("damage is reported", || world.spool.stats().corrupt > 0).await;
    world.open_gate().await;
    stop(world.spool.clone()).await;
    let spool = world.tiered.start().await;
    let damaged = world.check(&spool).await;
    assert!(damaged > 0 && damaged < world.live.len() / 2, "{damaged} of {}", world.live.len());
    let found = enumerate(spool.as_ref()).await;
    assert_eq!(found.len(), world.live.len());
    let corrupt = found.iter().filter(|entry| matches!(entry, SpoolEntry::Corrupt { .. })).count();
    assert_eq!(corrupt, damaged);
    stop(spool).await;
}

const WITHOUT_LOSS: [Way; 5] = [Way::Delete, Way::Move, Way::Replace, Way::ReplaceByCopy, Way::Forbid];

macro_rules! each {
    ($($name:ident: $file:expr, $ways:expr;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            for way in $ways {
                assert_is_detected_and_restored($file, way).await;
            }
        })*
    };
}

each! {
    the_active_segment: File::Active, WITHOUT_LOSS;
    a_sealed_segment: File::Sealed, WITHOUT_LOSS;
    a_segment_of_one_message: File::Large, WITHOUT_LOSS;
    a_retained_segment: File::Retained, WITHOUT_LOSS;
    a_cold_segment: File::Cold, WITHOUT_LOSS;
    a_free_segment: File::Free, Way::ALL;
    the_manifest: File::Named("manifest"), Way::ALL;
    the_format_file: File::Named("FORMAT"), Way::ALL;
    the_lock_file: File::Named("LOCK"), WITHOUT_LOSS;
    the_liveness_log: File::Liveness, Way::ALL;
    sleds_data: File::Index, WITHOUT_LOSS;
    // Neither its contents nor its mode matter.
    the_ballast: File::Named("ballast"), [Way::Delete, Way::Move, Way::CutShort];
    the_ballast_for_opening: File::Named("ballast.open"), [Way::Delete, Way::Move, Way::CutShort];
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_segment() {
    for file in [File::Active, File::Sealed, File::Retained, File::Cold] {
        assert_only_the_truncated_part_is_lost(file, Way::CutShort).await;
    }
}

/// Writes after the truncation made the file nearly as long as before, and the truncated part was
/// not reported. On a busy machine an idle mark was written before the loss was detected.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_segment_that_is_written_to_before_the_loss_is_detected() {
    for file in [File::Active, File::Sealed, File::Retained, File::Cold] {
        assert_only_the_truncated_part_is_lost(file, Way::CutShortAndGrown).await;
    }
}

/// Files lost after the last check were lost permanently. The shutdown checks once more.
#[tokio::test(flavor = "multi_thread")]
async fn files_lost_just_before_a_shutdown_are_restored_by_it() {
    let files = [
        File::Large,
        File::Active,
        File::Sealed,
        File::Retained,
        File::Cold,
        File::Free,
        File::Named("manifest"),
        File::Named("FORMAT"),
        File::Liveness,
        File::Index,
    ];
    for file in files {
        println!("{file:?}");
        let world = World::new().await;
        Way::Delete.strike(&file.path(&world), world.aside.path());
        stop(world.spool.clone()).await;
        world.assert_is_whole(&world.path()).await;
    }
}

/// The disk rejects the copy. The gate stays shut, the bytes stay readable, and the copy is retried
/// until it succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_restoration_is_retried() {
    for call in [Call::Create, Call::Write, Call::Sync, Call::Rename, Call::Read] {
        println!("{call:?}");
        let world = World::new().await;
        let path = File::Sealed.path(&world);
        let disk = &world.disk;
        fs::remove_file(&path).unwrap();
        disk.inject(
            Fault::on(call).only(|moment| is_thread("tide-checkpoint") && is_a_segment(moment)).always(),
        );
        world.spool.cleanup().await.expect_err("the file can't be restored");
        wait::until("the gate is shut", || world.spool.unhealthy_reason().is_some()).await;
        assert!(!path.exists());
        disk.heal();
        assert_eq!(world.check(&world.spool).await, 0);
        world.open_gate().await;
        world.assert_survives().await;
    }
}

fn is_a_segment(moment: &Moment<'_>) -> bool {
    moment.name.contains(".seg")
}

/// A segment was deleted while it was being prepared, before anything was written to it. It became
/// the active segment, and was gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_being_prepared() {
    let mut world = World::new().await;
    let dir = world.path().join("journal");
    let deleted = Arc::new(AtomicU64::new(0));
    let count = deleted.clone();
    world.disk.watch(move |moment| {
        let is_preparing = moment.call == Call::Sync && is_thread("tide-prewrite");
        if is_preparing && fs::remove_file(dir.join(moment.name)).is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    // The spool may detect a loss and shut its gate before the prepared segments are used up.
    for _ in 0..60 {
        if world.spool.unhealthy_reason().is_some() {
            break;
        }
        world.store_unless_rejected(LARGE).await;
    }
    world.disk.unwatch();
    assert!(deleted.load(Ordering::Relaxed) > 0);
    world.assert_detected().await;
    world.open_gate().await;
    world.assert_survives().await;
}

/// A crash during a restoration leaves an incomplete copy.
#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_copy_is_removed_at_the_next_start() {
    let world = World::new().await;
    stop(world.spool.clone()).await;
    let copy = world.path().join("journal").join("00000001.seg.new");
    fs::write(&copy, "half of it").unwrap();
    world.assert_is_whole(&world.path()).await;
    assert!(!copy.exists());
}
