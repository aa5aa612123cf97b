//! `load`: looks in pending, cache, journal and index, in that order.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use tidespool_core::{Corrupt, NotFound, SpoolId};

use super::lookup::{InMemory, LookupError, OnDisk, at_once, in_memory, keep_read, on_disk};
use crate::message_id::MessageId;
use crate::tiered::state::{Shared, SpoolPart};

pub(in crate::tiered) async fn load_shared(
    shared: &Arc<Shared>,
    spool: &SpoolPart,
    id: SpoolId,
) -> Result<Arc<Box<[u8]>>> {
    spool.check_open()?;
    let message = spool.message(id);
    let newest = match in_memory(shared, &message) {
        InMemory::Found(data, tier) => {
            spool.stats.hit(tier);
            return Ok(data);
        }
        InMemory::Removed => {
            spool.stats.miss();
            return Err(NotFound { id }.into());
        }
        InMemory::Elsewhere(newest) => newest,
    };
    let read = match newest.and_then(|newest| at_once(shared, &message, newest)) {
        Some(found) => Ok(Some(found)),
        // Boxed to keep the future of a load from memory small.
        None => Box::pin(read(shared, message)).await?,
    };
    match read {
        Ok(Some(found)) => {
            spool.stats.hit(found.tier);
            let data = Arc::new(found.data.into_boxed_slice());
            keep_read(shared, message, &data, found.stamp);
            Ok(data)
        }
        Ok(None) => {
            spool.stats.miss();
            Err(NotFound { id }.into())
        }
        Err(LookupError::Corrupt(reason)) => Err(Corrupt { id, reason }.into()),
        Err(LookupError::Io(error)) => Err(shared.explain(error.into())),
        Err(LookupError::Rebuilding(error)) => Err(shared.explain(error.into())),
    }
}

/// Reads a message on a reading thread. If the index is being rebuilt and does not have the message
/// yet, waits up to the setting `read_wait`.
async fn read(shared: &Arc<Shared>, id: MessageId) -> Result<Result<Option<OnDisk>, LookupError>> {
    let until = Instant::now() + shared.config.load().read_wait;
    loop {
        let reader = shared.clone();
        let read = shared.readers.run(move || on_disk(&reader, &id)).await;
        let read = read.map_err(|error| shared.explain(error.into()))?;
        if !matches!(read, Err(LookupError::Rebuilding(_))) || Instant::now() >= until {
            return Ok(read);
        }
        // At the deadline, the loop reads once more and returns that result.
        let _ = shared.timer.bound(until, pin!(shared.disk_index.whole())).await;
    }
}
