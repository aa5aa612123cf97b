//! The messages in a spool after a kill.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, Utc};
use tidespool_core::{NotFound, Spool, SpoolEntry, SpoolId};

use super::{Event, Line};
use crate::payload;

/// A recovered message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// All bytes are correct.
    Whole(payload::Seen),
    /// It is not a message that was ever stored.
    Wrong(String),
}

impl Found {
    /// Returns the message, if all its bytes are correct.
    #[must_use]
    pub fn whole(&self) -> Option<payload::Seen> {
        match self {
            Self::Whole(seen) => Some(*seen),
            Self::Wrong(_) => None,
        }
    }
}

/// All messages in a spool.
pub type Stock = BTreeMap<SpoolId, Found>;

/// Calls [`take_stock_of`] with the ids in the log.
///
/// # Errors
///
/// Like [`take_stock_of`].
pub async fn take_stock(spool: &dyn Spool, log: &[Line]) -> Result<Stock> {
    let named = log.iter().filter_map(|line| match line.event {
        Event::Store { id, .. } | Event::Remove { id, .. } => Some(id),
        _ => None,
    });
    take_stock_of(spool, named).await
}

/// Reads all messages in `spool`, by enumeration and by loading each of them and each id in
/// `named`. Both must give the same result.
///
/// # Errors
///
/// If a call fails with an error other than `NotFound`, or if the two results differ.
pub async fn take_stock_of(spool: &dyn Spool, named: impl Iterator<Item = SpoolId> + Send) -> Result<Stock> {
    let (sender, receiver) = async_channel::bounded(64);
    spool.enumerate(sender, DateTime::<Utc>::MAX_UTC).context("enumerate")?;
    let mut stock = Stock::new();
    while let Ok(entry) = receiver.recv().await {
        let (id, found) = match entry {
            SpoolEntry::Item { id, data } => (id, examine(id, &data)),
            SpoolEntry::Corrupt { id, error } => {
                (id, Found::Wrong(format!("enumerated as damaged: {error}")))
            }
        };
        if stock.insert(id, found).is_some() {
            bail!("message {id} was enumerated twice");
        }
    }
    let mut ids: Vec<SpoolId> = named.chain(stock.keys().copied()).collect();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let loaded = match spool.load(id).await {
            Ok(data) => Some(examine(id, &data)),
            Err(err) if err.root_cause().is::<NotFound>() => None,
            Err(err) => Some(Found::Wrong(format!("load: {err:#}"))),
        };
        if loaded.as_ref() != stock.get(&id) {
            let listed = stock.get(&id);
            bail!("message {id}: load returns {loaded:?}, enumerate sends {listed:?}");
        }
    }
    Ok(stock)
}

fn examine(id: SpoolId, data: &[u8]) -> Found {
    match payload::read(id, data) {
        Ok(seen) => Found::Whole(seen),
        Err(err) => Found::Wrong(err.to_string()),
    }
}

/// Removes messages in the order of their ids until `keep` are left. So many cycles on one
/// directory do not fill it.
///
/// # Errors
///
/// If a remove fails.
pub async fn remove_surplus(spool: &dyn Spool, stock: &mut Stock, keep: usize) -> Result<()> {
    while stock.len() > keep
        && let Some((id, _)) = stock.pop_first()
    {
        spool.remove(id).await.with_context(|| format!("remove of {id}"))?;
    }
    Ok(())
}
