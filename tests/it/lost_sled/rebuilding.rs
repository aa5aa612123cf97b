//! sled's files are struck while sled is rebuilt: during an opening and right after it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidespool_core::Spool as _;
use tidespool_testkit::faults::{Call, Fault, FaultyStorage};
use tidespool_testkit::rng::Rng;

use super::images::{State, copy_running};
use super::strike::{put_into_the_newest, strike};
use super::*;

/// How many of the calls of an opening are tried.
const SAMPLES: u64 = 12;

/// Opens it without sled's files, and strikes again as soon as there are new ones.
async fn right_after_the_opening() {
    let images = Arc::new(Images::new().await);
    each_case(Way::ALL, |way| {
        let images = images.clone();
        async move {
            let (_dir, config) = images.copy(State::Closed);
            lose_all(&config.path, 0);
            let spool = open(&config).await;
            strike(&config.path, way, &Target::All, &images.donors(), &mut Rng::new(2));
            let mut book = images.book.clone();
            book.assert_no_wrong_answer(&spool).await;
            book.fill(&spool, 1).await;
            book.remove_each(&spool, 6).await;
            book.replace_each(&spool, 7).await;
            report("cleanup", wait::bounded("cleanup", spool.cleanup()).await);
            book.assert_exact(&spool).await;
            end(spool).await;
            assert_is_whole(&config, &book).await;
        }
    })
    .await;
}

/// Openings that end right away, in any order: the last one finds everything.
async fn again_and_again() {
    let images = Arc::new(Images::new().await);
    let mut rng = Rng::new(5);
    let (dir, mut config) = images.copy(State::Killed);
    let mut book = images.book.clone();
    for round in 0..9_u64 {
        lose_all(&config.path, u8::try_from(round % 3).unwrap());
        let spool = open(&config).await;
        strike(&config.path, Way::any(&mut rng), &Target::All, &images.donors(), &mut rng);
        book.store(&spool, tidespool_core::SpoolId::new(), 3000).await;
        let removed = book.nth(rng.number()).unwrap();
        book.remove(&spool, removed).await;
        book::durable(&spool).await;
        match round % 3 {
            0 => drop(spool),
            1 => end(spool).await,
            // A kill: what another process would find now.
            _ => {
                let killed = dir.path().join(format!("killed-{round}"));
                copy_running(&config.path, &killed);
                drop(spool);
                config.path = killed;
            }
        }
    }
    assert_is_whole(&config, &book).await;
}

async fn open_on(config: &Config, disk: &FaultyStorage) -> anyhow::Result<TieredSpool> {
    wait::bounded("open", when_free(|| TieredSpool::open_on(config.clone(), disk.storage()))).await
}

/// The number of calls that an opening without sled makes.
async fn calls_of_an_opening(images: &Images, state: State) -> u64 {
    let (_dir, config) = images.copy(state);
    lose_all(&config.path, 0);
    let disk = FaultyStorage::new();
    let spool = open_on(&config, &disk).await.expect("open");
    images.book.assert_exact(&spool).await;
    let calls = disk.total();
    end(Arc::new(spool)).await;
    calls
}

/// Strikes all files just before the `number`-th call.
fn strike_at(disk: &FaultyStorage, number: u64, spool: &Path, way: Way, images: &Images) {
    let (spool, donors): (PathBuf, _) = (spool.to_owned(), images.donors());
    let last = AtomicU64::new(0);
    disk.watch(move |moment| {
        if moment.number == number && last.swap(number, Ordering::SeqCst) != number {
            strike(&spool, way, &Target::All, &donors, &mut Rng::new(number));
        }
    });
}

/// The strike comes at any call to the disk that an opening makes, with sled or without.
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
                    images.book.assert_exact(&spool).await;
                    disk.unwatch();
                    end(Arc::new(spool)).await;
                }
                // An opening that failed has changed nothing that counts.
                Err(error) => println!("open: {error:#}"),
            }
            disk.unwatch();
            assert_is_whole(&config, &images.book).await;
        }
    })
    .await;
}

/// Reads of segments fail, once or for some time, while sled is rebuilt. When the disk works again
/// everything is there.
async fn on_a_disk_that_fails() {
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
                    images.book.assert_no_wrong_answer(&spool).await;
                    disk.heal();
                    images.book.assert_exact(&spool).await;
                    end(Arc::new(spool)).await;
                }
                Err(error) => println!("open: {error:#}"),
            }
            disk.heal();
            assert_is_whole(&config, &images.book).await;
        }
    })
    .await;
}

/// Each read of a segment takes longer, so that the rebuild is under way when the strikes come. The
/// answers are exact in any case.
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
            let mut book = images.book.clone();
            for round in 0..3 {
                strike(&config.path, way, &Target::All, &images.donors(), &mut Rng::new(round));
                book.assert_no_wrong_answer(&spool).await;
                book.fill(&spool, 1).await;
                book.remove_each(&spool, 11).await;
                book.replace_each(&spool, 13).await;
                report("cleanup", wait::bounded("cleanup", spool.cleanup()).await);
            }
            disk.heal();
            book.assert_exact(&spool).await;
            end(spool).await;
            assert_is_whole(&config, &book).await;
        }
    })
    .await;
}

/// An older copy of sled's files comes into the directory of an index that is just being made.
async fn by_an_older_copy_where_an_index_is_made() {
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
    images.book.assert_exact(&spool).await;
    assert!(spool.stats().errors_sled > 0, "the older copy was found");
    disk.unwatch();
    end(spool).await;
    assert_is_whole(&config, &images.book).await;
}

alone_tests! {
    struck_right_after_the_opening: right_after_the_opening();
    struck_again_and_again: again_and_again();
    struck_at_any_call_of_an_opening: at_any_call_of_an_opening(State::Closed);
    struck_at_any_call_of_an_opening_after_a_kill: at_any_call_of_an_opening(State::Killed);
    struck_on_a_slow_disk: on_a_slow_disk();
    struck_by_an_older_copy_where_an_index_is_made: by_an_older_copy_where_an_index_is_made();
    rebuilt_from_a_disk_that_fails: on_a_disk_that_fails();
}
