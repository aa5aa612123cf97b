//! Random histories with random strikes. Each trial runs in a process of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tidespool_core::{Spool as _, SpoolId};
use tidespool_testkit::rng::{Rng, number_from_env, seed_from_env};

use super::book::durable;
use super::images::copy_running;
use super::strike::strike;
use super::*;
use crate::broken::HOUR;
use crate::setup::{KIB, MIB, copy_dir, healthy, small};

const DEFAULT_TRIALS: u64 = 30;

/// In a process that runs one trial: its seed.
const TRIAL: &str = "TIDESPOOL_LOST_SLED_TRIAL";

#[test]
fn random_histories_and_strikes() {
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

/// The test above runs it. Without a seed there is nothing to do.
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
    rng: Rng,
    book: Book,
    /// `None` while it is closed.
    spool: Option<Arc<TieredSpool>>,
    /// How many copies there are.
    copies: u64,
}

impl Trial {
    async fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let dir = TempDir::new().unwrap();
        let foreign = dir.path().join("foreign");
        make_another(&foreign, &mut rng).await;
        let path = dir.path().join("spool");
        let ages = [Duration::ZERO, Duration::from_millis(20), HOUR];
        let age = ages[usize::try_from(rng.below(3)).unwrap()];
        let config = config(&path).checkpoint_after(age);
        let spool = open(&config).await;
        let donors = Donors { older: foreign.join("sled"), foreign: foreign.join("sled") };
        Self { dir, config, donors, rng, book: Book::default(), spool: Some(spool), copies: 0 }
    }

    fn spool(&self) -> &Arc<TieredSpool> {
        self.spool.as_ref().expect("it is open")
    }

    async fn run(mut self) {
        for _ in 0..3 + self.rng.below(4) {
            self.work(40).await;
            match self.rng.below(6) {
                0 => self.remember().await,
                1 => self.strike(),
                2 => {
                    self.strike();
                    self.work(10).await;
                    self.strike();
                }
                3 => self.end_and_open().await,
                4 => self.drop_and_open().await,
                _ => self.kill_and_open().await,
            }
            self.work(10).await;
            self.upkeep().await;
            self.book.assert_exact(self.spool()).await;
        }
        self.end().await;
        assert_is_whole(&self.config, &self.book).await;
    }

    /// Up to so many calls.
    async fn work(&mut self, most: u64) {
        for _ in 0..self.rng.below(most) {
            let spool = self.spool().clone();
            healthy(spool.as_ref()).await;
            let known = self.book.nth(self.rng.number());
            let most = if self.rng.chance(30) { 20_000 } else { 900 };
            let len = usize::try_from(16 + self.rng.below(most)).unwrap();
            match (known, self.rng.below(40)) {
                (Some(id), 0..10) => self.book.remove(&spool, id).await,
                (Some(id), 10..18) => self.book.store(&spool, id, len).await,
                (Some(_), 18) => self.upkeep().await,
                (Some(_), 19) => report("compact", spool.compact().await),
                (Some(_), 20) => self.book.assert_no_wrong_answer(&spool).await,
                _ => self.book.store(&spool, SpoolId::new(), len).await,
            }
        }
    }

    async fn upkeep(&self) {
        report("cleanup", wait::bounded("cleanup", self.spool().cleanup()).await);
    }

    /// One or all files, in any way.
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

    /// Ends in order. What sled's files are now can come back later.
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
        end(self.spool().clone()).await;
        self.spool = None;
    }

    /// And maybe strikes at once.
    async fn open(&mut self) {
        self.spool = Some(open(&self.config).await);
        if self.rng.chance(40) {
            self.strike();
        }
    }

    async fn end_and_open(&mut self) {
        println!("an orderly end");
        if self.rng.chance(30) {
            self.strike();
        }
        self.end().await;
        self.strike();
        self.open().await;
    }

    /// The threads of the spool end by themselves. They may still be at work when the strike comes.
    async fn drop_and_open(&mut self) {
        println!("dropped without a shutdown");
        durable(self.spool()).await;
        self.spool = None;
        self.strike();
        self.open().await;
    }

    /// Goes on in a copy, as another process would after a kill. Nothing is filed meanwhile, or the
    /// copy would be of no single moment.
    async fn kill_and_open(&mut self) {
        if self.config.checkpoint_after != HOUR {
            return self.drop_and_open().await;
        }
        println!("a kill");
        self.upkeep().await;
        self.book.assert_exact(self.spool()).await;
        durable(self.spool()).await;
        if self.rng.chance(50) {
            self.strike();
        }
        let copy = self.copy();
        copy_running(&self.config.path, &copy);
        self.spool = None;
        self.config.path = copy;
        if self.rng.chance(50) {
            self.strike();
        }
        self.open().await;
    }
}

/// Segments fill with a few messages.
fn config(path: &Path) -> Config {
    small(path).segment_size(64 * KIB).journal_capacity(2 * MIB)
}

/// Another spool, whose files may come in place of this one's.
async fn make_another(path: &Path, rng: &mut Rng) {
    let mut book = Book::default();
    let spool = open(&config(path)).await;
    for _ in 0..=rng.below(3) {
        book.fill(&spool, 3).await;
        book.remove_each(&spool, 4).await;
        spool.compact().await.expect("compact");
    }
    end(spool).await;
}
