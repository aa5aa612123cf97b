use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidespool::{HealthSignal, TieredSpool};
use tidespool_core::{Corrupt, NotFound, Spool, SpoolEntry, SpoolId};
use tidespool_testkit::{payload, wait};

use crate::broken::HOUR;
use crate::lost_sled::lose_all;
use crate::setup::{Tiered, assert_absent, assert_holds, enumerate, healthy, put, stop, walk};

/// Length in bytes of a message that spans several pages of a segment.
const LARGE: usize = 20_000;
const SMALL: usize = 700;

/// Stores messages of both sizes and checkpoints everything.
async fn start_checkpointed(tiered: &Tiered) -> (Arc<TieredSpool>, Vec<(SpoolId, usize)>) {
    let spool = tiered.start().await;
    let mut stored = Vec::new();
    for n in 0..60 {
        let len = if n % 2 == 0 { LARGE + n } else { SMALL + n };
        stored.push((put(spool.as_ref(), len, n % 7 == 0).await, len));
    }
    spool.compact().await.expect("compact");
    (spool, stored)
}

/// Finds the bytes of a message on disk: each file, and the offset of byte `at`.
fn places(dir: &Path, id: SpoolId, len: usize, at: usize) -> Vec<(PathBuf, u64)> {
    let data = payload::make(id, 1, len);
    let needle = &data[at..at + 32];
    let mut found = Vec::new();
    // The crash log may contain a copy, which does not count.
    for path in walk(dir).into_iter().filter(|path| path.is_file() && !path.ends_with("crash-log")) {
        let bytes = fs::read(&path).unwrap();
        let hits = bytes.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
        found.extend(hits.map(|(place, _)| (path.clone(), place as u64)));
    }
    found
}

/// Flips one bit in each place that holds the message.
pub(crate) fn flip_a_bit(dir: &Path, id: SpoolId, len: usize, at: usize) {
    let places = places(dir, id, len, at);
    assert!(!places.is_empty(), "message {id} is not found on disk");
    for (path, place) in places {
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], place).unwrap();
    }
}

async fn assert_corrupt(spool: &dyn Spool, id: SpoolId) {
    let err = spool.load(id).await.expect_err("wrong bytes were returned");
    let corrupt = err.root_cause().downcast_ref::<Corrupt>().unwrap_or_else(|| panic!("{err:#}"));
    assert_eq!(corrupt.id, id);
}

/// Asserts that load and enumerate report `damaged` as damaged, and return every other message.
async fn assert_only_this_is_damaged(spool: &dyn Spool, stored: &[(SpoolId, usize)], damaged: SpoolId) {
    for &(id, len) in stored {
        if id == damaged { assert_corrupt(spool, id).await } else { assert_holds(spool, id, len).await }
    }
    let entries = enumerate(spool).await;
    assert_eq!(entries.len(), stored.len());
    for entry in entries {
        match entry {
            SpoolEntry::Item { id, data } => drop(payload::read(id, &data).expect("whole")),
            SpoolEntry::Corrupt { id, .. } => assert_eq!(id, damaged),
        }
    }
}

/// A flipped bit damages one message. The message is reported as damaged until it is removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_damages_one_message() {
    for at in [0, 8, LARGE / 2, LARGE - 40] {
        let tiered = Tiered::new(|config| config);
        let (spool, mut stored) = start_checkpointed(&tiered).await;
        stop(spool).await;
        let (damaged, len) = stored[10];
        flip_a_bit(&tiered.path(), damaged, len, at);

        let spool = tiered.start().await;
        assert_only_this_is_damaged(spool.as_ref(), &stored, damaged).await;
        stop(spool).await;
        let spool = tiered.start().await;
        assert_only_this_is_damaged(spool.as_ref(), &stored, damaged).await;

        spool.remove(damaged).await.expect("a damaged message can be removed");
        stored.remove(10);
        assert_absent(spool.as_ref(), damaged).await;
        stop(spool).await;
        let spool = tiered.start().await;
        assert_absent(spool.as_ref(), damaged).await;
        assert_eq!(enumerate(spool.as_ref()).await.len(), stored.len());
        stop(spool).await;
    }
}

/// A running spool does not return damaged bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_detected_by_a_running_spool() {
    let tiered = Tiered::new(|config| config);
    let (spool, stored) = start_checkpointed(&tiered).await;
    spool.advise_low_memory().await.expect("advise_low_memory");
    let (damaged, len) = stored[10];
    flip_a_bit(&tiered.path(), damaged, len, LARGE / 2);
    assert_only_this_is_damaged(spool.as_ref(), &stored, damaged).await;
    // A new version replaces the damaged one.
    healthy(spool.as_ref()).await;
    spool.store(damaged, payload::shared(damaged, 1, len), true, None).await.expect("store");
    for &(id, len) in &stored {
        assert_holds(spool.as_ref(), id, len).await;
    }
    stop(spool).await;
}

