//! Opens, makes and removes the spools of a store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tidespool_core::{Closed, SpoolBackpressureTimeout};

use super::lookup::{LookupError, index_failed};
use crate::directory::{MAX_SPOOLS, NoSpool, is_name};
use crate::index::{KeyRange, Record};
use crate::message_id::{MessageId, SpoolNumber};
use crate::store_error::SpoolNameError;
use crate::tiered::background::relief::wait;
use crate::tiered::state::{Shared, SpoolPart};

/// Returns the spool of this name, and makes it if there is none. Making it blocks on the disk.
pub(in crate::tiered) fn open(shared: &Shared, name: &str) -> Result<Arc<SpoolPart>> {
    if !is_name(name) {
        return Err(SpoolNameError::NotAllowed { name: name.to_owned() }.into());
    }
    let _one = shared.reconfiguring.lock();
    shared.check_open()?;
    // A removal of a spool may have failed after it had reached the disk.
    shared.home.settle_names()?;
    let part = match shared.spools.get(name) {
        Some(part) => part,
        None => add(shared, name)?,
    };
    part.begin_use()?;
    Ok(part)
}

/// The longest wait for a turn of the balancer, which lasts milliseconds.
const BALANCER_PATIENCE: Duration = Duration::from_secs(10);

/// Makes the spools that the settings name. Blocks on the disk.
pub(in crate::tiered) fn make_configured(shared: &Shared) -> Result<()> {
    let _one = shared.reconfiguring.lock();
    for name in shared.config.load().spools.keys() {
        if shared.spools.get(name).is_none() {
            add(shared, name)?;
        }
    }
    Ok(())
}

fn add(shared: &Shared, name: &str) -> Result<Arc<SpoolPart>> {
    let mut names = shared.home.names().ok_or(Closed)?;
    if let Some(number) = names.get(name) {
        // Its removal failed.
        return Ok(add_part(shared, name, number));
    }
    let number = names.add(name).map_err(|refused| {
        let name = name.to_owned();
        match refused {
            NoSpool::TooMany => SpoolNameError::TooMany { name, limit: MAX_SPOOLS },
            NoSpool::NumbersUsedUp => SpoolNameError::UsedUp { name, limit: SpoolNumber::LAST.get() },
        }
    })?;
    shared.home.set_names(names)?;
    tracing::info!(spool = name, "a spool was made");
    Ok(add_part(shared, name, number))
}

fn add_part(shared: &Shared, name: &str, number: SpoolNumber) -> Arc<SpoolPart> {
    let part = shared.spools.add(name, number, &shared.config.load());
    shared.set_cache_weights();
    if shared.cache.has_new_weights() {
        // Only the balancer thread applies weights. The first message must not be cached if the
        // weight is zero.
        wait(shared, shared.balancer.settle(), Instant::now() + BALANCER_PATIENCE);
    }
    part
}

/// Removes a spool without messages.
pub(in crate::tiered) async fn remove(shared: &Arc<Shared>, name: &str) -> Result<()> {
    shared.check_open()?;
    let unknown = || SpoolNameError::Unknown { name: name.to_owned() };
    let part = shared.spools.get(name).ok_or_else(unknown)?;
    let was_open = part.close();
    // A call that saw the spool open holds its shard's lock until its change is inserted.
    shared.table.shards().for_each(drop);
    let removed = remove_closed(shared, &part).await;
    if removed.is_err() && was_open {
        let _one = shared.reconfiguring.lock();
        if shared.home.is_in_doubt() {
            // The spool may have no name on disk, so it must take no message. The next call that
            // opens it writes the name again, and makes new handles.
            shared.spools.remove(name);
        } else if shared.check_open().is_ok() {
            part.reopen();
        }
    }
    removed
}

async fn remove_closed(shared: &Arc<Shared>, part: &Arc<SpoolPart>) -> Result<()> {
    let deadline = Instant::now() + part.hot_settings.store_deadline();
    // A power cut must not bring messages back whose spool has no name.
    match shared.timer.bound(deadline, shared.commit_queue.flush(false)).await {
        Some(Ok(())) => {}
        Some(Err(_)) => return Err(Closed.into()),
        None => return Err(SpoolBackpressureTimeout.into()),
    }
    let (looking, number) = (shared.clone(), part.number);
    let has_message = shared.readers.run(move || has_message(&looking, number)).await??;
    let name = &*part.name;
    if has_message {
        return Err(SpoolNameError::NotEmpty { name: name.to_owned() }.into());
    }
    let (shared, name) = (shared.clone(), name.to_owned());
    let unname = move || -> Result<()> {
        let _one = shared.reconfiguring.lock();
        shared.check_open()?;
        let mut names = shared.home.names().ok_or(Closed)?;
        names.remove(&name);
        shared.home.set_names(names)?;
        shared.spools.remove(&name);
        shared.set_cache_weights();
        tracing::info!(spool = name, "a spool was removed");
        Ok(())
    };
    unname()
}

/// True if the spool has a message in any tier. Blocks.
fn has_message(shared: &Shared, spool: SpoolNumber) -> Result<bool, LookupError> {
    let is_of_spool = |message: &MessageId| message.spool() == spool;
    for shard in shared.table.shards() {
        let is_indexed = shard.index.iter().any(|(id, newest)| is_of_spool(&id) && newest.place.is_some());
        if is_indexed || shard.pending.ids().any(|(id, is_put)| is_put && is_of_spool(&id)) {
            return Ok(true);
        }
    }
    let mut is_found = false;
    let mut visit = |key: crate::index::Key, _: Record| {
        let message = key.message();
        let shard = shared.table.lock(&message);
        // The removal of a message that is in memory has not reached the index.
        is_found = shard.index.get(&message).is_none() && shard.pending.get(&message).is_none();
        !is_found
    };
    match shared.disk_index.scan(&[KeyRange::of_spool(spool)], &mut visit) {
        Ok(()) => Ok(is_found),
        Err(error) => {
            index_failed(shared, &error);
            Err(LookupError::Rebuilding(std::io::Error::other(error.to_string())))
        }
    }
}
