//! The child's side: callers that store, replace, load and remove, while bursts of calls fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tidespool_core::{Spool as _, SpoolId};
use tidespool_testkit::wait;
use tokio::task::JoinSet;

use crate::bursts::Which;
use crate::control::Control;
use crate::event::{Event, Version};
use crate::tasks::{CALLERS, Client, len, new_id};

/// Bursts in one process.
const BURSTS: u64 = 3;

/// Operations of each caller between two checks of the burst.
const STEPS: u64 = 40;

/// A burst that did not meet enough calls ends after this many checks.
const CHECKS: u64 = 12;

/// Longest time that calls fail.
const LONGEST: Duration = Duration::from_secs(3);

/// Versions of the traffic are higher than those of the initial spool.
const FIRST_VERSION: u64 = 1 << 32;

/// The callers of a spool, and the control file of this process.
pub(crate) struct Traffic {
    client: Client,
    control: Arc<Control>,
    callers: Vec<Caller>,
    rng: SmallRng,
}

impl Traffic {
    /// Creates callers that share the messages `named`.
    pub(crate) fn new(
        client: &Client,
        control: Control,
        named: BTreeMap<SpoolId, Option<Version>>,
        seed: u64,
    ) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let caller = |_| Caller {
            client: client.clone(),
            rng: rng.fork(),
            next: FIRST_VERSION,
            held: Vec::new(),
            gone: Vec::new(),
        };
        let mut callers: Vec<Caller> = (0..CALLERS).map(caller).collect();
        let count = callers.len();
        for (n, (id, version)) in named.into_iter().enumerate() {
            let caller = &mut callers[n % count];
            let list = if version.is_some() { &mut caller.held } else { &mut caller.gone };
            list.push(id);
        }
        Self { client: client.clone(), control: Arc::new(control), callers, rng }
    }

    /// Works while bursts of calls fail. After each burst, the disk works until all messages are
    /// loaded.
    pub(crate) async fn run(mut self, which: Which) {
        for _ in 0..BURSTS {
            // Empties the cache, so that loads read the disk. The flush may fail.
            let _ = wait::bounded("a flush", self.client.spool.advise_low_memory()).await;
            let (fault, name) = which.fault(&mut self.rng);
            self.client.report.send(&Event::Burst(format!("{name}: {fault:?}")));
            self.control.arm(fault);
            // Loads may wait for a rebuild, which cannot succeed while the disk fails.
            let control = self.control.clone();
            let end = tokio::spawn(async move {
                tokio::time::sleep(LONGEST).await;
                control.disarm();
            });
            for _ in 0..CHECKS {
                self.work().await;
                if self.control.failed() == fault.count {
                    break;
                }
            }
            end.abort();
            self.control.disarm();
            if self.control.failed() > 0 {
                self.client
                    .report
                    .send(&Event::Burst(format!("failed: {} of {name}", self.control.failed())));
            }
            let ids = |caller: &Caller| [&caller.held[..], &caller.gone[..]].concat();
            let all: Vec<SpoolId> = self.callers.iter().flat_map(ids).collect();
            self.client.load_all(&all).await;
            self.client.report.send(&Event::Settled);
            self.client.list().await;
        }
    }

    /// Runs the steps of each caller, with upkeep beside them.
    async fn work(&mut self) {
        let mut tasks = JoinSet::new();
        for mut caller in std::mem::take(&mut self.callers) {
            tasks.spawn(async move {
                for _ in 0..STEPS {
                    caller.step().await;
                }
                caller
            });
        }
        // Upkeep may fail while the disk fails.
        let _ = match self.rng.random_range(0..3) {
            0 => wait::bounded("compaction", self.client.spool.compact()).await,
            1 => wait::bounded("maintenance", self.client.spool.cleanup()).await,
            _ => Ok(()),
        };
        while let Some(caller) = tasks.join_next().await {
            self.callers.push(caller.unwrap());
        }
    }
}

/// One caller. No other caller uses its ids, so the calls for one id are ordered.
struct Caller {
    client: Client,
    rng: SmallRng,
    next: u64,
    held: Vec<SpoolId>,
    /// Ids that were removed or never stored.
    gone: Vec<SpoolId>,
}

impl Caller {
    async fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..55 => {
                let list = if self.rng.random_bool(0.8) { &self.held } else { &self.gone };
                if !list.is_empty() {
                    let id = list[self.rng.random_range(0..list.len())];
                    self.client.load(id).await;
                }
            }
            55..75 => self.store_new().await,
            75..88 => self.replace().await,
            _ => self.remove().await,
        }
    }

    async fn store_new(&mut self) {
        let id = new_id();
        let list = if self.store(id).await { &mut self.held } else { &mut self.gone };
        list.push(id);
    }

    async fn replace(&mut self) {
        if !self.held.is_empty() {
            let id = self.held[self.rng.random_range(0..self.held.len())];
            self.store(id).await;
        }
    }

    async fn store(&mut self, id: SpoolId) -> bool {
        self.next += 1;
        let version = (self.next, len(&mut self.rng));
        let forced = self.rng.random_bool(0.5);
        self.client.store(id, version, forced).await
    }

    async fn remove(&mut self) {
        if !self.held.is_empty() {
            let id = self.held.swap_remove(self.rng.random_range(0..self.held.len()));
            self.client.remove(id).await;
            self.gone.push(id);
        }
    }
}
