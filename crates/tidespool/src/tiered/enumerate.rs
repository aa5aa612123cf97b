//! `enumerate`: every live message once, on a thread of its own.
//!
//! First the ids that memory knows, then what sled has beside them. A message can only move down, from memory into sled, so none is
//! missed; those seen in memory are remembered, so none comes twice. What is remembered is bounded as the index is: by the
//! journal's capacity.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_channel::Sender;
use chrono::{DateTime, Utc};
use futures_lite::future;
use tidespool_core::{SpoolEntry, SpoolId};

use super::lookup::{InMemory, LookupError, in_memory, on_disk};
use super::shared::Shared;
use crate::durable::{DurableError, Key, KeyRange};

/// Keys taken from sled at once. No scan is open while an entry waits to be received.
const STEP: usize = 256;

/// First and longest pause after a read error that may pass.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// One enumeration.
pub(super) struct Enumeration {
    pub(super) shared: Arc<Shared>,
    pub(super) sender: Sender<SpoolEntry>,
    pub(super) start_time: DateTime<Utc>,
}

/// The receiver is gone, or the spool is closing.
struct Stopped;

impl Enumeration {
    /// Sends everything. The end is the sender being dropped.
    pub(super) fn run(self) {
        // However it ends, there is nobody to tell but the receiver, who sees the channel closed.
        let _ = self.send_all();
    }

    fn send_all(&self) -> Result<(), Stopped> {
        let seen = self.ids_in_memory();
        for id in &seen {
            self.send_message(*id)?;
        }
        for range in KeyRange::created_before(self.start_time) {
            let mut left = range;
            loop {
                let keys = self.next_keys(&left)?;
                let Some(last) = keys.last() else { break };
                left = left.after(last);
                for id in keys.iter().map(Key::id).filter(|id| !seen.contains(id)) {
                    self.send_message(id)?;
                }
            }
        }
        Ok(())
    }

    fn ids_in_memory(&self) -> HashSet<SpoolId> {
        let mut ids = HashSet::new();
        for shard in self.shared.table.shards() {
            let indexed = shard.index.iter().filter(|(_, newest)| newest.place.is_some()).map(|(id, _)| id);
            let dirty = shard.pending.ids().filter_map(|(id, is_put)| is_put.then_some(id));
            ids.extend(indexed.chain(dirty).filter(|id| self.is_wanted(id)));
        }
        ids
    }

    fn is_wanted(&self, id: &SpoolId) -> bool {
        id.created().is_none_or(|created| created < self.start_time)
    }

    fn next_keys(&self, range: &KeyRange) -> Result<Vec<Key>, Stopped> {
        self.patiently(|| {
            let mut keys = Vec::with_capacity(STEP);
            let scanned = self.shared.durable.scan(std::slice::from_ref(range), &mut |key, _| {
                keys.push(key);
                keys.len() < STEP
            });
            match scanned {
                // What nobody can name is no message; it was told when the spool was opened.
                Ok(()) | Err(DurableError::ForeignKeys { .. }) => Ok(keys),
                Err(error) => {
                    self.shared.filing.kick();
                    Err(error.to_string())
                }
            }
        })
    }

    fn send_message(&self, id: SpoolId) -> Result<(), Stopped> {
        let entry = self.patiently(|| match in_memory(&self.shared, &id) {
            InMemory::Found(data, _) => Ok(Some(SpoolEntry::Item { id, data: data.to_vec() })),
            InMemory::Removed => Ok(None),
            InMemory::Unknown => match on_disk(&self.shared, &id) {
                Ok(found) => Ok(found.map(|found| SpoolEntry::Item { id, data: found.data })),
                Err(LookupError::Corrupt(error)) => Ok(Some(SpoolEntry::Corrupt { id, error })),
                Err(LookupError::Io(error)) => Err(error.to_string()),
            },
        })?;
        match entry {
            Some(entry) => self.send(entry),
            None => Ok(()),
        }
    }

    /// Tries until it succeeds: an error that may pass must neither hide a message nor be told as damage.
    fn patiently<T>(&self, mut attempt: impl FnMut() -> Result<T, String>) -> Result<T, Stopped> {
        let mut pause = RETRY.0;
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(error) => tracing::warn!(%error, "enumerating waits for the disk"),
            }
            if self.sender.is_closed() || self.shared.closing.wait(pause) {
                return Err(Stopped);
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    fn send(&self, entry: SpoolEntry) -> Result<(), Stopped> {
        let sent = async { self.sender.send(entry).await.map_err(|_| Stopped) };
        let closing = async {
            self.shared.closing.closed().await;
            Err(Stopped)
        };
        future::block_on(future::or(sent, closing))
    }
}
