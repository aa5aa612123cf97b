//! Performs one operation many times and counts.
//!
//! Nothing here depends on the clock. Every timer of the spool is set so long that it does not
//! expire. The threads that run every second or more often are held (`storage`) or excluded
//! (`callgrind`).

use std::hint::black_box;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, Utc};
use futures_lite::future::poll_once;
use tidespool::{Config, HealthConfig, MinFree, PressureConfig, TieredSpool};
use tidespool_core::{Spool, SpoolId};
use tidespool_testkit::ids;

use super::counts::Counts;
use super::operations::{CALLERS, Kind, Operation};
use super::storage::CountingStorage;

const MIB: u64 = 1 << 20;

/// Messages besides the counted ones. They trigger everything that is created at its first use.
const WARM_UP: usize = 64;

type Payload = Arc<Box<[u8]>>;
type Call<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// Performs `operation` `operation.count` times on a new spool in `dir`. The spool stays open: the
/// caller ends the process.
pub(crate) async fn perform(operation: &Operation, dir: &Path) -> Result<Counts> {
    let ids = ids(WARM_UP + usize::try_from(operation.count)?);
    let (warm_up, ids) = ids.split_at(WARM_UP);
    let mut stage = Stage::open(operation, dir).await?;
    match operation.kind {
        Kind::Store => {
            stage.store_all(warm_up).await?;
            stage.count(async |stage| stage.store_all(ids).await).await
        }
        Kind::Resave => {
            stage.store_all(warm_up).await?;
            stage.count(async |stage| stage.store_all(&vec![warm_up[0]; ids.len()]).await).await
        }
        Kind::LoadDirty => {
            stage.store_all(warm_up).await?;
            stage.store_all(ids).await?;
            stage.count(async |stage| stage.load_all(ids).await).await
        }
        Kind::LoadClean | Kind::LoadShared => {
            stage.store_synced(warm_up).await?;
            stage.store_synced(ids).await?;
            stage.load_all(warm_up).await?;
            match operation.kind {
                Kind::LoadClean => stage.count(async |stage| stage.load_all(ids).await).await,
                _ => stage.count(async |stage| stage.load_shared_all(ids).await).await,
            }
        }
        Kind::RemoveYoung => {
            stage.store_all(warm_up).await?;
            stage.store_all(ids).await?;
            stage.remove_all(warm_up).await?;
            stage.count(async |stage| stage.remove_all(ids).await).await
        }
        Kind::RemoveJournaled => {
            stage.store_synced(warm_up).await?;
            stage.store_synced(ids).await?;
            stage.remove_all(warm_up).await?;
            stage.count(async |stage| stage.remove_all(ids).await).await
        }
        Kind::Lifecycle => {
            stage.live(warm_up).await?;
            stage.count(async |stage| stage.live(ids).await).await
        }
        Kind::Synced => {
            stage.store_synced(warm_up).await?;
            stage.count(async |stage| stage.store_one_by_one(ids).await).await
        }
        Kind::SyncedTogether => {
            stage.store_synced(&warm_up[..1]).await?;
            stage.store_together(warm_up, warm_up[0]).await?;
            stage.rounds(ids, warm_up[0]).await
        }
        Kind::Checkpoint | Kind::CheckpointAndRewrite => {
            stage.store_synced(ids).await?;
            stage.count(async |stage| stage.spool.cleanup().await).await
        }
        Kind::ColdJournal | Kind::ColdCheckpointed => {
            stage.store_synced(warm_up).await?;
            stage.store_synced(ids).await?;
            if operation.kind == Kind::ColdCheckpointed {
                stage.spool.compact().await?;
            }
            stage = stage.reopen(operation, dir).await?;
            // Makes the count that the opening has deferred, so that it is not counted with the
            // loads.
            stage.spool.cleanup().await?;
            stage.load_all(warm_up).await?;
            stage.count(async |stage| stage.load_shared_all(ids).await).await
        }
        Kind::Health => stage.count(async |stage| stage.ask_health(ids.len())).await,
    }
}

/// Ids within one second, the same in every run.
fn ids(count: usize) -> Vec<SpoolId> {
    let begin = DateTime::<Utc>::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    (0..count as u64).map(|n| ids::v1(begin + Duration::from_micros(n), n)).collect()
}

/// A spool on a counting storage.
struct Stage {
    storage: CountingStorage,
    spool: TieredSpool,
    data: Payload,
    /// The journal has not been written yet.
    untouched: bool,
}

impl Stage {
    async fn open(operation: &Operation, dir: &Path) -> Result<Self> {
        let storage = CountingStorage::default();
        let spool = TieredSpool::open_on(config(operation, dir), storage.storage()).await?;
        let data = Arc::new(vec![b'm'; operation.size].into_boxed_slice());
        Ok(Self { storage, spool, data, untouched: true })
    }

    async fn reopen(self, operation: &Operation, dir: &Path) -> Result<Self> {
        self.storage.release_probe();
        self.spool.shutdown().await?;
        Self::open(operation, dir).await
    }

    async fn count(&mut self, operations: impl AsyncFnOnce(&mut Self) -> Result<()>) -> Result<Counts> {
        border();
        let before = Counts::at_begin(&self.storage)?;
        operations(self).await?;
        let counts = Counts::at_end(&self.storage)? - before;
        border();
        Ok(counts)
    }

