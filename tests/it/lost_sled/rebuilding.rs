//! sled's files are damaged while sled is rebuilt: during an opening and right after it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tidespool_core::Spool as _;
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};

use super::images::{State, copy_running};
use super::strike::{put_into_the_newest, strike};
use super::*;

/// Number of calls of an opening that are tested.
const SAMPLES: u64 = 12;

/// Opens a spool without sled's files, and damages the new ones immediately.
async fn right_after_the_opening() {
    let images = Arc::new(Images::new().await);
    each_case(Way::ALL, |way| {
        let images = images.clone();
        async move {
            let (_dir, config) = images.copy(State::Closed);
            lose_all(&config.path, 0);
            let spool = open(&config).await;
            strike(&config.path, way, &Target::All, &images.donors(), &mut SmallRng::seed_from_u64(2));
            let mut expected = images.expected.clone();
            expected.assert_no_wrong_result(&spool).await;
            expected.fill(&spool, 1).await;
            expected.remove_each(&spool, 6).await;
            expected.replace_each(&spool, 7).await;
            report("cleanup", wait::bounded("cleanup", spool.cleanup()).await);
            expected.assert_exact(&spool).await;
            shut_down(spool).await;
            assert_is_whole(&config, &expected).await;
        }
    })
    .await;
}

/// Repeated openings that end at once in different ways. The last one finds everything.
async fn repeatedly() {
    let images = Arc::new(Images::new().await);
    let mut rng = SmallRng::seed_from_u64(5);
    let (dir, mut config) = images.copy(State::Killed);
    let mut expected = images.expected.clone();
    for round in 0..9_u64 {
        lose_all(&config.path, u8::try_from(round % 3).unwrap());
        let spool = open(&config).await;
        strike(&config.path, Way::any(&mut rng), &Target::All, &images.donors(), &mut rng);
        expected.store(&spool, tidespool_core::SpoolId::new(), 3000).await;
        let removed = expected.nth(rng.random()).unwrap();
        expected.remove(&spool, removed).await;
        expected::durable(&spool).await;
        match round % 3 {
            0 => drop(spool),
            1 => shut_down(spool).await,
            // A kill: continues with a copy of the current directory.
            _ => {
                let killed = dir.path().join(format!("killed-{round}"));
                copy_running(&config.path, &killed);
                drop(spool);
                config.path = killed;
            }
        }
    }
    assert_is_whole(&config, &expected).await;
}

async fn open_on(config: &Config, disk: &FaultyStorage) -> anyhow::Result<TieredSpool> {
    wait::bounded("open", when_free(|| TieredSpool::open_on(config.clone(), disk.storage()))).await
}

/// The number of calls of an opening without sled.
async fn calls_of_an_opening(images: &Images, state: State) -> u64 {
    let (_dir, config) = images.copy(state);
    lose_all(&config.path, 0);
    let disk = FaultyStorage::new();
    let spool = open_on(&config, &disk).await.expect("open");
    images.expected.assert_exact(&spool).await;
    let calls = disk.total();
    shut_down(Arc::new(spool)).await;
    calls
}

/// Damages all files just before the `number`-th call.
fn strike_at(disk: &FaultyStorage, number: u64, spool: &Path, way: Way, images: &Images) {
    let (spool, donors): (PathBuf, _) = (spool.to_owned(), images.donors());
    let last = AtomicU64::new(0);
    disk.watch(move |moment| {
        if moment.number == number && last.swap(number, Ordering::SeqCst) != number {
            strike(&spool, way, &Target::All, &donors, &mut SmallRng::seed_from_u64(number));
        }
    });
}

/// Damage at any call to the disk of an opening, with or without sled.
async fn at_any_call_of_an_opening(state: State) {
    let images = Arc::new(Images::new().await);
    let calls = calls_of_an_opening(&images, state).await;
    let mut cases = Vec::new();
    for sample in 0..SAMPLES {
        let number = 1 + sample * calls / SAMPLES;
        let ways = [Way::Delete, Way::Empty, Way::Garbage, Way::Older, Way::ForeignInPlace];
        let way = ways[usize::try_from(sample).unwrap() % ways.len()];
        cases.extend([(number, way, true), (number, way, false)]);
    }
    each_case(cases, |(number, way, is_lost_before)| {
        let images = images.clone();
        async move {
            let (_dir, config) = images.copy(state);
            if is_lost_before {
                lose_all(&config.path, 0);
            }
            let disk = FaultyStorage::new();
            strike_at(&disk, number, &config.path, way, &images);
            match open_on(&config, &disk).await {
                Ok(spool) => {
                    images.expected.assert_exact(&spool).await;
                    disk.unwatch();
                    shut_down(Arc::new(spool)).await;
                }
                // A failed opening must not have changed the messages.
                Err(error) => println!("open: {error:#}"),
            }
            disk.unwatch();
            assert_is_whole(&config, &images.expected).await;
        }
    })
    .await;
}

