use std::time::{Duration, Instant};

use tidespool::Config;
use tidespool_core::SpoolId;
use tokio::time::timeout;

use super::caller::store_timed;
use super::case::{Case, Open, Outcome};
use super::script::{HOUR, HUGE, Step};
use crate::faults::{Call, Strike};

impl Case {
    /// Checks the gate after each step: it must be shut if a journal write failed. Once the fault
    /// is over, the gate must open again.
    pub(super) async fn check_gate(&mut self, open: &Open, step: Option<Step>) -> Result<(), String> {
        let strikes = self.strikes();
        let new = &strikes[self.seen..];
        let must_shut = new.iter().find(|strike| self.must_shut(strike, step)).cloned();
        let is_new = !new.is_empty();
        self.seen = strikes.len();
        if let Some(strike) = must_shut
            && !self.gate_was_shut
        {
            if !self.until(|| open.spool.unhealthy_reason().is_some()).await {
                let Strike { call, name, thread, .. } = strike;
                return Err(format!("the gate stayed open after a failed {call:?} of {name} by {thread}"));
            }
            self.gate_was_shut = true;
        }
        if open.spool.unhealthy_reason().is_some() {
            self.record_outcome(Outcome::Recovered);
            self.gate_was_shut = true;
        }
        if is_new && !self.is_sticky() {
            self.wait_for_open_gate(open).await?;
            // Strikes until now met a shut gate, or one about to shut. From here on, the gate stays
            // shut again.
            (self.seen, self.gate_was_shut) = (self.strikes().len(), false);
            allow_unlatch(open, false)?;
        }
        Ok(())
    }

    /// A failed journal write must shut the gate. Exception: if there is no space for a message
    /// larger than a segment, only its own store fails.
    fn must_shut(&self, strike: &Strike, step: Option<Step>) -> bool {
        let is_no_room = self.kind().is_some_and(super::Kind::is_no_room);
        let is_for_one = matches!(step, Some(Step::Store(_, HUGE, _)));
        self.kind().is_some_and(super::Kind::is_error)
            && matches!(strike.call, Call::Write | Call::Sync)
            && strike.name.ends_with(".seg")
            && ["tide-commit", "tide-sync"].contains(&strike.thread.as_str())
            && !(is_no_room && is_for_one)
    }

    async fn wait_for_open_gate(&mut self, open: &Open) -> Result<(), String> {
        allow_unlatch(open, true)?;
        match self.until(|| open.spool.unhealthy_reason().is_none()).await {
            true => Ok(()),
            false => Err(format!("the gate stays shut: {:?}", open.spool.unhealthy_reason())),
        }
    }

    /// After the fault, everything must work again without a restart: the gate opens, stores
    /// succeed, pending calls end, and all messages can be checkpointed.
    pub(super) async fn recover(&mut self, open: &Open) -> Result<(), String> {
        if !self.healed {
            self.heal();
        }
        self.check_gate(open, None).await?;
        self.wait_for_open_gate(open).await?;
        self.store_again(open).await?;
        for (what, upkeep) in std::mem::take(&mut self.pending) {
            let ended = timeout(self.subject.patience, upkeep)
                .await
                .map_err(|_| format!("{what} hangs after the fault"))?;
            // The call ran during the fault, so an error is allowed.
            let _ = ended.map_err(|error| format!("{what} panicked: {error}"))?;
        }
        let flushed = timeout(self.subject.patience, open.spool.advise_low_memory()).await;
        let flushed = flushed.map_err(|_| "a flush hangs after the fault".to_owned())?;
        flushed.map_err(|error| format!("a flush fails after the fault: {error:#}"))?;
        self.expected.mark_durable();
        let compacted = timeout(self.subject.patience, open.spool.compact()).await;
        let compacted = compacted.map_err(|_| "compact hangs after the fault".to_owned())?;
        compacted.map_err(|error| format!("compact fails after the fault: {error:#}"))?;
        let found = self.contents(open).await?;
        let wrong =
            self.expected.differences(&found).into_iter().map(|what| format!("after the fault: {what}"));
        self.violations.extend(wrong);
        Ok(())
    }

    async fn store_again(&mut self, open: &Open) -> Result<(), String> {
        let (began, id) = (Instant::now(), SpoolId::new());
        loop {
            let (version, begun) = self.begin_store(id, 500, true);
            let deadline = Instant::now() + Duration::from_secs(5);
            let answer = store_timed(open, id, version, 500, true, deadline).await?;
            let is_done = answer.is_ok();
            let why = answer.as_ref().err().map(|error| format!("{error:#}"));
            self.note_store(&begun, true, answer)?;
            if is_done {
                return Ok(());
            }
            if began.elapsed() > self.subject.patience {
                return Err(format!("stores still fail after the fault: {}", why.unwrap_or_default()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Sets whether the gate may open again soon.
fn allow_unlatch(open: &Open, allow: bool) -> Result<(), String> {
    let config = Config::clone(&open.tiered.as_store().config());
    let unlatch_after = if allow { Duration::from_millis(10) } else { HOUR };
    let health = config.health.clone().hard_unlatch_after(unlatch_after);
    let changed = open.tiered.as_store().reconfigure(config.health(health));
    changed.map_err(|error| format!("the settings could not be changed: {error}"))
}