    async fn store_all(&self, ids: &[SpoolId]) -> Result<()> {
        for id in ids {
            self.spool.store(*id, self.data.clone(), false, None).await?;
        }
        Ok(())
    }

    fn ask_health(&self, times: usize) -> Result<()> {
        // As a server calls it.
        let spool: &dyn Spool = black_box(&self.spool);
        for _ in 0..times {
            ensure!(spool.unhealthy_reason().is_none(), "the spool is not healthy");
        }
        Ok(())
    }

    async fn load_all(&self, ids: &[SpoolId]) -> Result<()> {
        for id in ids {
            ensure!(self.spool.load(*id).await?.len() == self.data.len(), "{id} has other bytes than stored");
        }
        Ok(())
    }

    async fn load_shared_all(&self, ids: &[SpoolId]) -> Result<()> {
        for id in ids {
            ensure!(
                self.spool.load_shared(*id).await?.len() == self.data.len(),
                "{id} has other bytes than stored"
            );
        }
        Ok(())
    }

    async fn remove_all(&self, ids: &[SpoolId]) -> Result<()> {
        for id in ids {
            self.spool.remove(*id).await?;
        }
        Ok(())
    }

    async fn live(&self, ids: &[SpoolId]) -> Result<()> {
        for id in ids {
            self.spool.store(*id, self.data.clone(), false, None).await?;
            self.load_all(&[*id]).await?;
            self.spool.remove(*id).await?;
        }
        Ok(())
    }

    async fn store_one_by_one(&self, ids: &[SpoolId]) -> Result<()> {
        for id in ids {
            self.store(*id).await?;
        }
        Ok(())
    }

    fn store(&self, id: SpoolId) -> Call<'_> {
        self.spool.store(id, self.data.clone(), true, None)
    }

    /// Stores the messages as fast as possible.
    async fn store_synced(&mut self, ids: &[SpoolId]) -> Result<()> {
        for ids in ids.chunks(WARM_UP) {
            let dir_syncs = self.storage.dir_syncs();
            if self.untouched {
                // The first store takes a segment, and another is prepared in its place. With
                // `config`, no other segment is used up.
                self.untouched = false;
                self.store(ids[0]).await?;
                self.storage.wait_for_dir_sync(dir_syncs)?;
            }
            finish(self.begin(ids).await?).await?;
        }
        Ok(())
    }

    /// Queues each store at the committer. Returns the calls that are not complete.
    async fn begin(&self, ids: &[SpoolId]) -> Result<Vec<Call<'_>>> {
        let mut waiting = Vec::with_capacity(ids.len());
        for id in ids {
            let mut call = self.store(*id);
            match poll_once(&mut call).await {
                Some(answer) => answer?,
                None => waiting.push(call),
            }
        }
        Ok(waiting)
    }

    async fn rounds(&self, ids: &[SpoolId], other: SpoolId) -> Result<Counts> {
        let mut counts = Counts::default();
        border();
        for ids in ids.chunks(usize::try_from(CALLERS)?) {
            counts += self.store_together(ids, other).await?;
        }
        border();
        Ok(counts)
    }

    /// Stores the messages in one batch: they queue while `other` is synced. Counts from then on.
    async fn store_together(&self, ids: &[SpoolId], other: SpoolId) -> Result<Counts> {
        self.storage.hold_syncs();
        let first = self.begin(&[other]).await?;
        self.storage.wait_until_held()?;
        let before = Counts::at_begin(&self.storage)?;
        let calls = self.begin(ids).await?;
        self.storage.release();
        finish(first).await?;
        finish(calls).await?;
        Ok(Counts::at_end(&self.storage)? - before)
    }
}

/// Marks the start and the end of the counted section. valgrind separates its counts here.
#[inline(never)]
fn border() {
    black_box(());
}

async fn finish(calls: Vec<Call<'_>>) -> Result<()> {
    for call in calls {
        call.await.context("storing")?;
    }
    Ok(())
}

/// Settings under which no timer expires, no limit is near, and one segment holds everything.
fn config(operation: &Operation, dir: &Path) -> Config {
    let never = Duration::from_secs(3_600);
    let (segment_size, checkpoint_after) = match operation.kind {
        Kind::Checkpoint => (full_segment(operation), Duration::ZERO),
        Kind::CheckpointAndRewrite => (32 * MIB, Duration::ZERO),
        _ => (32 * MIB, never),
    };
    Config::new(dir)
        .memory_budget(2_048 * MIB)
        .dirty_limit(512 * MIB)
        .dirty_expire(never)
        .store_deadline(never)
        .segment_size(segment_size)
        .journal_capacity(256 * MIB)
        .checkpoint_after(checkpoint_after)
        .read_threads(1)
        .ballast(0)
        .pressure(PressureConfig::default().enabled(false))
        .health(
            HealthConfig::default()
                .min_free(MinFree::Bytes(0))
                .backlog_latch_after(never)
                .sample_interval(Duration::from_secs(10)),
        )
}

/// The size of a segment that the messages fill just enough to prevent a rewrite, which is two
/// thirds. The rest is for headers and for unused parts of pages, whose number varies.
fn full_segment(operation: &Operation) -> u64 {
    const PAGE: u64 = 4_096;
    (operation.count * operation.size as u64 * 149 / 100) / PAGE * PAGE
}
