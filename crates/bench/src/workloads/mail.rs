//! `mail`: the two spools of a mail server, one of bodies and one of envelopes.
//!
//! A message is stored in both and loaded from both. Its envelope is stored again after the first
//! delivery attempt. Then both are removed.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use tokio::task::coop::consume_budget;

use crate::callers::{self, Caller, Clock};
use crate::engine::{Engine, Needs};
use crate::plan::Size;
use crate::run::{Measured, Run};

const ENVELOPE: usize = 1 << 10;

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    let needs = Needs::of(&run.plan);
    let needs_of_envelopes = Needs { largest: ENVELOPE, ..needs.clone() };
    let [bodies, envelopes] = ["data", "meta"].map(|name| run.engine_dir.join(name));
    let (done, _) = run
        .with_in(&bodies, &needs, async |bodies| {
            run.with_in(&envelopes, &needs_of_envelopes, async |envelopes| {
                let clock = Clock::timed(run.plan.duration, &run.stop);
                let work = |caller| deliver(caller, Arc::clone(bodies));
                callers::run(envelopes, &run.plan, &run.pool, clock, work).await
            })
            .await
        })
        .await?;
    let mut measured = Measured::from(done);
    measured.extra_bytes_per_message()?;
    Ok(measured)
}

/// The engine of the caller holds the envelopes.
async fn deliver(mut caller: Caller, bodies: Arc<Engine>) -> Result<(Caller, ())> {
    let force_sync = caller.plan.force_sync;
    while caller.goes_on() {
        let (id, body) = caller.messages.next();
        let envelopes = [(); 2].map(|()| caller.messages.payload(Size::Bytes(ENVELOPE)));
        let len = body.len();
        let [envelope, tried_once] = envelopes;
        let begun = Instant::now();
        callers::store(&bodies, id, body, force_sync).await?;
        caller.store(id, envelope, force_sync).await?;
        caller.load(id, ENVELOPE).await?;
        callers::load(&bodies, id, len).await?;
        caller.store(id, tried_once, force_sync).await?;
        callers::remove(&bodies, id).await?;
        caller.remove(id).await?;
        caller.record(begun, len + ENVELOPE)?;
        consume_budget().await;
    }
    Ok((caller, ()))
}