/// The way in which a spool finds a damaged message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FoundBy {
    Open,
    Load,
    Enumerate,
    Compact,
}

/// A spool that has found exactly `count` damaged messages, and a receiver of its health changes
/// from before.
async fn with_damage(
    tiered: &Tiered,
    found_by: FoundBy,
    count: usize,
) -> (Arc<TieredSpool>, tokio::sync::watch::Receiver<Option<&'static str>>) {
    let mut spool = tiered.start().await;
    let mut damaged = Vec::new();
    for _ in 0..count {
        damaged.push(put(spool.as_ref(), SMALL, true).await);
    }
    put(spool.as_ref(), SMALL, true).await;
    spool.advise_low_memory().await.expect("advise_low_memory");
    for id in &damaged {
        flip_a_bit(&tiered.path(), *id, SMALL, SMALL / 2);
    }
    if found_by == FoundBy::Open {
        drop(spool);
        spool = tiered.start().await;
        assert_eq!(spool.recovery().damage.len(), count);
    }
    let changes = spool.health_changes();
    match found_by {
        FoundBy::Open => {}
        FoundBy::Load => {
            for id in damaged {
                // A second load must not count as another damaged message.
                assert_corrupt(spool.as_ref(), id).await;
                assert_corrupt(spool.as_ref(), id).await;
            }
        }
        FoundBy::Enumerate => assert_eq!(enumerate(spool.as_ref()).await.len(), count + 1),
        FoundBy::Compact => {
            let error = spool.compact().await.expect_err("something is damaged");
            assert!(error.root_cause().is::<Corrupt>(), "{error:#}");
        }
    }
    wait::until("all damage is found", || spool.stats().corrupt == count as u64).await;
    (spool, changes)
}

/// One old damaged message shut the gate of a whole mail server for five seconds at each start.
#[tokio::test(flavor = "multi_thread")]
async fn one_damaged_message_leaves_the_gate_open() {
    for found_by in [FoundBy::Open, FoundBy::Load, FoundBy::Enumerate, FoundBy::Compact] {
        let tiered = Tiered::new(|config| config.checkpoint_after(HOUR));
        let (spool, changes) = with_damage(&tiered, found_by, 1).await;
        put(spool.as_ref(), SMALL, true).await;
        assert_eq!(spool.unhealthy_reason(), None, "{found_by:?}");
        assert!(!changes.has_changed().unwrap(), "{found_by:?}: the gate was shut");
        // The damage was counted: with a lower threshold, the gate shuts without new damage.
        let config = tidespool::Config::clone(&spool.config());
        let strict = config.health.clone().damage(1);
        spool.reconfigure(config.health(strict)).unwrap();
        wait::until("the gate shuts", || changes.has_changed().unwrap()).await;
        drop(spool);
    }
}

/// Many damaged messages at a time mean that the disk is losing data.
#[tokio::test(flavor = "multi_thread")]
async fn many_damaged_messages_shut_the_gate() {
    for found_by in [FoundBy::Open, FoundBy::Load, FoundBy::Enumerate, FoundBy::Compact] {
        // Without unlatching, the test cannot miss the shut gate.
        let tiered = Tiered::new(|config| {
            let health = config.health.clone().hard_unlatch_after(HOUR);
            config.checkpoint_after(HOUR).health(health)
        });
        let (spool, _) = with_damage(&tiered, found_by, 10).await;
        wait::until("the gate is shut", || spool.unhealthy_reason().is_some()).await;
        assert_eq!(spool.stats().gauges.unhealthy, Some(HealthSignal::Damage), "{found_by:?}");
        stop(spool).await;
    }
}

/// The state of each message after damage to a whole file.
#[derive(Debug, Default)]
struct Account {
    whole: BTreeMap<SpoolId, usize>,
    damaged: Vec<SpoolId>,
    missing: Vec<SpoolId>,
}

/// Loads and enumerates all messages. Panics on wrong bytes, unknown messages, and unreported
/// losses.
async fn account(spool: &TieredSpool, stored: &[(SpoolId, usize)]) -> Account {
    let mut account = Account::default();
    for &(id, len) in stored {
        match spool.load(id).await {
            Ok(data) => {
                payload::assert_is(id, 1, len, &data);
                account.whole.insert(id, len);
            }
            Err(err) if err.root_cause().is::<Corrupt>() => account.damaged.push(id),
            Err(err) if err.root_cause().is::<NotFound>() => account.missing.push(id),
            Err(err) => panic!("{id}: {err:#}"),
        }
    }
    let reported = spool.stats().lost;
    assert_eq!(reported, account.missing.len() as u64, "reported as lost, and missing: {account:?}");
    let entries = enumerate(spool).await;
    assert_eq!(entries.len(), account.whole.len() + account.damaged.len(), "enumerated, and there");
    for entry in entries {
        match entry {
            SpoolEntry::Item { id, .. } => assert!(account.whole.contains_key(&id), "{id} was never stored"),
            SpoolEntry::Corrupt { id, .. } => assert!(account.damaged.contains(&id), "{id} is not damaged"),
        }
    }
    account
}

