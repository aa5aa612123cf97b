//! `mixed`: the calls of a mail server.
//!
//! A message is two entries, data and metadata. Both are stored before it is accepted, 30 % of them
//! with a sync. Its data is loaded for the first delivery attempt. For 90 % the attempt succeeds,
//! and they are removed 10 ms later. The others save their metadata again. 9 % are loaded for a
//! second attempt after 1 s and then removed; 1 % stay longer.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::RngExt as _;
use tidespool_core::SpoolId;
use tokio::task::yield_now;

use crate::callers::{self, Caller, Clock};
use crate::engine::Needs;
use crate::latency::Latency;
use crate::live::{Life, Live, LiveSet};
use crate::plan::{Lifetime, Size};
use crate::run::{Measured, Run};

/// Synced stores of 100.
const SYNCED: u32 = 30;

/// The kinds of calls, by their names in the report.
const KINDS: [&str; 5] = ["store_unsynced", "store_synced", "load", "resave", "remove"];

#[derive(Debug, Clone, Copy)]
enum Kind {
    StoreUnsynced,
    StoreSynced,
    Load,
    Resave,
    Remove,
}

pub(super) async fn run(run: &Run<'_>) -> Result<Measured> {
    let (done, callers) = run
        .with(&Needs::of(&run.plan), async |engine| {
            let clock = Clock::timed(run.plan.duration, &run.stop);
            callers::run(engine, &run.plan, &run.pool, clock, serve).await
        })
        .await?;
    let mut measured = Measured::from(done);
    for (nth, kind) in KINDS.iter().enumerate() {
        let mut latency = Latency::new()?;
        for kinds in &callers {
            kinds.get(nth).map_or(Ok(()), |some| latency.add(some))?;
        }
        measured.extra_count(format!("{kind}_ops"), latency.count());
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
            measured.extra(format!("{kind}_{name}_us"), latency.quantile_us(quantile));
        }
    }
    Ok(measured)
}

/// The state of one caller: its messages, and its latencies by kind of call.
struct Server {
    caller: Caller,
    live: LiveSet,
    kinds: Vec<Latency>,
}

async fn serve(caller: Caller) -> Result<(Caller, Vec<Latency>)> {
    let live = LiveSet::new(&caller.plan);
    let kinds = KINDS.iter().map(|_| Latency::new()).collect::<Result<_>>()?;
    let mut server = Server { caller, live, kinds };
    while server.caller.goes_on() {
        while let Some(ended) = server.live.due(Instant::now()) {
            server.end(&ended).await?;
        }
        if let Some(until) = server.live.full_until() {
            server.caller.sleep_until(until).await;
            continue;
        }
        server.accept().await?;
        // Not `consume_budget`: it yields only every hundred turns, and no message of another
        // caller could end meanwhile.
        yield_now().await;
    }
    let Server { caller, kinds, .. } = server;
    Ok((caller, kinds))
}

impl Server {
    async fn accept(&mut self) -> Result<()> {
        let caller = &mut self.caller;
        let (id, data) = caller.messages.next();
        let (metadata_id, metadata) = (SpoolId::new(), caller.messages.payload(Size::Metadata));
        let (len, metadata_len) = (data.len(), metadata.len());
        let sync = caller.plan.force_sync || caller.messages.random.random_range(0..100) < SYNCED;
        let life = Life::draw(Lifetime::HeavyTail, &mut caller.messages.random);
        let store = if sync { Kind::StoreSynced } else { Kind::StoreUnsynced };

        let begun = Instant::now();
        self.caller.store(id, data, sync).await?;
        self.record(store, begun, len)?;
        let begun = Instant::now();
        self.caller.store(metadata_id, metadata, sync).await?;
        self.record(store, begun, metadata_len)?;
        self.load(id, len).await?;
        if life != Life::Short {
            let metadata = self.caller.messages.payload(Size::Metadata);
            let metadata_len = metadata.len();
            let begun = Instant::now();
            self.caller.store(metadata_id, metadata, sync).await?;
            self.record(Kind::Resave, begun, metadata_len)?;
        }
        self.live.add(id, Some(metadata_id), len, Duration::ZERO, life, self.caller.now);
        Ok(())
    }

    async fn end(&mut self, ended: &Live) -> Result<()> {
        if ended.life != Life::Short {
            self.load(ended.id, ended.len).await?;
        }
        for id in [Some(ended.id), ended.metadata].into_iter().flatten() {
            let begun = Instant::now();
            self.caller.remove(id).await?;
            self.record(Kind::Remove, begun, 0)?;
        }
        Ok(())
    }

    async fn load(&mut self, id: SpoolId, len: usize) -> Result<()> {
        let begun = Instant::now();
        self.caller.load(id, len).await?;
        self.record(Kind::Load, begun, len)
    }

    fn record(&mut self, kind: Kind, begun: Instant, len: usize) -> Result<()> {
        self.caller.record(begun, len)?;
        if self.caller.is_warm(begun)
            && let Some(latency) = self.kinds.get_mut(kind as usize)
        {
            latency.record(self.caller.now - begun);
        }
        Ok(())
    }
}
