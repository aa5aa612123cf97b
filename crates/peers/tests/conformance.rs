//! Every engine does what it claims; otherwise the comparison would not be fair.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use async_trait::async_trait;
use tempfile::TempDir;
use tidespool_conformance::{CASES, Claim, Factory, Outcome, check, payload};
use tidespool_core::{Closed, NotFound, Spool, SpoolId};
use tidespool_peers::engines::{NotOffered, Peer, Setup};

/// A peer in a directory of its own.
struct InDir {
    peer: Peer,
    dir: TempDir,
}

impl InDir {
    fn new(peer: Peer) -> Self {
        Self { peer, dir: tempfile::tempdir().unwrap() }
    }
}

#[async_trait]
impl Factory for InDir {
    async fn open(&self) -> anyhow::Result<Arc<dyn Spool>> {
        let setup = Setup { max_message_size: self.max_message_size(), ..Setup::default() };
        self.peer.open(self.dir.path(), setup).await
    }

    fn unclaimed(&self) -> Vec<Claim> {
        let claims = self.peer.claims();
        let claims = [
            (claims.syncs, Claim::Syncs),
            (claims.enumerates, Claim::Enumerates),
            (claims.persists, Claim::Persists),
            (claims.orders_dropped, Claim::OrdersDropped),
        ];
        claims.into_iter().filter(|(is_made, _)| !is_made).map(|(_, claim)| claim).collect()
    }
}

mod tidespool {
    use super::*;
    tidespool_conformance::conformance_tests!(InDir::new(Peer::Tidespool));
}

#[cfg(feature = "rocksdb")]
mod rocksdb {
    use super::*;
    tidespool_conformance::conformance_tests!(InDir::new(Peer::RocksDb));
}

#[cfg(feature = "rocksdb")]
mod rocksdb_tuned {
    use super::*;
    tidespool_conformance::conformance_tests!(InDir::new(Peer::RocksDbTuned));
}

mod fjall {
    use super::*;
    tidespool_conformance::conformance_tests!(InDir::new(Peer::Fjall));
}

mod sled {
    use super::*;
    tidespool_conformance::conformance_tests!(InDir::new(Peer::Sled));
}

mod redb {
    use super::*;
    tidespool_conformance::conformance_tests!(InDir::new(Peer::Redb));
}

/// Returns the cases that `peer` does not claim, and asserts that it passes all others.
fn not_claimed(peer: Peer) -> Vec<&'static str> {
    let mut left_out = Vec::new();
    for case in CASES {
        let outcome = check(Box::new(InDir::new(peer)), case.run);
        println!("{}: {outcome:?}", case.name);
        match outcome {
            Outcome::Kept => {}
            Outcome::NotClaimed(_) => left_out.push(case.name),
            outcome => panic!("{}: {}: {outcome:?}", peer.name(), case.name),
        }
    }
    left_out
}

/// Exactly the cases that drop a store in progress are not claimed.
#[test]
fn local_disk_keeps_what_it_claims() {
    assert_eq!(
        not_claimed(Peer::LocalDisk),
        [
            "a_dropped_store_is_done_whole_or_not_at_all",
            "dropped_stores_leak_no_room",
            "a_later_store_beats_a_dropped_one",
            "a_later_remove_beats_a_dropped_store",
        ]
    );
}

/// Most cases need a sync or an enumeration: only these two do not. The next test covers the claims
/// of the cache.
#[test]
fn foyer_keeps_what_it_claims() {
    let left_out = not_claimed(Peer::Foyer);
    let kept: Vec<&str> =
        CASES.iter().map(|case| case.name).filter(|name| !left_out.contains(name)).collect();
    assert_eq!(kept, ["an_absent_message_is_not_found", "removing_the_unknown_is_ok"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foyer_stores_replaces_loads_and_removes_and_rejects_other_calls() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Peer::Foyer.open(dir.path(), Setup::default()).await.unwrap();
    for len in [0, 1, 100, 4096, 100 * 1024, 1024 * 1024] {
        let id = SpoolId::new();
        for version in 1..=3 {
            spool.store(id, payload::shared(id, version, len), false, None).await.unwrap();
            payload::assert_is(id, version, len, &spool.load(id).await.unwrap());
        }
        spool.remove(id).await.unwrap();
        assert!(spool.load(id).await.unwrap_err().root_cause().is::<NotFound>());
    }
    let id = SpoolId::new();
    let err = spool.store(id, payload::shared(id, 1, 10), true, None).await.unwrap_err();
    assert!(err.root_cause().is::<NotOffered>(), "{err:#}");
    let (sender, _receiver) = async_channel::bounded(1);
    let err = spool.enumerate(sender, chrono::Utc::now()).unwrap_err();
    assert!(err.root_cause().is::<NotOffered>(), "{err:#}");
    spool.shutdown().await.unwrap();
    assert!(spool.load(id).await.unwrap_err().root_cause().is::<Closed>());
}

#[tokio::test]
async fn opening_an_engine_that_only_stores_as_a_spool_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for peer in [Peer::RawJournal, Peer::Bare] {
        let Err(err) = peer.open(dir.path(), Setup::default()).await else { panic!("opened") };
        assert!(err.root_cause().is::<NotOffered>(), "{err:#}");
    }
}

/// sled stores a large message in parts. While it is replaced repeatedly, a load must never mix two
/// versions or miss a part. The test covers every engine that claims everything.
#[test]
fn a_large_message_is_replaced_as_a_whole() {
    const VERSIONS: u64 = 300;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    for peer in
        Peer::all().into_iter().filter(|peer| peer.claims() == tidespool_peers::engines::Claims::EVERYTHING)
    {
        let dir = tempfile::tempdir().unwrap();
        runtime.block_on(async {
            let spool = peer.open(dir.path(), Setup::default()).await.unwrap();
            let id = SpoolId::new();
            let len = |version: u64| 60_000 + usize::try_from(version * 7919 % 40_000).unwrap();
            spool.store(id, payload::shared(id, 1, len(1)), false, None).await.unwrap();
            let loaders: Vec<_> = (0..3)
                .map(|_| {
                    let spool = Arc::clone(&spool);
                    tokio::spawn(async move {
                        loop {
                            let data = spool.load(id).await.unwrap_or_else(|err| panic!("{err:#}"));
                            let version = payload::read(id, &data).unwrap().version.unwrap();
                            if version == VERSIONS {
                                return;
                            }
                            tokio::task::yield_now().await;
                        }
                    })
                })
                .collect();
            for version in 2..=VERSIONS {
                spool.store(id, payload::shared(id, version, len(version)), false, None).await.unwrap();
                tokio::task::yield_now().await;
            }
            for loader in loaders {
                loader.await.unwrap_or_else(|err| panic!("{}: {err}", peer.name()));
            }
            spool.shutdown().await.unwrap();
        });
    }
}
