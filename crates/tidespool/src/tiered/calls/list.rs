//! `list`: sends every live message once, without its payload and without reading it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use tidespool_core::SpoolId;

use super::lookup::Located;
pub use super::lookup::Tier as ListedTier;
use super::walk::{Body, Stopped, Visitor, Walk};
use crate::message_id::MessageId;

/// A message as [`TieredSpool::list`](crate::TieredSpool::list) returns it: without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The id of the message.
    pub id: SpoolId,
    /// Payload bytes.
    pub size: u64,
    /// Where the message was when the list looked.
    pub tier: ListedTier,
}

impl Listed {
    /// Returns when the id was minted. `None` if the id contains no time.
    #[must_use]
    pub fn created(&self) -> Option<DateTime<Utc>> {
        self.id.created()
    }
}

/// Sends the messages without their payloads, a step at once.
pub(in crate::tiered) struct Listing;

impl Visitor for Listing {
    type Sent = Vec<Listed>;

    const READS_PAYLOADS: bool = false;

    fn visit(walk: &Walk<Self>, step: Vec<(MessageId, Body)>, exits: Option<u64>) -> Result<(), Stopped> {
        let newest = step.iter().map(|(id, body)| body.located().filter(|_| walk.is_newest(id, body)));
        let newest: Vec<Option<Located>> = newest.collect();
        let is_fresh = walk.is_disk_unchanged(exits);
        let mut listed = Vec::with_capacity(step.len());
        for ((message, _), newest) in step.iter().zip(newest) {
            let located = match newest.filter(|_| is_fresh) {
                None => walk.locate(message)?,
                found => found,
            };
            let id = message.id();
            listed.extend(located.map(|Located { size, tier }| Listed { id, size, tier }));
        }
        if listed.is_empty() { Ok(()) } else { walk.send(listed).map(drop) }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use tidespool_core::Spool as _;

    use crate::{Config, Tidespool};

    /// The index is out of use, and its rebuild makes no progress.
    #[tokio::test]
    async fn an_index_that_does_not_answer_is_the_last_item() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path().join("spool")).read_wait(Duration::ZERO);
        let store = Tidespool::open(config).await.unwrap();
        let spool = store.spool("main").unwrap();
        let id = tidespool_core::SpoolId::new();
        spool.store(id, std::sync::Arc::new(vec![7; 900].into_boxed_slice()), true, None).await.unwrap();
        spool.compact().await.unwrap();
        let shared = &store.open.shared;
        shared.checkpoint_requests.stop();
        shared.disk_index.let_go("on purpose");
        let mut list = spool.list(chrono::Utc::now() + chrono::TimeDelta::hours(1)).unwrap();
        let error = list.next().await.unwrap().unwrap_err();
        assert!(error.root_cause().is::<io::Error>(), "{error:#}");
        assert!(
            error.to_string().contains("cut short") && error.to_string().contains("on purpose"),
            "{error}"
        );
        assert!(list.next().await.is_none());
        drop(store.shutdown().await);
    }
}
