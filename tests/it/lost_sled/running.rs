//! sled's files are struck under a running spool.
//!
//! The loss may be noticed at the next call into sled, or by upkeep, and open descriptors may go on
//! working. So each answer is compared at once, after upkeep, and after the next openings.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tidespool_core::{Spool as _, SpoolId};
use tidespool_testkit::rng::Rng;
use tokio::task::JoinSet;

use super::book::durable;
use super::images::{State, copy_running, file_all};
use super::strike::strike;
use super::*;
use crate::setup::healthy;

/// What a kill now leaves is whole, and so is what an orderly end leaves.
async fn assert_survives(dir: &TempDir, config: &Config, spool: Arc<TieredSpool>, book: &Book) {
    healthy(spool.as_ref()).await;
    book.assert_exact(&spool).await;
    durable(&spool).await;
    let killed = dir.path().join("killed");
    copy_running(&config.path, &killed);
    assert_is_whole(&at(config, &killed), book).await;
    end(spool).await;
    assert_is_whole(config, book).await;
}

async fn upkeep(spool: &TieredSpool) {
    report("cleanup", wait::bounded("cleanup", spool.cleanup()).await);
}

async fn between_traffic(images: Arc<Images>, way: Way, target: Target) {
    let (dir, config) = images.copy(State::Closed);
    let mut book = images.book.clone();
    let spool = open(&config).await;
    book.fill(&spool, 1).await;
    strike(&config.path, way, &target, &images.donors(), &mut Rng::new(1));
    book.assert_no_wrong_answer(&spool).await;
    book.fill(&spool, 2).await;
    book.remove_each(&spool, 5).await;
    book.replace_each(&spool, 7).await;
    book.assert_no_wrong_answer(&spool).await;
    upkeep(&spool).await;
    book.assert_exact(&spool).await;
    healthy(spool.as_ref()).await;
    book.fill(&spool, 1).await;
    // sled is read and changed.
    file_all_patiently(&spool).await;
    assert_survives(&dir, &config, spool, &book).await;
}

/// Upkeep may fail until sled is whole again.
async fn file_all_patiently(spool: &TieredSpool) {
    upkeep(spool).await;
    file_all(spool).await;
}

async fn each_way_between_traffic(ways: &'static [Way]) {
    let images = Arc::new(Images::new().await);
    let mut cases = Vec::new();
    for &way in ways {
        cases.extend(Target::each(&images.path(State::Closed)).into_iter().map(|target| (way, target)));
    }
    each_case(cases, |(way, target)| between_traffic(images.clone(), way, target)).await;
}

/// Callers with ids of their own store, replace, remove and load. Returns what they were told.
async fn traffic(spool: Arc<TieredSpool>, seed: u64, steps: u64) -> Book {
    let (mut book, mut rng) = (Book::default(), Rng::new(seed));
    for _ in 0..steps {
        let known = book.nth(rng.number());
        let len = usize::try_from(16 + rng.below(12_000)).unwrap();
        match (known, rng.below(10)) {
            (Some(id), 0..3) => book.remove(&spool, id).await,
            (Some(id), 3..5) => book.store(&spool, id, len).await,
            (Some(_), 5) => book.assert_no_wrong_answer(&spool).await,
            _ => book.store(&spool, SpoolId::new(), len).await,
        }
    }
    book
}

/// Strikes come while callers work and messages are filed.
async fn during_traffic(images: Arc<Images>, way: Way) {
    const CALLERS: u64 = 3;
    let (dir, config) = images.copy(State::Closed);
    let filing = config.clone().checkpoint_after(Duration::from_millis(20));
    let spool = open(&filing).await;
    let mut book = images.book.clone();
    let mut rng = Rng::new(7);
    for round in 0..3 {
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            callers.spawn(traffic(spool.clone(), 10 * round + caller, 60));
        }
        // Each strike comes after some work: between the ends of loads.
        for _ in 0..2 {
            book.assert_no_wrong_answer(&spool).await;
            let target = Target::any(&config.path, &mut rng);
            strike(&config.path, way, &target, &images.donors(), &mut rng);
        }
        while let Some(done) = callers.join_next().await {
            book.add(done.unwrap());
        }
        upkeep(&spool).await;
        book.assert_exact(&spool).await;
    }
    // Nothing is moved while the directory is copied.
    spool.reconfigure(config.clone()).expect("reconfigure");
    assert_survives(&dir, &config, spool, &book).await;
}

async fn each_way_during_traffic(ways: &'static [Way]) {
    let images = Arc::new(Images::new().await);
    each_case(ways, |&way| during_traffic(images.clone(), way)).await;
}

/// The last look is at the end: files that were lost since the one before.
async fn just_before_the_end() {
    let images = Arc::new(Images::new().await);
    each_case(Way::ALL, |way| {
        let images = images.clone();
        async move {
            let (_dir, config) = images.copy(State::Closed);
            let spool = open(&config).await;
            strike(&config.path, way, &Target::All, &images.donors(), &mut Rng::new(3));
            end(spool).await;
            assert_is_whole(&config, &images.book).await;
        }
    })
    .await;
}

/// A kill after a strike, before the spool could notice.
async fn just_before_a_kill() {
    let images = Arc::new(Images::new().await);
    each_case(Way::ALL, |way| {
        let images = images.clone();
        async move {
            let (dir, config) = images.copy(State::Closed);
            let spool = open(&config).await;
            strike(&config.path, way, &Target::All, &images.donors(), &mut Rng::new(4));
            let killed = dir.path().join("killed");
            copy_running(&config.path, &killed);
            // This end is tested elsewhere.
            report("shutdown", wait::bounded("shutdown", spool.shutdown()).await);
            assert_is_whole(&at(&config, &killed), &images.book).await;
        }
    })
    .await;
}

fn at(config: &Config, path: &Path) -> Config {
    let mut config = config.clone();
    config.path = path.to_owned();
    config
}

const DELETED: &[Way] = &[Way::Delete, Way::Forbid, Way::Directory];
const CUT_SHORT: &[Way] = &[Way::Empty, Way::CutShort];
const BYTES: &[Way] = &[Way::Zero, Way::ZeroPart, Way::Garbage, Way::GarbagePart];
const EXCHANGE: &[Way] = &[Way::Older, Way::Foreign];
const IN_PLACE: &[Way] = &[Way::OlderInPlace, Way::ForeignInPlace];

alone_tests! {
    deleted_between_traffic: each_way_between_traffic(DELETED);
    cut_short_between_traffic: each_way_between_traffic(CUT_SHORT);
    other_bytes_between_traffic: each_way_between_traffic(BYTES);
    other_files_between_traffic: each_way_between_traffic(EXCHANGE);
    other_content_between_traffic: each_way_between_traffic(IN_PLACE);
    deleted_during_traffic: each_way_during_traffic(DELETED);
    cut_short_during_traffic: each_way_during_traffic(CUT_SHORT);
    other_bytes_during_traffic: each_way_during_traffic(BYTES);
    other_files_during_traffic: each_way_during_traffic(EXCHANGE);
    other_content_during_traffic: each_way_during_traffic(IN_PLACE);
    struck_just_before_an_orderly_end: just_before_the_end();
    struck_just_before_a_kill: just_before_a_kill();
}
