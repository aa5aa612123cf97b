//! Random histories with random damage. Each trial runs in a process of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;
use tidespool_core::{Spool as _, SpoolId};
use tidespool_testkit::env::{number_from_env, seed_from_env};

use super::expected::durable;
use super::images::copy_running;
use super::strike::strike;
use super::*;
use crate::broken::HOUR;
use crate::setup::{KIB, MIB, copy_dir, healthy, small};

const DEFAULT_TRIALS: u64 = 30;

/// Environment variable with the seed, in a process that runs one trial.
const TRIAL: &str = "TIDESPOOL_LOST_SLED_TRIAL";

#[test]
fn random_histories_and_damage() {
    let first = seed_from_env("TIDESPOOL_LOST_SLED_SEED");
    let count = number_from_env("TIDESPOOL_LOST_SLED_TRIALS").unwrap_or(DEFAULT_TRIALS);
    println!("TIDESPOOL_LOST_SLED_SEED={first}");
    let mut failures = Vec::new();
    for seed in first..first + count {
        let name = "lost_sled::trials::trial_of_a_process";
        if let Err(output) = run_alone(name, &[(TRIAL, seed.to_string())]) {
            failures.push(format!("TIDESPOOL_LOST_SLED_SEED={seed}\n{output}"));
        }
    }
    assert!(failures.is_empty(), "{} of {count} trials failed:\n{}", failures.len(), failures.join("\n"));
}

/// Runs in the processes of the test above. Does nothing without a seed.
#[test]
fn trial_of_a_process() {
    if let Some(seed) = number_from_env(TRIAL) {
        block_on(async { Trial::new(seed).await.run().await });
    }
}

/// A spool with a random history.
struct Trial {
    dir: TempDir,
    config: Config,
    donors: Donors,
    rng: SmallRng,
    expected: Expected,
    /// `None` while the spool is closed.
    spool: Option<Arc<TieredSpool>>,
    /// Number of copies made.
    copies: u64,
}

impl Trial {
    async fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let dir = TempDir::new().unwrap();
        let foreign = dir.path().join("foreign");
        make_another(&foreign, &mut rng).await;
        let path = dir.path().join("spool");
        let ages = [Duration::ZERO, Duration::from_millis(20), HOUR];
        let age = ages[rng.random_range(0..3)];
        let config = config(&path).checkpoint_after(age);
        let spool = open(&config).await;
        let donors = Donors { older: foreign.join("sled"), foreign: foreign.join("sled") };
        Self { dir, config, donors, rng, expected: Expected::default(), spool: Some(spool), copies: 0 }
    }

    fn spool(&self) -> &Arc<TieredSpool> {
        self.spool.as_ref().expect("it is open")
    }

    async fn run(mut self) {
        for _ in 0..self.rng.random_range(3..7) {
            self.work(40).await;
            match self.rng.random_range(0..6) {
                0 => self.remember().await,
                1 => self.strike(),
                2 => {
                    self.strike();
                    self.work(10).await;
                    self.strike();
                }
                3 => self.shut_down_and_open().await,
                4 => self.drop_and_open().await,
                _ => self.kill_and_open().await,
            }
            self.work(10).await;
            self.upkeep().await;
            self.expected.assert_exact(self.spool()).await;
        }
        self.end().await;
        assert_is_whole(&self.config, &self.expected).await;
    }

    /// Makes fewer than `most` calls.
    async fn work(&mut self, most: u64) {
        for _ in 0..self.rng.random_range(0..most) {
            let spool = self.spool().clone();
            healthy(spool.as_ref()).await;
            let known = self.expected.nth(self.rng.random());
            let most = if self.rng.random_bool(0.3) { 20_000 } else { 900 };
            let len = 16 + self.rng.random_range(0..most);
            match (known, self.rng.random_range(0..40)) {
                (Some(id), 0..10) => self.expected.remove(&spool, id).await,
                (Some(id), 10..18) => self.expected.store(&spool, id, len).await,
                (Some(_), 18) => self.upkeep().await,
                (Some(_), 19) => report("compact", spool.compact().await),
                (Some(_), 20) => self.expected.assert_no_wrong_result(&spool).await,
                _ => self.expected.store(&spool, SpoolId::new(), len).await,
            }
        }
    }

    async fn upkeep(&self) {
        report("cleanup", wait::bounded("cleanup", self.spool().cleanup()).await);
    }

    /// Damages one or all files, in any way.
    fn strike(&mut self) {
        let target = Target::any(&self.config.path, &mut self.rng);
        let way = Way::any(&mut self.rng);
        println!("{way:?}, {target:?}");
        strike(&self.config.path, way, &target, &self.donors, &mut self.rng);
    }

    fn copy(&mut self) -> PathBuf {
        self.copies += 1;
        self.dir.path().join(format!("copy-{}", self.copies))
    }

    /// Shuts down and keeps a copy of sled's files, which may replace later ones.
    async fn remember(&mut self) {
        println!("an older copy");
        self.end().await;
        let copy = self.copy();
        copy_dir(&self.config.path.join("sled"), &copy);
        self.donors.older = copy;
        self.open().await;
    }

    async fn end(&mut self) {
        durable(self.spool()).await;
        shut_down(self.spool().clone()).await;
        self.spool = None;
    }

    /// Opens the spool and sometimes damages it immediately.
    async fn open(&mut self) {
        self.spool = Some(open(&self.config).await);
        if self.rng.random_bool(0.4) {
            self.strike();
        }
    }

    async fn shut_down_and_open(&mut self) {
        println!("a shutdown");
        if self.rng.random_bool(0.3) {
            self.strike();
        }
        self.end().await;
        self.strike();
        self.open().await;
    }

    /// Drops the spool. Its threads may still run when the damage is done.
    async fn drop_and_open(&mut self) {
        println!("dropped without a shutdown");
        durable(self.spool()).await;
        self.spool = None;
        self.strike();
        self.open().await;
    }

    /// Continues in a copy, like another process after a kill. No checkpoints are made meanwhile,
    /// since the copy would be inconsistent.
    async fn kill_and_open(&mut self) {
        if self.config.checkpoint_after != HOUR {
            return self.drop_and_open().await;
        }
        println!("a kill");
        self.upkeep().await;
        self.expected.assert_exact(self.spool()).await;
        durable(self.spool()).await;
        if self.rng.random_bool(0.5) {
            self.strike();
        }
        let copy = self.copy();
        copy_running(&self.config.path, &copy);
        self.spool = None;
        self.config.path = copy;
        if self.rng.random_bool(0.5) {
            self.strike();
        }
        self.open().await;
    }
}

/// A configuration in which a few messages fill a segment.
fn config(path: &Path) -> Config {
    small(path).segment_size(64 * KIB).journal_capacity(2 * MIB)
}

/// Creates another spool, whose files may replace those of this one.
async fn make_another(path: &Path, rng: &mut SmallRng) {
    let mut expected = Expected::default();
    let spool = open(&config(path)).await;
    for _ in 0..=rng.random_range(0..3) {
        expected.fill(&spool, 3).await;
        expected.remove_each(&spool, 4).await;
        spool.compact().await.expect("compact");
    }
    shut_down(spool).await;
}
