//! Histories in which the index is lost: the deviations that the player allows.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tidespool_core::{Corrupt, NotFound};

use super::Loss;
use super::player::Player;
use crate::subject::open_after_drop;
use crate::wait::PATIENCE;

/// The pause between two tries of a call that fails during the rebuild of the index.
const PAUSE: Duration = Duration::from_millis(2);

impl Player {
    pub(super) async fn lose_index(&mut self, when: Loss, how: u8) -> Result<()> {
        self.index_lost = true;
        match when {
            Loss::Running => self.factory.lose_index(how),
            Loss::Closed => self.reopen(|factory| factory.lose_index(how)).await?,
            Loss::Dropped => self.drop_and_open(how).await?,
            Loss::Rebuilding => {
                self.reopen(|factory| factory.lose_index(how)).await?;
                self.factory.lose_index(how / 3);
            }
        }
        self.compare_everything().await
    }

    async fn drop_and_open(&mut self, how: u8) -> Result<()> {
        // All data is durable after this call.
        self.spool.advise_low_memory().await?;
        self.drop_spool();
        self.factory.lose_index(how);
        self.spool = open_after_drop(self.factory.as_ref()).await.context("open after a drop")?;
        Ok(())
    }

    /// Retries a call that fails while the index may be incomplete. Any result about a message,
    /// even a wrong one, ends the retries.
    pub(super) async fn retry_if_index_lost<T, F>(&self, call: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let started = Instant::now();
        loop {
            match call().await {
                Err(error) if self.may_be_temporary(&error) && started.elapsed() < PATIENCE => {
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    fn may_be_temporary(&self, error: &anyhow::Error) -> bool {
        let root = error.root_cause();
        self.index_lost && !root.is::<NotFound>() && !root.is::<Corrupt>()
    }

    /// Waits until the gate is open. The loss may shut the gate temporarily.
    pub(super) async fn when_healthy(&self) -> Result<()> {
        let started = Instant::now();
        while self.index_lost && self.spool.unhealthy_reason().is_some() {
            ensure!(started.elapsed() < PATIENCE, "the gate stays shut");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}
