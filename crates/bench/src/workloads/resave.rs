//! `resave`: each caller repeatedly saves the metadata of one message, as a server does after each
//! delivery attempt.

use std::time::Instant;

use anyhow::Result;
use tidespool_core::SpoolId;
use tokio::task::coop::consume_budget;

use crate::callers::{self, Caller, Clock};
use crate::engine::Needs;
use crate::run::{Measured, Run};

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    let (done, _) = run
        .with(&Needs::of(&run.plan), async |engine| {
            let clock = Clock::timed(run.plan.duration, &run.stop);
            callers::run(engine, &run.plan, &run.pool, clock, resave).await
        })
        .await?;
    let mut measured = Measured::from(done);
    measured.extra_bytes_per_message()?;
    Ok(measured)
}

async fn resave(mut caller: Caller) -> Result<(Caller, ())> {
    let id = SpoolId::new();
    while caller.goes_on() {
        let (_, data) = caller.messages.next();
        let len = data.len();
        let begun = Instant::now();
        caller.store(id, data, caller.plan.force_sync).await?;
        caller.record(begun, len)?;
        consume_budget().await;
    }
    Ok((caller, ()))
}
