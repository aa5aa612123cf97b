//! sled's files are damaged under a running spool.
//!
//! The loss is detected at the next call into sled or by upkeep, and open descriptors may still
//! work. So each result is compared at once, after upkeep, and after the next openings.

use std::path::Path;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;
use tidespool_core::{Spool as _, SpoolId};
use tokio::task::JoinSet;

use super::expected::durable;
use super::images::{State, checkpoint_all, copy_running};
use super::strike::strike;
use super::*;
use crate::setup::healthy;

/// Asserts that nothing is lost by a kill now, or by a shutdown.
async fn assert_survives(dir: &TempDir, config: &Config, spool: Arc<TieredSpool>, expected: &Expected) {
    healthy(spool.as_ref()).await;
    expected.assert_exact(&spool).await;
    durable(&spool).await;
    let killed = dir.path().join("killed");
    copy_running(&config.path, &killed);
    assert_is_whole(&at(config, &killed), expected).await;
    shut_down(spool).await;
    assert_is_whole(config, expected).await;
}

async fn upkeep(spool: &TieredSpool) {
    report("cleanup", wait::bounded("cleanup", spool.cleanup()).await);
}

async fn between_traffic(images: Arc<Images>, way: Way, target: Target) {
    let (dir, config) = images.copy(State::Closed);
    let mut expected = images.expected.clone();
    let spool = open(&config).await;
    expected.fill(&spool, 1).await;
    strike(&config.path, way, &target, &images.donors(), &mut SmallRng::seed_from_u64(1));
    expected.assert_no_wrong_result(&spool).await;
    expected.fill(&spool, 2).await;
    expected.remove_each(&spool, 5).await;
    expected.replace_each(&spool, 7).await;
    expected.assert_no_wrong_result(&spool).await;
    upkeep(&spool).await;
    expected.assert_exact(&spool).await;
    healthy(spool.as_ref()).await;
    expected.fill(&spool, 1).await;
    // This reads and changes sled.
    checkpoint_all_after_upkeep(&spool).await;
    assert_survives(&dir, &config, spool, &expected).await;
}

/// Checkpoints everything. Upkeep may fail until sled is rebuilt.
async fn checkpoint_all_after_upkeep(spool: &TieredSpool) {
    upkeep(spool).await;
    checkpoint_all(spool).await;
}

async fn each_way_between_traffic(ways: &'static [Way]) {
    let images = Arc::new(Images::new().await);
    let mut cases = Vec::new();
    for &way in ways {
        cases.extend(Target::each(&images.path(State::Closed)).into_iter().map(|target| (way, target)));
    }
    each_case(cases, |(way, target)| between_traffic(images.clone(), way, target)).await;
}

/// A caller with its own ids stores, replaces, removes and loads. Returns the expected messages.
async fn traffic(spool: Arc<TieredSpool>, seed: u64, steps: u64) -> Expected {
    let (mut expected, mut rng) = (Expected::default(), SmallRng::seed_from_u64(seed));
    for _ in 0..steps {
        let known = expected.nth(rng.random());
        let len = rng.random_range(16..12_016);
        match (known, rng.random_range(0..10)) {
            (Some(id), 0..3) => expected.remove(&spool, id).await,
            (Some(id), 3..5) => expected.store(&spool, id, len).await,
            (Some(_), 5) => expected.assert_no_wrong_result(&spool).await,
            _ => expected.store(&spool, SpoolId::new(), len).await,
        }
    }
    expected
}

/// Damages files while callers work and checkpoints are made.
async fn during_traffic(images: Arc<Images>, way: Way) {
    const CALLERS: u64 = 3;
    let (dir, config) = images.copy(State::Closed);
    let checkpointing = config.clone().checkpoint_after(Duration::from_millis(20));
    let spool = open(&checkpointing).await;
    let mut expected = images.expected.clone();
    let mut rng = SmallRng::seed_from_u64(7);
    for round in 0..3 {
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            callers.spawn(traffic(spool.clone(), 10 * round + caller, 60));
        }
        // The loads take time, so damage is done at different points of the traffic.
        for _ in 0..2 {
            expected.assert_no_wrong_result(&spool).await;
            let target = Target::any(&config.path, &mut rng);
            strike(&config.path, way, &target, &images.donors(), &mut rng);
        }
        while let Some(done) = callers.join_next().await {
            expected.add(done.unwrap());
        }
        upkeep(&spool).await;
        expected.assert_exact(&spool).await;
    }
    // Nothing must move while the directory is copied.
    spool.reconfigure(config.clone()).expect("reconfigure");
    assert_survives(&dir, &config, spool, &expected).await;
}

async fn each_way_during_traffic(ways: &'static [Way]) {
    let images = Arc::new(Images::new().await);
    each_case(ways, |&way| during_traffic(images.clone(), way)).await;
}

/// The shutdown checks the files once more, and detects this damage.
async fn just_before_a_shutdown() {
    let images = Arc::new(Images::new().await);
    each_case(Way::ALL, |way| {
        let images = images.clone();
        async move {
            let (_dir, config) = images.copy(State::Closed);
            let spool = open(&config).await;
            strike(&config.path, way, &Target::All, &images.donors(), &mut SmallRng::seed_from_u64(3));
            shut_down(spool).await;
            assert_is_whole(&config, &images.expected).await;
        }
    })
    .await;
}

/// A kill right after the damage, before the spool can detect it.
async fn just_before_a_kill() {
    let images = Arc::new(Images::new().await);
    each_case(Way::ALL, |way| {
        let images = images.clone();
        async move {
            let (dir, config) = images.copy(State::Closed);
            let spool = open(&config).await;
            strike(&config.path, way, &Target::All, &images.donors(), &mut SmallRng::seed_from_u64(4));
            let killed = dir.path().join("killed");
            copy_running(&config.path, &killed);
            // Other tests cover this shutdown.
            report("shutdown", wait::bounded("shutdown", spool.shutdown()).await);
            assert_is_whole(&at(&config, &killed), &images.expected).await;
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
const TRUNCATED: &[Way] = &[Way::Empty, Way::CutShort];
const BYTES: &[Way] = &[Way::Zero, Way::ZeroPart, Way::Garbage, Way::GarbagePart];
const EXCHANGE: &[Way] = &[Way::Older, Way::Foreign];
const IN_PLACE: &[Way] = &[Way::OlderInPlace, Way::ForeignInPlace];

alone_tests! {
    deleted_between_traffic: each_way_between_traffic(DELETED);
    truncated_between_traffic: each_way_between_traffic(TRUNCATED);
    overwritten_between_traffic: each_way_between_traffic(BYTES);
    exchanged_between_traffic: each_way_between_traffic(EXCHANGE);
    exchanged_in_place_between_traffic: each_way_between_traffic(IN_PLACE);
    deleted_during_traffic: each_way_during_traffic(DELETED);
    truncated_during_traffic: each_way_during_traffic(TRUNCATED);
    overwritten_during_traffic: each_way_during_traffic(BYTES);
    exchanged_during_traffic: each_way_during_traffic(EXCHANGE);
    exchanged_in_place_during_traffic: each_way_during_traffic(IN_PLACE);
    damaged_just_before_a_shutdown: just_before_a_shutdown();
    damaged_just_before_a_kill: just_before_a_kill();
}
