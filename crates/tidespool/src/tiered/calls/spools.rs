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
    let deadline = Instant::now() + part.hot_settings.store_deadline();
    let removal = Removal { shared: shared.clone(), reopens: part.close(), part };
    // A call that saw the spool open holds its shard's lock until its change is inserted.
    shared.table.shards().for_each(drop);
    // A power cut must not bring messages back whose spool has no name.
    match shared.timer.bound(deadline, shared.commit_queue.flush(false)).await {
        Some(Ok(())) => {}
        Some(Err(_)) => return Err(Closed.into()),
        None => return Err(SpoolBackpressureTimeout.into()),
    }
    // From here on the removal ends as it began, also if the caller is gone.
    shared.readers.run(move || removal.finish()).await?
}

/// A spool that is closed while it is being removed. Dropping it opens the spool again, unless the
/// spool was removed.
struct Removal {
    shared: Arc<Shared>,
    part: Arc<SpoolPart>,
    /// The spool was open before.
    reopens: bool,
}

impl Removal {
    /// Removes the name, if the spool has no message. Blocks on the disk.
    fn finish(mut self) -> Result<()> {
        let shared = self.shared.clone();
        let name = self.part.name.to_string();
        if has_message(&shared, self.part.number)? {
            return Err(SpoolNameError::NotEmpty { name }.into());
        }
        let _one = shared.reconfiguring.lock();
        shared.check_open()?;
        let mut names = shared.home.names().ok_or(Closed)?;
        names.remove(&name);
        let removed = shared.home.set_names(names);
        // After an error the spool may have no name on disk, so it must take no message. The next
        // call that opens it writes the name again, and makes new handles.
        self.reopens = false;
        shared.spools.remove(&name);
        shared.set_cache_weights();
        removed?;
        tracing::info!(spool = name, "a spool was removed");
        Ok(())
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        // A shutdown of the store closes all spools after this check, if it begins now.
        if self.reopens && self.shared.check_open().is_ok() {
            self.part.reopen();
            if self.shared.check_open().is_err() {
                self.part.close();
            }
        }
    }
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
