//! Finds the newest version of a message, from the top tier down.

use std::io;
use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;

use crate::checkpoint::place_of_record;
use crate::index::{IndexError, Key};
use crate::journal::{NewestRecord, ReadError, RecordPlace};
use crate::memory::Visible;
use crate::message_id::MessageId;
use crate::stats::{Site, Tier as HitTier};
use crate::tiered::state::{Shard, Shared, Table};

/// The result of a lookup in memory.
pub(in crate::tiered) enum InMemory {
    Found(Arc<Box<[u8]>>, HitTier),
    /// The message was removed.
    Removed,
    /// The bytes are not in memory. Holds the message's newest record if the index in memory has
    /// one. If not, only the index on disk can have the message.
    Elsewhere(Option<NewestRecord>),
}

/// A message read from disk.
pub(in crate::tiered) struct OnDisk {
    pub(in crate::tiered) data: Vec<u8>,
    pub(in crate::tiered) tier: HitTier,
    pub(in crate::tiered) stamp: Stamp,
}

/// The state of the index when a message was read. If it is unchanged, the message is still the
/// newest version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tiered) struct Stamp {
    /// The number of the record in the index, if there was one.
    seq: Option<u64>,
    /// The shard's count of ids that left the index. It matters if there was no record.
    exits: u64,
}

impl Stamp {
    /// The stamp of a message whose record number is known.
    pub(in crate::tiered) fn of_record(seq: u64) -> Self {
        Self { seq: Some(seq), exits: 0 }
    }
}

/// Why a message could not be read.
#[derive(Debug, Error)]
pub(in crate::tiered) enum LookupError {
    /// The message's bytes are damaged. Permanent.
    #[error("{0}")]
    Corrupt(String),
    /// The disk failed. A later read may succeed.
    #[error("{0}")]
    Io(io::Error),
    /// The index is incomplete or out of use. A read after its rebuild finds the message if it
    /// exists.
    #[error("{0}")]
    Rebuilding(io::Error),
}

/// Looks a message up in memory.
pub(in crate::tiered) fn in_memory(shared: &Shared, id: &MessageId) -> InMemory {
    let newest = {
        let shard = shared.table.lock(id);
        match shard.newest(id) {
            Some((Visible::Put(data), tier)) => return InMemory::Found(data, tier),
            Some((Visible::Removed, _)) => return InMemory::Removed,
            None => shard.index.get(id),
        }
    };
    if newest.is_some_and(|newest| newest.place.is_none()) {
        return InMemory::Removed;
    }
    shared.cache.get(id).map_or(InMemory::Elsewhere(newest), |data| InMemory::Found(data, HitTier::Cache))
}

/// Maximum size in bytes of a message that is read on the caller's thread from the page cache.
/// Copying a larger message would delay other tasks.
const AT_ONCE: u32 = 256 << 10;

/// Reads a message from the page cache. Never waits for a disk. `None` does not mean that there is
/// no such message: call [`on_disk`].
pub(in crate::tiered) fn at_once(shared: &Shared, id: &MessageId, newest: NewestRecord) -> Option<OnDisk> {
    let place = newest.place.filter(|place| place.len <= AT_ONCE)?;
    let segment = shared.segments.get(place.generation)?;
    let data = segment.read_put_in_memory(shared.segments.salt(), id, place)?;
    Some(OnDisk { data, tier: HitTier::Journal, stamp: Stamp::of_record(newest.seq) })
}

/// Looks a message up in all tiers. Blocks on I/O. `None`: there is no such message.
pub(in crate::tiered) fn on_disk(shared: &Shared, id: &MessageId) -> Result<Option<OnDisk>, LookupError> {
    let mut missed = None;
    loop {
        let (newest, exits) = {
            let shard = shared.table.lock(id);
            match shard.newest(id) {
                Some((Visible::Put(data), tier)) => {
                    let stamp = Stamp { seq: None, exits: u64::MAX };
                    return Ok(Some(OnDisk { data: data.to_vec(), tier, stamp }));
                }
                Some((Visible::Removed, _)) => return Ok(None),
                None => (shard.index.get(id), shard.exits),
            }
        };
        let stamp = Stamp { seq: newest.map(|newest| newest.seq), exits };
        let (place, named_by) = match newest {
            Some(newest) => match newest.place {
                Some(place) => (place, NamedBy::Memory),
                None => return Ok(None),
            },
            None => match place_on_disk(shared, id)? {
                Some((place, index)) => (place, NamedBy::Index(index)),
                None => return Ok(None),
            },
        };
        match read(shared, id, place)? {
            Some(data) => return Ok(Some(OnDisk { data, tier: named_by.tier(), stamp })),
            // The segment is gone. The first time the message may have moved meanwhile, so look
            // again. If the same place is found twice, the segment is missing.
            None if missed == Some((place, named_by)) => return Err(not_there(shared, id, place, named_by)),
            None => missed = Some((place, named_by)),
        }
    }
}

