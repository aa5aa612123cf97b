use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tidespool::TieredSpool;
use tidespool_core::{Corrupt, NotFound, Spool as _, SpoolEntry, SpoolId, SpoolUnhealthyError};
use tidespool_testkit::{payload, wait};

use crate::setup::enumerate;

/// Lengths of messages in bytes: below and above every threshold for small payloads, and one that
/// fills a sixth of a segment.
const LENGTHS: [usize; 4] = [40, 700, 5000, 20_000];

/// The expected messages: newest version and length of each live one, and the ids of removed ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Expected {
    live: BTreeMap<SpoolId, (u64, usize)>,
    removed: BTreeSet<SpoolId>,
    /// The version of the last store. A removed id may be stored again.
    version: u64,
}

/// Differences between a spool and the expected messages.
#[derive(Debug, Default)]
struct Found {
    wrong: Vec<String>,
    /// Loads that failed with an error that is neither `NotFound` nor `Corrupt`.
    failed: Vec<String>,
}

impl Found {
    fn assert_right(&self) {
        let some = self.wrong.iter().take(4).cloned().collect::<Vec<_>>().join("; ");
        assert!(self.wrong.is_empty(), "{} wrong results: {some}", self.wrong.len());
    }
}

impl Expected {
    pub(super) fn len(&self) -> u64 {
        self.live.len() as u64
    }

    pub(super) fn removed(&self) -> &BTreeSet<SpoolId> {
        &self.removed
    }

    /// Expects no message under this id.
    pub(super) fn expect_absent(&mut self, id: SpoolId) {
        self.removed.insert(id);
    }

    /// A live message, chosen by a number.
    pub(super) fn nth(&self, n: u64) -> Option<SpoolId> {
        let n = n.checked_rem(self.len())?;
        self.live.keys().nth(usize::try_from(n).ok()?).copied()
    }

    /// Stores a new version. If the shut gate rejects the store, the earlier version remains.
    pub(super) async fn store(&mut self, spool: &TieredSpool, id: SpoolId, len: usize) {
        self.version += 1;
        let version = self.version;
        let store = spool.store(id, payload::shared(id, version, len), true, None);
        match wait::bounded("store", store).await {
            Ok(()) => {
                self.live.insert(id, (version, len));
                self.removed.remove(&id);
            }
            Err(error) => assert!(error.root_cause().is::<SpoolUnhealthyError>(), "{error:#}"),
        }
    }

    pub(super) async fn remove(&mut self, spool: &TieredSpool, id: SpoolId) {
        wait::bounded("remove", spool.remove(id)).await.expect("remove");
        if self.live.remove(&id).is_some() {
            self.removed.insert(id);
        }
    }

    /// Stores `count` messages of each length.
    pub(super) async fn fill(&mut self, spool: &TieredSpool, count: usize) {
        for n in 0..count {
            for len in LENGTHS {
                self.store(spool, SpoolId::new(), len + n).await;
            }
        }
    }

    /// Removes each `n`-th message.
    pub(super) async fn remove_each(&mut self, spool: &TieredSpool, n: usize) {
        for id in self.live.keys().copied().step_by(n).collect::<Vec<_>>() {
            self.remove(spool, id).await;
        }
    }

    /// Stores a new version of each `n`-th message.
    pub(super) async fn replace_each(&mut self, spool: &TieredSpool, n: usize) {
        let each: Vec<_> = self.live.iter().step_by(n).map(|(id, (_, len))| (*id, *len)).collect();
        for (id, len) in each {
            self.store(spool, id, len).await;
        }
    }

    /// Adds other expected messages, which have other ids.
    pub(super) fn add(&mut self, other: Self) {
        self.live.extend(other.live);
        self.removed.extend(other.removed);
    }

    /// Asserts that no load returns a wrong result. Loads may fail with an I/O error.
    pub(super) async fn assert_no_wrong_result(&self, spool: &TieredSpool) {
        self.load_all(spool).await.assert_right();
    }

    /// Asserts that load and enumerate return every message in its newest version, and nothing
    /// else. Loads may fail with an I/O error at first.
    pub(super) async fn assert_exact(&self, spool: &TieredSpool) {
        let started = Instant::now();
        loop {
            let found = self.load_all(spool).await;
            found.assert_right();
            let Some(error) = found.failed.first() else { break };
            let count = found.failed.len();
            assert!(started.elapsed() < wait::PATIENCE, "{count} loads still fail: {error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.list(wait::bounded("enumerate", enumerate(spool)).await).assert_right();
    }

    async fn load_all(&self, spool: &TieredSpool) -> Found {
        let mut found = Found::default();
        for id in self.live.keys().chain(&self.removed) {
            match wait::bounded("load", spool.load(*id)).await {
                Ok(data) => found.wrong.extend(self.difference(*id, &data)),
                Err(error) if error.root_cause().is::<NotFound>() => {
                    found.wrong.extend(self.live.contains_key(id).then(|| format!("{error:#}")));
                }
                Err(error) if error.root_cause().is::<Corrupt>() => found.wrong.push(format!("{error:#}")),
                Err(error) => found.failed.push(format!("{id}: {error:#}")),
            }
        }
        found
    }

    fn list(&self, entries: Vec<SpoolEntry>) -> Found {
        let mut found = Found::default();
        let mut missing = self.live.clone();
        for entry in entries {
            match entry {
                SpoolEntry::Item { id, data } => {
                    found.wrong.extend(self.difference(id, &data).map(|what| format!("listed: {what}")));
                    if missing.remove(&id).is_none() && self.live.contains_key(&id) {
                        found.wrong.push(format!("{id} is listed twice"));
                    }
                }
                SpoolEntry::Corrupt { id, error } => {
                    missing.remove(&id);
                    found.wrong.push(format!("{id} is listed as damaged: {error:#}"));
                }
            }
        }
        found.wrong.extend(missing.keys().map(|id| format!("{id} is not listed")));
        found
    }

    /// Describes how the bytes differ from the newest version.
    fn difference(&self, id: SpoolId, data: &[u8]) -> Option<String> {
        let seen = match payload::read(id, data) {
            Ok(seen) => seen,
            Err(error) => return Some(error.to_string()),
        };
        match self.live.get(&id) {
            Some(&(version, len)) if seen == (payload::Seen { version: Some(version), len }) => None,
            Some((version, _)) => Some(format!("{id} is {seen:?}, and its newest version is {version}")),
            None if self.removed.contains(&id) => Some(format!("{id} was removed, and is back: {seen:?}")),
            None => Some(format!("{id} was never stored: {seen:?}")),
        }
    }
}

/// Waits until all stores and removals are on stable storage.
pub(super) async fn durable(spool: &TieredSpool) {
    wait::until("everything is durable", || spool.stats().gauges.dirty_entries == 0).await;
}