/// Without its manifest the spool still returns all messages.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_manifest_nothing_is_lost() {
    let tiered = Tiered::new(|config| config);
    let (spool, stored) = start_checkpointed(&tiered).await;
    stop(spool).await;
    fs::remove_file(tiered.path().join("manifest")).unwrap();
    let spool = tiered.start().await;
    let found = account(&spool, &stored).await;
    assert_eq!(found.whole.len(), stored.len());
    stop(spool).await;
}

/// A truncated segment loses the messages behind the cut and no others. The cut also removes the
/// segment's footer, so the index is rebuilt without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_segment_is_detected() {
    for rebuilds_index in [false, true] {
        let tiered = Tiered::new(|config| config);
        let (spool, stored) = start_checkpointed(&tiered).await;
        stop(spool).await;
        let (cut, len) = stored[10];
        // All copies: a rewritten segment still has the old one.
        let cuts: BTreeMap<PathBuf, u64> = places(&tiered.path(), cut, len, 64).into_iter().collect();
        let is_cut = |id, len| {
            let places = places(&tiered.path(), id, len, len - 32);
            places.iter().any(|(path, place)| cuts.get(path).is_some_and(|cut| place >= cut))
        };
        let (gone, kept): (Vec<_>, Vec<_>) = stored.iter().partition(|(id, len)| is_cut(*id, *len));
        assert!(gone.contains(&(cut, len)) && kept.len() > 10, "{gone:?}");
        for (path, place) in &cuts {
            fs::File::options().write(true).open(path).unwrap().set_len(*place).unwrap();
        }
        if rebuilds_index {
            lose_all(&tiered.path(), 0);
        }

        let spool = tiered.start().await;
        assert_eq!(spool.recovery().rebuilds_index, rebuilds_index);
        let found = account(&spool, &stored).await;
        assert!(gone.iter().all(|(id, _)| !found.whole.contains_key(id)), "{found:?}");
        assert!(kept.iter().all(|(id, len)| found.whole.get(id) == Some(len)), "{found:?}");
        stop(spool).await;
    }
}

/// Foreign files are not changed, and do not count as messages.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_files_are_not_changed() {
    let tiered = Tiered::new(|config| config);
    let (spool, stored) = start_checkpointed(&tiered).await;
    stop(spool).await;
    let journal = tiered.path().join("journal");
    let foreign = [
        journal.join("README"),
        journal.join("zzzzzzzz.seg"),
        journal.join("00000001.seg.bak"),
        tiered.path().join("notes.txt"),
    ];
    for path in &foreign {
        fs::write(path, "foreign").unwrap();
    }
    fs::create_dir(journal.join("folder")).unwrap();
    let spool = tiered.start().await;
    assert_eq!(account(&spool, &stored).await.whole.len(), stored.len());
    spool.compact().await.expect("compact");
    stop(spool).await;
    for path in &foreign {
        assert_eq!(fs::read(path).unwrap(), b"foreign", "{}", path.display());
    }
    assert!(journal.join("folder").is_dir());
}

/// A file with the name of a segment and other contents.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_of_garbage_loses_no_message() {
    let tiered = Tiered::new(|config| config);
    let (spool, stored) = start_checkpointed(&tiered).await;
    stop(spool).await;
    let journal = tiered.path().join("journal");
    fs::write(journal.join("00009999.seg"), vec![0x5a; 256 * 1024]).unwrap();
    fs::write(journal.join("00009998.seg"), "").unwrap();
    let spool = tiered.start().await;
    assert_eq!(account(&spool, &stored).await.whole.len(), stored.len());
    stop(spool).await;
}

/// Repeated loads of a damaged message count once. Retries kept the gate shut for ever.
#[tokio::test(flavor = "multi_thread")]
async fn repeated_loads_of_a_damaged_message_count_once() {
    let tiered = Tiered::new(|config| {
        let health = config.health.clone().damage(1);
        config.health(health)
    });
    let (spool, stored) = start_checkpointed(&tiered).await;
    let (damaged, len) = stored[0];
    spool.advise_low_memory().await.expect("advise_low_memory");
    flip_a_bit(&tiered.path(), damaged, len, LARGE / 2);
    assert_corrupt(spool.as_ref(), damaged).await;
    wait::until("the gate is shut", || spool.unhealthy_reason().is_some()).await;
    wait::bounded("the gate opens", async {
        while spool.unhealthy_reason().is_some() {
            assert_corrupt(spool.as_ref(), damaged).await;
        }
    })
    .await;
    assert_eq!(spool.stats().corrupt, 1);
    stop(spool).await;
}
