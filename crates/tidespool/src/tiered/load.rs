//! `load`: pending, cache, journal, sled, in that order.

use std::sync::Arc;

use anyhow::Result;
use tidespool_core::{Corrupt, NotFound, SpoolId};

use super::lookup::{InMemory, LookupError, at_once, fill_cache, in_memory, on_disk};
use super::shared::Shared;

pub(super) async fn load_shared(shared: &Arc<Shared>, id: SpoolId) -> Result<Arc<Box<[u8]>>> {
    shared.check_open()?;
    let newest = match in_memory(shared, &id) {
        InMemory::Found(data, tier) => {
            shared.stats.hit(tier);
            return Ok(data);
        }
        InMemory::Removed => {
            shared.stats.miss();
            return Err(NotFound { id }.into());
        }
        InMemory::Elsewhere(newest) => newest,
    };
    let read = match newest.and_then(|newest| at_once(shared, &id, newest)) {
        Some(found) => Ok(Some(found)),
        None => {
            // Reading may block: it is done on a thread for that.
            let reader = shared.clone();
            shared.readers.run(move || on_disk(&reader, &id)).await?
        }
    };
    match read {
        Ok(Some(found)) => {
            shared.stats.hit(found.tier);
            let data = Arc::new(found.data.into_boxed_slice());
            fill_cache(shared, id, &data, found.stamp);
            Ok(data)
        }
        Ok(None) => {
            shared.stats.miss();
            Err(NotFound { id }.into())
        }
        Err(LookupError::Corrupt(reason)) => Err(Corrupt { id, reason }.into()),
        Err(LookupError::Io(error)) => Err(error.into()),
    }
}
