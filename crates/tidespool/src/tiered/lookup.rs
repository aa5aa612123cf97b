//! Finds the newest version of a message, from the top tier down.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use tidespool_core::SpoolId;

use super::shared::Shared;
use crate::durable::{DurableError, Key, Record};
use crate::journal::{Newest, Place, ReadError};
use crate::memory::Visible;
use crate::stats::{Site, Tier};

/// What memory knows of a message.
pub(super) enum InMemory {
    Found(Arc<Box<[u8]>>, Tier),
    /// It was removed.
    Removed,
    /// Its bytes are not here. The newest record of it, if the index has one; if not, only sled can tell.
    Elsewhere(Option<Newest>),
}

/// A message read from disk.
pub(super) struct OnDisk {
    pub(super) data: Vec<u8>,
    pub(super) tier: Tier,
    pub(super) stamp: Stamp,
}

/// Under which circumstances something was read: if they still hold, it is still the newest version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// The record that the index named.
    seq: Option<u64>,
    /// How many ids had left the shard's index, where it named none.
    exits: u64,
}

impl Stamp {
    /// What is known to be the record with this number.
    pub(super) fn of_record(seq: u64) -> Self {
        Self { seq: Some(seq), exits: 0 }
    }
}

/// Why a message could not be read.
#[derive(Debug, Error)]
pub(super) enum LookupError {
    /// Its bytes are damaged, for good.
    #[error("{0}")]
    Corrupt(String),
    /// The disk did not answer, this time.
    #[error("{0}")]
    Io(io::Error),
}

/// Looks in memory.
pub(super) fn in_memory(shared: &Shared, id: &SpoolId) -> InMemory {
    let newest = {
        let shard = shared.table.lock(id);
        match shard.pending.get(id) {
            Some(Visible::Put(data)) => return InMemory::Found(data, Tier::Pending),
            Some(Visible::Removed) => return InMemory::Removed,
            None => shard.index.get(id),
        }
    };
    if newest.is_some_and(|newest| newest.place.is_none()) {
        return InMemory::Removed;
    }
    shared.cache.get(id).map_or(InMemory::Elsewhere(newest), |data| InMemory::Found(data, Tier::Cache))
}

/// Messages up to so many bytes are read on the caller's thread, if the system has them in memory: copying more would keep other tasks waiting.
const AT_ONCE: u32 = 256 << 10;

/// Reads what the index names, if the system has it in memory. Never waits for a disk. `None` says nothing: ask [`on_disk`].
pub(super) fn at_once(shared: &Shared, id: &SpoolId, newest: Newest) -> Option<OnDisk> {
    let place = newest.place.filter(|place| place.len <= AT_ONCE)?;
    let segment = shared.segments.get(place.generation)?;
    let data = segment.read_put_in_memory(shared.segments.salt(), id, place)?;
    Some(OnDisk { data, tier: Tier::Journal, stamp: Stamp::of_record(newest.seq) })
}

/// Looks everywhere. Blocks on I/O. `None`: there is no such message.
pub(super) fn on_disk(shared: &Shared, id: &SpoolId) -> Result<Option<OnDisk>, LookupError> {
    let mut missed = None;
    loop {
        let (newest, exits) = {
            let shard = shared.table.lock(id);
            match shard.pending.get(id) {
                Some(Visible::Put(data)) => {
                    let stamp = Stamp { seq: None, exits: u64::MAX };
                    return Ok(Some(OnDisk { data: data.to_vec(), tier: Tier::Pending, stamp }));
                }
                Some(Visible::Removed) => return Ok(None),
                None => (shard.index.get(id), shard.exits),
            }
        };
        let stamp = Stamp { seq: newest.map(|newest| newest.seq), exits };
        let (place, tier) = match newest {
            Some(newest) => match newest.place {
                Some(place) => (place, Tier::Journal),
                None => return Ok(None),
            },
            None => match filed(shared, id)? {
                Filed::Absent => return Ok(None),
                Filed::Whole(data) => return Ok(Some(OnDisk { data, tier: Tier::Sled, stamp })),
                Filed::At(place) => (place, Tier::Sled),
            },
        };
        match read(shared, id, place)? {
            Some(data) => return Ok(Some(OnDisk { data, tier, stamp })),
            // Moved while we looked: it is elsewhere now. Named twice and not there: it is lost.
            None if missed == Some(place) => {
                let what = format!("its segment (generation {}) is missing", place.generation);
                shared.found_damage(id, &what);
                return Err(LookupError::Corrupt(what));
            }
            None => missed = Some(place),
        }
    }
}

enum Filed {
    Absent,
    Whole(Vec<u8>),
    At(Place),
}

fn filed(shared: &Shared, id: &SpoolId) -> Result<Filed, LookupError> {
    match shared.durable.get(&Key::of(id)) {
        Ok(None) => Ok(Filed::Absent),
        Ok(Some(Record::Whole { data, .. })) => Ok(Filed::Whole(data.into_vec())),
        Ok(Some(Record::Locator { generation, offset, len, .. })) => {
            Ok(Filed::At(Place { generation, offset, len }))
        }
        Ok(Some(Record::Damaged { reason, .. })) => Err(LookupError::Corrupt(reason)),
        Err(error @ DurableError::Damaged { .. }) => {
            shared.found_damage(id, &error.to_string());
            Err(LookupError::Corrupt(error.to_string()))
        }
        Err(error) => {
            sled_failed(shared, &error);
            Err(LookupError::Io(io::Error::other(error.to_string())))
        }
    }
}

/// Counts what took sled out of use, not each time that somebody then finds it so; and has it opened again.
pub(super) fn sled_failed(shared: &Shared, error: &DurableError) {
    if error.poisons() {
        shared.disk_error(Site::Sled, &io::Error::other(error.to_string()));
    }
    shared.filing.kick();
}

/// `None`: the segment is gone.
pub(super) fn read(shared: &Shared, id: &SpoolId, place: Place) -> Result<Option<Vec<u8>>, LookupError> {
    let Some(segment) = shared.segments.get(place.generation) else { return Ok(None) };
    match segment.read_put(shared.segments.salt(), id, place) {
        Ok((data, _)) => Ok(Some(data)),
        Err(ReadError::Io { path, source }) => {
            let error = io::Error::new(source.kind(), format!("reading {}: {source}", path.display()));
            shared.disk_error(Site::JournalRead, &error);
            Err(LookupError::Io(error))
        }
        Err(error @ ReadError::Damaged { .. }) => {
            shared.found_damage(id, &error.to_string());
            Err(LookupError::Corrupt(error.to_string()))
        }
    }
}

/// Offers what was read to the cache, unless something newer came meanwhile.
pub(super) fn fill_cache(shared: &Shared, id: SpoolId, data: &Arc<Box<[u8]>>, stamp: Stamp) {
    let shard = shared.table.lock(&id);
    let now = Stamp { seq: shard.index.get(&id).map(|newest| newest.seq), exits: shard.exits };
    // An id that the index named and names still is the same whatever left the shard meanwhile.
    let same = now == stamp || (now.seq.is_some() && now.seq == stamp.seq);
    if same && shard.pending.get(&id).is_none() {
        shared.cache.insert(id, data.clone());
    }
}
