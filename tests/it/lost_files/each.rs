use std::sync::atomic::{AtomicU64, Ordering};

use tidespool_testkit::faults::{Call, Fault, Moment};

use super::*;
use crate::broken::is_thread;

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum File {
    /// Of a message that is larger than a segment.
    Large,
    Active,
    Sealed,
    Retained,
    Cold,
    Free,
    /// What lives in the retained segments.
    Liveness,
    /// sled's data file.
    Index,
    Named(&'static str),
}

impl File {
    fn path(self, world: &World) -> PathBuf {
        let filed = world.filed_generation();
        let segments = world.segments();
        let journal = segments.iter().filter(|(role, generation, _)| *role == 1 && *generation > filed);
        let mut journal = journal.map(|(_, _, path)| path.clone());
        let other = |wanted: &dyn Fn(u32, u64) -> bool| {
            let found = segments.iter().find(|(role, generation, _)| wanted(*role, *generation));
            found.unwrap_or_else(|| panic!("no {self:?} segment in {segments:?}")).2.clone()
        };
        match self {
            Self::Large => journal.find(|path| fs::metadata(path).unwrap().len() > 256 * KIB).unwrap(),
            Self::Sealed => journal.nth(1).unwrap(),
            Self::Active => journal.next_back().unwrap(),
            Self::Retained => other(&|role, generation| role == 1 && generation <= filed),
            Self::Cold => other(&|role, _| role == 2),
            Self::Free => other(&|role, _| role == 0),
            Self::Liveness => only(&world.path(), "liveness."),
            Self::Index => only(&world.path().join("sled"), "").join("db"),
            Self::Named(name) => world.path().join(name),
        }
    }

    /// Another one is made in its stead, under another name.
    fn is_replaceable(self) -> bool {
        matches!(self, Self::Free | Self::Liveness | Self::Index)
    }
}

/// The only file in `dir` whose name begins so.
fn only(dir: &Path, prefix: &str) -> PathBuf {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let has_prefix = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(prefix);
    let found: Vec<PathBuf> = paths.filter(has_prefix).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

async fn is_noticed_and_made_good(file: File, way: Way) {
    println!("{file:?}: {way:?}");
    let mut world = World::new().await;
    let path = file.path(&world);
    way.strike(&path, world.aside.path());
    world.notice().await;
    assert_eq!(world.spool.stats().gauges.unhealthy, Some(HealthSignal::LostFiles));
    assert_eq!(world.check(&world.spool).await, 0, "loads go on");
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

/// Of a segment that was cut short some messages are gone. They are named, they are never wrong
/// bytes, the others are there, and what was removed stays removed.
async fn costs_what_is_cut_off_and_nothing_else(file: File, way: Way) {
    println!("{file:?}: {way:?}");
    let world = World::new().await;
    way.strike(&file.path(&world), world.aside.path());
    world.notice().await;
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
                is_noticed_and_made_good($file, way).await;
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
    the_ledger: File::Named("ledger"), Way::ALL;
    the_format_file: File::Named("FORMAT"), Way::ALL;
    the_lock_file: File::Named("LOCK"), WITHOUT_LOSS;
    the_liveness_log: File::Liveness, Way::ALL;
    sleds_data: File::Index, WITHOUT_LOSS;
    // Neither its bytes nor its mode matter.
    the_ballast: File::Named("ballast"), [Way::Delete, Way::Move, Way::CutShort];
    the_ballast_for_opening: File::Named("ballast.open"), [Way::Delete, Way::Move, Way::CutShort];
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_cut_short() {
    for file in [File::Active, File::Sealed, File::Retained, File::Cold] {
        costs_what_is_cut_off_and_nothing_else(file, Way::CutShort).await;
    }
}

/// What was written after the cut made the file nearly as long as before, and nothing of what was
/// cut off was reported: on a busy machine an idle mark was written before the loss was noticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_cut_short_and_written_to_before_that_is_noticed() {
    for file in [File::Active, File::Sealed, File::Retained, File::Cold] {
        costs_what_is_cut_off_and_nothing_else(file, Way::CutShortAndGrown).await;
    }
}

/// The last look is at the end: what was lost since the one before was lost for good.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_just_before_a_shutdown_is_restored_by_it() {
    let files = [
        File::Large,
        File::Active,
        File::Sealed,
        File::Retained,
        File::Cold,
        File::Free,
        File::Named("ledger"),
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

/// The disk does not take the copy: the gate stays shut, the bytes stay readable, and it is tried
/// again until they are safe.
#[tokio::test(flavor = "multi_thread")]
async fn a_restoration_that_fails_is_tried_again() {
    for call in [Call::Create, Call::Write, Call::Sync, Call::Rename, Call::Read] {
        println!("{call:?}");
        let world = World::new().await;
        let path = File::Sealed.path(&world);
        let disk = &world.disk;
        fs::remove_file(&path).unwrap();
        disk.inject(
            Fault::on(call).only(|moment| is_thread("tidespool-filer") && is_a_segment(moment)).always(),
        );
        world.spool.cleanup().await.expect_err("it can't be restored");
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
/// the active one, and was gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_being_prepared() {
    let mut world = World::new().await;
    let dir = world.path().join("journal");
    let deleted = Arc::new(AtomicU64::new(0));
    let count = deleted.clone();
    world.disk.watch(move |moment| {
        let is_preparing = moment.call == Call::Sync && is_thread("tidespool-prewrite");
        if is_preparing && fs::remove_file(dir.join(moment.name)).is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    // The spool may find a loss and shut its gate before the segments that are ready are used up.
    for _ in 0..60 {
        if world.spool.unhealthy_reason().is_some() {
            break;
        }
        world.store_unless_refused(LARGE).await;
    }
    world.disk.unwatch();
    assert!(deleted.load(Ordering::Relaxed) > 0);
    world.notice().await;
    world.open_gate().await;
    world.assert_survives().await;
}

/// A crash in the middle of a restoration leaves a copy that is not whole.
#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_copy_is_removed_at_the_next_start() {
    let world = World::new().await;
    stop(world.spool.clone()).await;
    let copy = world.path().join("journal").join("00000001.seg.new");
    fs::write(&copy, "half of it").unwrap();
    world.assert_is_whole(&world.path()).await;
    assert!(!copy.exists());
}
