use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tidespool_core::SpoolEntry;
use tokio::time::timeout;

use super::caller::{Loaded, load};
use super::case::{Case, Open};
use crate::oracle::Present;
use crate::payload;

/// How long to wait for an enumeration before checking whether the disk is broken.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

impl Case {
    /// Returns all messages, enumerated and loaded. Heals a disk that breaks meanwhile. Retries
    /// enumerations that end early, and loads that fail, until sled is open again.
    pub(super) async fn contents(&mut self, open: &Open) -> Result<Present, String> {
        let began = Instant::now();
        let mut enumeration = Box::pin(enumerate(open));
        let found = loop {
            match timeout(CHECK_INTERVAL, &mut enumeration).await {
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Some(found))) => break found,
                _ if began.elapsed() > self.subject.patience => {
                    return Err("an enumeration does not complete".to_owned());
                }
                ended => {
                    if self.is_broken() {
                        self.heal();
                    }
                    if ended.is_ok() {
                        enumeration = Box::pin(enumerate(open));
                    }
                }
            }
        };
        let ids: Vec<_> = found.keys().copied().chain(self.expected.ids()).collect();
        for id in ids {
            let began = Instant::now();
            let is = loop {
                match load(open, id).await? {
                    Loaded::Value(value) => break value,
                    Loaded::Unknown(error)
                        if !self.is_struck() || began.elapsed() > self.subject.patience =>
                    {
                        return Err(format!("a load fails on a disk that works: {error}"));
                    }
                    Loaded::Unknown(_) if self.is_broken() => self.heal(),
                    Loaded::Unknown(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            };
            if is != found.get(&id).copied() {
                let listed = found.get(&id);
                self.violations.push(format!("{id} is loaded as {is:?} and enumerated as {listed:?}"));
            }
        }
        Ok(found)
    }
}

/// Enumerates all messages. Each must be intact and occur once. `None`: it ended early.
pub(super) async fn enumerate(open: &Open) -> Result<Option<Present>, String> {
    let (sender, receiver) = async_channel::bounded(8);
    let begun = open.spool.enumerate(sender, DateTime::<Utc>::MAX_UTC);
    begun.map_err(|error| format!("enumerate failed: {error:#}"))?;
    let mut found = Present::new();
    while let Ok(entry) = receiver.recv().await {
        if entry.is_early_end() {
            return Ok(None);
        }
        let SpoolEntry::Item { id, data } = entry else {
            return Err(format!("enumerated as damaged: {entry:?}"));
        };
        let seen = payload::read(id, &data).map_err(|wrong| wrong.to_string())?;
        if found.insert(id, seen).is_some() {
            return Err(format!("{id} is enumerated twice"));
        }
    }
    Ok(Some(found))
}