/// The tier that has the newest version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Dirty in memory: the message is not on stable storage yet.
    Memory,
    /// In the journal, younger than its checkpoint.
    Journal,
    /// Checkpointed: the index on disk has its place.
    Checkpointed,
}

/// The newest version of a message, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tiered) struct Located {
    /// Payload bytes.
    pub(in crate::tiered) size: u64,
    pub(in crate::tiered) tier: Tier,
}

/// Looks a message up in all tiers, without reading its payload. Blocks on the index on disk.
/// `None`: there was no such message at a moment during the call.
pub(in crate::tiered) fn locate(shared: &Shared, id: &MessageId) -> Result<Option<Located>, LookupError> {
    let found = |(place, _): (RecordPlace, u64)| {
        let size = u64::from(place.len);
        Located { size, tier: Tier::Checkpointed }
    };
    locate_by(&shared.table, id, || Ok(place_on_disk(shared, id)?.map(found)))
}

/// As [`locate`]. `on_disk` looks the message up in the index on disk.
fn locate_by<E>(
    table: &Table,
    id: &MessageId,
    mut on_disk: impl FnMut() -> Result<Option<Located>, E>,
) -> Result<Option<Located>, E> {
    loop {
        let exits = {
            let shard = table.lock(id);
            match locate_in(&shard, id) {
                Some(found) => return Ok(found),
                None => shard.exits,
            }
        };
        let found = on_disk()?;
        let shard = table.lock(id);
        match locate_in(&shard, id) {
            Some(found) => return Ok(found),
            None if shard.exits == exits => return Ok(found),
            // An id has moved to the index on disk meanwhile. It may be this one.
            None => {}
        }
    }
}

/// Looks a message up in memory. `Some(None)`: it was removed. `None`: only the index on disk can
/// have it.
fn locate_in(shard: &Shard, id: &MessageId) -> Option<Option<Located>> {
    match shard.pending.get(id) {
        Some(Visible::Put(data)) => {
            return Some(Some(Located { size: data.len() as u64, tier: Tier::Memory }));
        }
        Some(Visible::Removed) => return Some(None),
        None => {}
    }
    let place = shard.index.get(id)?.place;
    Some(place.map(|place| Located { size: u64::from(place.len), tier: Tier::Journal }))
}

/// The index in which the place of a message was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NamedBy {
    /// The index in memory.
    Memory,
    /// The index on disk with this number.
    Index(u64),
}

impl NamedBy {
    fn tier(self) -> HitTier {
        match self {
            Self::Memory => HitTier::Journal,
            Self::Index(_) => HitTier::Sled,
        }
    }
}

/// Reports that the segment of a message is missing, and returns the error.
fn not_there(shared: &Shared, id: &MessageId, place: RecordPlace, named_by: NamedBy) -> LookupError {
    let what = format!("its segment (generation {}) is missing", place.generation);
    match named_by {
        // The spool keeps its segments open, so a segment file that was deleted can still be read.
        // Therefore the index is wrong, and the message may be intact.
        NamedBy::Index(number) if !shared.segments.is_missing(place.generation) => {
            let error = io::Error::other(format!("the index is wrong about message {id}: {what}"));
            shared.disk_index.distrust(number, &error.to_string());
            shared.disk_error(Site::Sled, &error);
            shared.checkpoint_requests.kick();
            LookupError::Rebuilding(error)
        }
        NamedBy::Memory | NamedBy::Index(_) => {
            shared.found_damage(id, &what);
            LookupError::Corrupt(what)
        }
    }
}

/// Returns the place of a message by the index on disk, and the number of that index.
fn place_on_disk(shared: &Shared, id: &MessageId) -> Result<Option<(RecordPlace, u64)>, LookupError> {
    match shared.disk_index.find(&Key::of(id)) {
        Ok(found) => Ok(found.map(|(record, index)| (place_of_record(&record), index))),
        Err(error) => {
            index_failed(shared, &error);
            Err(LookupError::Rebuilding(io::Error::other(error.to_string())))
        }
    }
}

/// Counts an error that makes the index unusable, and starts its rebuild.
pub(in crate::tiered) fn index_failed(shared: &Shared, error: &IndexError) {
    if error.poisons() {
        shared.disk_error(Site::Sled, &io::Error::other(error.to_string()));
    }
    shared.checkpoint_requests.kick();
}

