//! Runs a mix: the calls of each.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::Utc;
use tidespool::TieredSpool;
use tidespool_core::{Spool as _, SpoolEntry};

use super::callers::{Callers, Messages, Work};
use super::mix::{Mix, Setting};
use super::report::{MixReport, Phase};
use super::watch::{Part, Watch};
use crate::proc;

/// Each caller holds two messages: the stored one and the loaded one.
const HELD_BY_A_CALLER: usize = 2;

/// The capacity of the channel to the receiver of an enumeration.
const CHANNEL: usize = 64;

/// The longest wait until dirty data is durable.
const DURABLE_WITHIN: Duration = Duration::from_secs(60);

/// Runs a mix in this process, in `dir`, an empty directory.
pub(super) async fn run(mix: Mix, setting: &Setting, dir: &Path) -> Result<MixReport> {
    let messages = Arc::new(Messages::new(mix.sizes(), setting.seed));
    let held = mix.callers() * mix.sizes().largest() * HELD_BY_A_CALLER;
    proc::reset_peak_rss();
    let base = proc::rss_bytes()? + held as u64;

    let spool = Arc::new(TieredSpool::open(mix.config(setting, dir)).await.context("opening tidespool")?);
    let watch = Watch::start(Arc::clone(&spool), base)?;
    let callers =
        Callers { spool: Arc::clone(&spool), messages, count: mix.callers(), calls: Arc::default() };
    let mut running = Running { callers, base, begun: Instant::now(), phases: Vec::new() };
    let done = running.mix(mix, setting).await;
    let seen = watch.end();
    let closed = spool.shutdown().await;
    done?;
    closed.context("shutting the spool down")?;
    let calls = running.callers.calls.load(std::sync::atomic::Ordering::Relaxed);
    Ok(MixReport::new(mix, setting, seen?, running.phases, calls))
}

/// The state of a running mix.
struct Running {
    callers: Callers,
    base: u64,
    begun: Instant,
    phases: Vec<Phase>,
}

impl Running {
    async fn mix(&mut self, mix: Mix, setting: &Setting) -> Result<()> {
        let time = Duration::from_secs(setting.seconds);
        match mix {
            Mix::Sizes => self.churn(mix.filling(setting, 3), time, false).await,
            Mix::Small => self.small(setting.messages).await,
            Mix::Clean => self.clean(mix.filling(setting, 2)).await,
            Mix::Dirty => self.work("store", Work::Store(0..mix.filling(setting, 3))).await,
            Mix::Backlog => self.backlog(setting.messages).await,
            Mix::Churn => self.churn(mix.filling(setting, 2), time, false).await,
            Mix::Synced => self.churn(mix.filling(setting, 1), time, true).await,
        }
    }

    async fn small(&mut self, count: u64) -> Result<()> {
        self.work("store", Work::Store(0..count)).await?;
        self.work("load", Work::Load { among: 0..count, step: 1, count: count / 4 }).await
    }

    async fn clean(&mut self, count: u64) -> Result<()> {
        self.work("store", Work::Store(0..count)).await?;
        self.durable().await?;
        self.work("load", Work::Load { among: 0..count, step: 1, count: count * 4 }).await
    }

    async fn churn(&mut self, live: u64, time: Duration, synced: bool) -> Result<()> {
        let live = live.max(2);
        let last = self.callers.run(Work::Churn { from: 0, live, time, synced }).await?;
        self.phase("churn")?;
        let rest = last.saturating_sub(live)..last;
        self.work("remove", Work::Remove { among: rest, step: 1 }).await
    }

    async fn backlog(&mut self, count: u64) -> Result<()> {
        self.work("store", Work::Store(0..count)).await?;
        self.cleanup().await?;
        let loads = count / 10;
        self.work("load", Work::Load { among: 0..count, step: 1, count: loads }).await?;
        self.enumerate(count).await?;
        self.work("remove half", Work::Remove { among: 0..count, step: 2 }).await?;
        self.cleanup().await?;
        self.work("load the rest", Work::Load { among: 1..count, step: 2, count: loads }).await
    }

    async fn work(&mut self, what: &str, work: Work) -> Result<()> {
        self.callers.run(work).await?;
        self.phase(what)
    }

    fn phase(&mut self, what: &str) -> Result<()> {
        let then = Part::of(&self.callers.spool, self.base)?;
        self.phases.push(Phase { phase: what.to_owned(), seconds: self.begun.elapsed().as_secs_f64(), then });
        Ok(())
    }

    async fn cleanup(&mut self) -> Result<()> {
        self.callers.spool.cleanup().await?;
        self.phase("file")
    }

    async fn durable(&mut self) -> Result<()> {
        let begun = Instant::now();
        while self.callers.spool.stats().gauges.dirty_bytes > 0 {
            if begun.elapsed() > DURABLE_WITHIN {
                bail!("data was still dirty after {} s", DURABLE_WITHIN.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.phase("become durable")
    }

    async fn enumerate(&mut self, count: u64) -> Result<()> {
        let (sender, receiver) = async_channel::bounded(CHANNEL);
        self.callers.spool.enumerate(sender, Utc::now() + chrono::TimeDelta::days(1))?;
        let mut found = 0;
        while let Ok(entry) = receiver.recv().await {
            if let SpoolEntry::Corrupt { id, error } = entry {
                bail!("message {id} is damaged: {error}");
            }
            found += 1;
        }
        if found != count {
            bail!("{count} messages were stored and {found} enumerated");
        }
        self.callers.calls.fetch_add(found, std::sync::atomic::Ordering::Relaxed);
        self.phase("enumerate")
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    fn setting() -> Setting {
        Setting {
            budget: 8 << 20,
            messages: 2_000,
            journal_capacity: 1 << 30,
            seconds: 1,
            seed: 1,
            quick: true,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_mix_does_what_it_says() {
        for mix in Mix::value_variants() {
            let dir = tempfile::tempdir().unwrap();
            let report = run(*mix, &setting(), dir.path()).await.unwrap();
            let phases: Vec<&str> = report.phases.iter().map(|phase| phase.phase.as_str()).collect();
            match mix {
                Mix::Backlog => {
                    assert_eq!(
                        phases,
                        ["store", "file", "load", "enumerate", "remove half", "file", "load the rest"]
                    );
                    assert_eq!(report.calls, 2_000 + 200 + 2_000 + 1_000 + 200);
                }
                Mix::Small => assert_eq!(report.calls, 2_000 + 500),
                Mix::Clean => assert_eq!(report.calls, 5 * 1_024),
                Mix::Dirty => assert_eq!(report.calls, 1_536),
                Mix::Sizes | Mix::Churn | Mix::Synced => assert_eq!(phases, ["churn", "remove"]),
            }
            assert!(report.base > 0 && report.peak > 0 && report.largest.accounted > 0, "{report:?}");
        }
    }

    #[test]
    fn what_callers_hold_is_little() {
        for mix in Mix::value_variants() {
            assert!(mix.callers() * mix.sizes().largest() * HELD_BY_A_CALLER <= 8 << 20, "{mix:?}");
        }
    }
}
