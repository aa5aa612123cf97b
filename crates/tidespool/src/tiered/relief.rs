//! What the spool does when memory is short, and `advise_low_memory`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::future;
use tokio::sync::oneshot::error::TryRecvError;

use super::shared::Shared;
use crate::pressure::{Level, Relief};

/// The pressure monitor's hand on the spool.
pub(super) struct SpoolRelief(pub(super) Arc<Shared>);

impl Relief for SpoolRelief {
    fn relieve(&self, level: Level, _excess_bytes: u64) -> isize {
        if level != Level::Normal {
            let (entries, bytes) = self.0.cache.shrink();
            self.0.stats.cache_evicted(entries, bytes);
            let more = advise_blocking(&self.0);
            return more.saturating_add(isize::try_from(bytes).unwrap_or(isize::MAX));
        }
        0
    }

    fn level_changed(&self, level: Level) {
        *self.0.pressure_level.lock() = level;
        self.0.stats.pressure_changed();
    }

    fn memory_returned(&self) {
        self.0.cache.grow();
    }
}

/// Makes dirty data durable, then drops the clean copies. Returns by how much the accounted memory fell. A disk that does not answer within
/// `store_deadline` keeps its dirty bytes; the clean copies go all the same.
pub(super) async fn advise(shared: &Shared) -> isize {
    let before = shared.accounted_bytes();
    let flushed = shared.mailbox.flush(false);
    let gone = async {
        shared.closing.closed().await;
        Ok(())
    };
    // However it ends: what is left dirty is counted as such.
    let _ = tokio::time::timeout(shared.config.store_deadline, future::or(flushed, gone)).await;
    drop_clean_copies(shared, before)
}

/// The same from a thread that is not the runtime's.
fn advise_blocking(shared: &Shared) -> isize {
    const LOOK: Duration = Duration::from_millis(20);
    let before = shared.accounted_bytes();
    let mut flushed = shared.mailbox.flush(false);
    let until = Instant::now() + shared.config.store_deadline;
    while flushed.try_recv() == Err(TryRecvError::Empty) && Instant::now() < until {
        if shared.closing.wait(LOOK) {
            break;
        }
    }
    drop_clean_copies(shared, before)
}

fn drop_clean_copies(shared: &Shared, before: u64) -> isize {
    let (entries, bytes) = shared.cache.clear();
    shared.stats.cache_evicted(entries, bytes);
    let after = shared.accounted_bytes();
    let freed = i64::try_from(before).unwrap_or(i64::MAX).saturating_sub_unsigned(after);
    let freed = isize::try_from(freed).unwrap_or(isize::MAX);
    shared.stats.low_memory(freed);
    freed
}