/// Reads a message at a place in a segment. `None`: the segment is gone.
pub(in crate::tiered) fn read(
    shared: &Shared,
    id: &MessageId,
    place: RecordPlace,
) -> Result<Option<Vec<u8>>, LookupError> {
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

/// Keeps a copy of a message that was read, unless there is a newer version.
pub(in crate::tiered) fn keep_read(shared: &Shared, id: MessageId, data: &Arc<Box<[u8]>>, stamp: Stamp) {
    let mut shard = shared.table.lock(&id);
    let now = Stamp { seq: shard.index.get(&id).map(|newest| newest.seq), exits: shard.exits };
    // If the index still has the same record, `exits` is irrelevant.
    let same = now == stamp || (now.seq.is_some() && now.seq == stamp.seq);
    if same && shard.newest(&id).is_none() {
        // Another load may have kept a copy meanwhile.
        shared.keep_copy(&mut shard, id, data, true);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tidespool_core::Spool as _;

    use super::{Located, Stamp, Tier, keep_read, locate_by};
    use crate::checkpoint::LiveIndex as _;
    use crate::index::{IndexChange, IndexOp, Key, Record};
    use crate::journal::{NewestRecord, RecordPlace};
    use crate::message_id::MessageId;
    use crate::tiered::state::Table;
    use crate::{Config, Tidespool};

    /// The message was stored and checkpointed after the lookup in the index on disk, and is in
    /// memory neither before nor after.
    #[test]
    fn a_message_that_passes_through_memory_during_a_lookup_is_found() {
        let (table, id) = (Table::new(), MessageId::random());
        let place = RecordPlace { generation: 1, offset: 4096, len: 9 };
        let newest = NewestRecord { seq: 1, generation: 1, place: Some(place) };
        let checkpointed = Located { size: 9, tier: Tier::Checkpointed };
        let mut looks = 0;
        let found = locate_by(&table, &id, || {
            looks += 1;
            if looks > 1 {
                return Ok::<_, Infallible>(Some(checkpointed));
            }
            table.lock(&id).index.learn(id, newest);
            table.forget(&[(Key::of(&id), newest)]);
            Ok(None)
        });
        assert_eq!((found, looks), (Ok(Some(checkpointed)), 2));
        table.lock(&id).index.learn(id, newest);
        let found = locate_by(&table, &id, || -> Result<_, Infallible> { unreachable!("it is in memory") });
        assert_eq!(found, Ok(Some(Located { size: 9, tier: Tier::Journal })));
    }

    /// An older copy of the index replaced a newer one and pointed to recycled segments. The spool
    /// reported intact messages as damaged.
    #[tokio::test]
    async fn an_index_that_points_to_a_missing_segment_is_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path().join("spool")).checkpoint_after(std::time::Duration::ZERO);
        let store = Tidespool::open(config).await.unwrap();
        let spool = store.spool("main").unwrap();
        let id = tidespool_core::SpoolId::new();
        let data = std::sync::Arc::new(vec![7; 900].into_boxed_slice());
        spool.store(id, data.clone(), true, None).await.unwrap();
        spool.cleanup().await.unwrap();
        spool.advise_low_memory().await.unwrap();
        let wrong = Record { seq: 1, generation: 999, offset: 4096, len: 900 };
        let put = IndexOp {
            key: Key::of(&store.open.shared.spools.get("main").unwrap().message(id)),
            change: IndexChange::Put(wrong),
        };
        store.open.shared.disk_index.apply(&mut std::iter::once(put), &mut |_, _| ()).unwrap();
        assert_eq!(*spool.load(id).await.unwrap(), **data);
        // `load` may return before the rebuild is counted. `shutdown` does not.
        spool.shutdown().await.unwrap();
        let stats = spool.stats();
        assert_eq!((stats.index_rebuilds, stats.corrupt), (1, 0), "{stats:?}");
    }

    /// The read of a message took so long that the message was replaced or removed meanwhile, and
    /// memory has no copy of the newer version.
    #[tokio::test]
    async fn a_slow_read_keeps_no_copy_of_an_older_version() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path().join("spool"));
        let store = Tidespool::open(config).await.unwrap();
        let spool = store.spool("main").unwrap();
        let shared = &store.open.shared;
        let version = |byte| std::sync::Arc::new(vec![byte; 900].into_boxed_slice());
        for removed in [false, true] {
            let id = tidespool_core::SpoolId::new();
            let message = shared.spools.get("main").unwrap().message(id);
            spool.store(id, version(1), true, None).await.unwrap();
            let seq = shared.table.lock(&message).index.get(&message).unwrap().seq;
            if removed {
                spool.remove_synced(id, None).await.unwrap();
            } else {
                spool.store(id, version(2), true, None).await.unwrap();
            }
            spool.advise_low_memory().await.unwrap();
            keep_read(shared, message, &version(1), Stamp::of_record(seq));
            let loaded = spool.load(id).await;
            match removed {
                true => assert!(loaded.unwrap_err().is::<tidespool_core::NotFound>()),
                false => assert_eq!(loaded.unwrap(), **version(2)),
            }
        }
        spool.shutdown().await.unwrap();
    }
}