/// Reads of segments fail, once or for some time, while sled is rebuilt. When the disk works again,
/// everything is found.
async fn on_a_failing_disk() {
    let images = Arc::new(Images::new().await);
    let cases =
        [1, 2, 5, 12, 30].into_iter().flat_map(|from| [(from, 1), (from, 20), (from, u64::MAX - from)]);
    each_case(cases, |(from, times)| {
        let images = images.clone();
        async move {
            let (_dir, config) = images.copy(State::Closed);
            lose_all(&config.path, 0);
            let disk = FaultyStorage::new();
            disk.inject(Fault::on(Call::Read).file(".seg").from(from).times(times));
            match open_on(&config, &disk).await {
                Ok(spool) => {
                    images.expected.assert_no_wrong_result(&spool).await;
                    disk.heal();
                    images.expected.assert_exact(&spool).await;
                    shut_down(Arc::new(spool)).await;
                }
                Err(error) => println!("open: {error:#}"),
            }
            disk.heal();
            assert_is_whole(&config, &images.expected).await;
        }
    })
    .await;
}

/// Reads of segments are slow, so that the rebuild is in progress when the damage is done. All
/// results are exact nevertheless.
async fn on_a_slow_disk() {
    let images = Arc::new(Images::new().await);
    each_case([Way::Delete, Way::Garbage, Way::Older, Way::Directory], |way| {
        let images = images.clone();
        async move {
            let (_dir, config) = images.copy(State::Killed);
            lose_all(&config.path, 0);
            let disk = FaultyStorage::new();
            disk.inject(Fault::on(Call::Read).file(".seg").always().delay(Duration::from_millis(2)));
            let spool = Arc::new(open_on(&config, &disk).await.expect("open"));
            let mut expected = images.expected.clone();
            for round in 0..3 {
                strike(
                    &config.path,
                    way,
                    &Target::All,
                    &images.donors(),
                    &mut SmallRng::seed_from_u64(round),
                );
                expected.assert_no_wrong_result(&spool).await;
                expected.fill(&spool, 1).await;
                expected.remove_each(&spool, 11).await;
                expected.replace_each(&spool, 13).await;
                report("cleanup", wait::bounded("cleanup", spool.cleanup()).await);
            }
            disk.heal();
            expected.assert_exact(&spool).await;
            shut_down(spool).await;
            assert_is_whole(&config, &expected).await;
        }
    })
    .await;
}

/// An older copy of sled's files appears in the directory of an index that is being created.
async fn by_an_older_copy_during_the_creation_of_an_index() {
    let images = Arc::new(Images::new().await);
    let (_dir, config) = images.copy(State::Killed);
    let disk = FaultyStorage::new();
    let (sled, older, is_done) = (config.path.join("sled"), images.donors().older, AtomicBool::new(false));
    disk.watch(move |moment| {
        if moment.call == Call::Open && moment.name == "db" && !is_done.swap(true, Ordering::SeqCst) {
            put_into_the_newest(&sled, &older);
        }
    });
    let spool = Arc::new(open_on(&config, &disk).await.expect("open"));
    images.expected.assert_exact(&spool).await;
    assert!(spool.stats().errors_sled > 0, "the older copy was not detected");
    disk.unwatch();
    shut_down(spool).await;
    assert_is_whole(&config, &images.expected).await;
}

alone_tests! {
    damaged_right_after_the_opening: right_after_the_opening();
    damaged_repeatedly: repeatedly();
    damaged_at_any_call_of_an_opening: at_any_call_of_an_opening(State::Closed);
    damaged_at_any_call_of_an_opening_after_a_kill: at_any_call_of_an_opening(State::Killed);
    damaged_on_a_slow_disk: on_a_slow_disk();
    damaged_by_an_older_copy_during_the_creation_of_an_index: by_an_older_copy_during_the_creation_of_an_index();
    rebuilt_from_a_failing_disk: on_a_failing_disk();
}
