use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidespool::TieredSpool;
use tidespool::inspect::Inspector;
use tidespool_core::{Corrupt, NotFound, Spool, SpoolEntry, SpoolId};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};

use crate::broken::{Broken, HOUR};
use crate::setup::{Tiered, assert_absent, assert_holds, copy_dir, enumerate, healthy, put, stop, walk};

/// Larger than `separate_above`: these stay in segments. The others are whole in sled.
const LARGE: usize = 20_000;
const SMALL: usize = 700;

/// A spool with messages of both kinds, everything filed.
async fn filed(tiered: &Tiered) -> (Arc<TieredSpool>, Vec<(SpoolId, usize)>) {
    let spool = tiered.start().await;
    let mut stored = Vec::new();
    for n in 0..60 {
        let len = if n % 2 == 0 { LARGE + n } else { SMALL + n };
        stored.push((put(spool.as_ref(), len, n % 7 == 0).await, len));
    }
    spool.compact().await.expect("compact");
    (spool, stored)
}

/// Where on disk the bytes of a message are, by looking for some of them: (file, place of byte `at`).
fn places(dir: &Path, id: SpoolId, len: usize, at: usize) -> Vec<(PathBuf, u64)> {
    let data = payload::make(id, 1, len);
    let needle = &data[at..at + 32];
    let mut found = Vec::new();
    for path in walk(dir).into_iter().filter(|path| path.is_file()) {
        let bytes = fs::read(&path).unwrap();
        let hits = bytes.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
        found.extend(hits.map(|(place, _)| (path.clone(), place as u64)));
    }
    found
}

/// Flips one bit, wherever the message's bytes are.
fn flip_a_bit(dir: &Path, id: SpoolId, len: usize, at: usize) {
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

/// Every message but `damaged` is whole, and that one is reported, by load and by enumerate.
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

/// A flipped bit damages the message it is in, which says so until it is removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_damages_one_message() {
    for at in [0, 8, LARGE / 2, LARGE - 40] {
        let tiered = Tiered::new(|config| config);
        let (spool, mut stored) = filed(&tiered).await;
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

/// Nor does a running spool return what it cannot vouch for.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_noticed_by_a_running_spool() {
    let tiered = Tiered::new(|config| config);
    let (spool, stored) = filed(&tiered).await;
    spool.advise_low_memory().await.expect("advise_low_memory");
    let (damaged, len) = stored[10];
    flip_a_bit(&tiered.path(), damaged, len, LARGE / 2);
    assert_only_this_is_damaged(spool.as_ref(), &stored, damaged).await;
    // A new version is a new message.
    healthy(spool.as_ref()).await;
    spool.store(damaged, payload::shared(damaged, 1, len), true, None).await.expect("store");
    for &(id, len) in &stored {
        assert_holds(spool.as_ref(), id, len).await;
    }
    stop(spool).await;
}

/// What came back, after damage to a whole file: each message whole, reported as damaged, or missing.
#[derive(Debug, Default)]
struct Account {
    whole: BTreeMap<SpoolId, usize>,
    damaged: Vec<SpoolId>,
    missing: Vec<SpoolId>,
}

/// Takes the account; wrong bytes and messages from nowhere end the test. What is missing has to have been reported.
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
            SpoolEntry::Item { id, .. } => assert!(account.whole.contains_key(&id), "{id} from nowhere"),
            SpoolEntry::Corrupt { id, .. } => assert!(account.damaged.contains(&id), "{id} is not damaged"),
        }
    }
    account
}

fn assert_large_are_whole(account: &Account, stored: &[(SpoolId, usize)]) {
    for (id, len) in stored.iter().filter(|(_, len)| *len >= LARGE) {
        assert_eq!(account.whole.get(id), Some(len), "large message {id}: {account:?}");
    }
}

/// Large messages are in the segments, and records there describe themselves: they come back without sled. The rest
/// is reported, and the spool works on.
#[tokio::test(flavor = "multi_thread")]
async fn without_sleds_directory_large_messages_come_back() {
    let tiered = Tiered::new(|config| config);
    let (spool, stored) = filed(&tiered).await;
    stop(spool).await;
    fs::remove_dir_all(tiered.path().join("sled")).unwrap();

    let spool = tiered.start().await;
    let found = account(&spool, &stored).await;
    assert_large_are_whole(&found, &stored);
    assert!(!found.missing.is_empty(), "small messages cannot come back: is sled's directory elsewhere?");
    healthy(spool.as_ref()).await;
    let id = put(spool.as_ref(), SMALL, true).await;
    stop(spool).await;
    // Reported once: what is there now is complete.
    let spool = tiered.start().await;
    for (&id, &len) in &found.whole {
        assert_holds(spool.as_ref(), id, len).await;
    }
    assert_holds(spool.as_ref(), id, SMALL).await;
    stop(spool).await;
}

/// sled opens a truncated file without a word, with fewer messages in it. The ledger notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_sled_file_is_noticed() {
    for keep in [0, 1, 4] {
        let tiered = Tiered::new(|config| config);
        let (spool, stored) = filed(&tiered).await;
        stop(spool).await;
        let db = tiered.path().join("sled").join("db");
        let file = fs::File::options().write(true).open(&db).unwrap();
        file.set_len(file.metadata().unwrap().len() * keep / 8).unwrap();

        let spool = tiered.start().await;
        assert_large_are_whole(&account(&spool, &stored).await, &stored);
        stop(spool).await;
    }
}

/// Flipped bits anywhere in sled's file: right bytes or a report, never silence.
#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_in_sled_are_noticed() {
    for seed in 0..8_u64 {
        let tiered = Tiered::new(|config| config);
        let (spool, stored) = filed(&tiered).await;
        stop(spool).await;
        let db = tiered.path().join("sled").join("db");
        let file = fs::File::options().read(true).write(true).open(&db).unwrap();
        let len = file.metadata().unwrap().len();
        let mut rng = tidespool_testkit::rng::Rng::new(seed);
        for _ in 0..40 {
            let place = rng.below(len);
            let mut byte = [0];
            file.read_exact_at(&mut byte, place).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << rng.below(8))], place).unwrap();
        }
        let spool = tiered.start().await;
        assert_large_are_whole(&account(&spool, &stored).await, &stored);
        stop(spool).await;
    }
}

/// Without its ledger the spool gives all the messages, for they are all there.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_ledger_nothing_is_lost() {
    let tiered = Tiered::new(|config| config);
    let (spool, stored) = filed(&tiered).await;
    stop(spool).await;
    fs::remove_file(tiered.path().join("ledger")).unwrap();
    let spool = tiered.start().await;
    let found = account(&spool, &stored).await;
    assert_eq!(found.whole.len(), stored.len());
    stop(spool).await;
}

/// A segment cut short takes its messages with it, and no others.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_segment_is_noticed() {
    let tiered = Tiered::new(|config| config);
    let (spool, stored) = filed(&tiered).await;
    stop(spool).await;
    let (id, len) = stored[10];
    // Wherever it is: a segment that was rewritten still has its old copy.
    for (path, place) in places(&tiered.path(), id, len, 64) {
        fs::File::options().write(true).open(path).unwrap().set_len(place).unwrap();
    }

    let spool = tiered.start().await;
    let found = account(&spool, &stored).await;
    assert!(!found.whole.contains_key(&id), "its bytes are gone");
    for (id, len) in stored.iter().filter(|(_, len)| *len < LARGE) {
        assert_eq!(found.whole.get(id), Some(len), "small message {id} is in sled");
    }
    stop(spool).await;
}

/// Files that somebody else has put there are left alone, and do not count as messages.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_files_are_left_alone() {
    let tiered = Tiered::new(|config| config);
    let (spool, stored) = filed(&tiered).await;
    stop(spool).await;
    let journal = tiered.path().join("journal");
    let foreign = [
        journal.join("README"),
        journal.join("zzzzzzzz.seg"),
        journal.join("00000001.seg.bak"),
        tiered.path().join("notes.txt"),
    ];
    for path in &foreign {
        fs::write(path, "somebody else's").unwrap();
    }
    fs::create_dir(journal.join("folder")).unwrap();
    let spool = tiered.start().await;
    assert_eq!(account(&spool, &stored).await.whole.len(), stored.len());
    spool.compact().await.expect("compact");
    stop(spool).await;
    for path in &foreign {
        assert_eq!(fs::read(path).unwrap(), b"somebody else's", "{}", path.display());
    }
    assert!(journal.join("folder").is_dir());
}

/// A file with a segment's name and nothing of a segment in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_of_rubbish_takes_nothing_with_it() {
    let tiered = Tiered::new(|config| config);
    let (spool, stored) = filed(&tiered).await;
    stop(spool).await;
    let journal = tiered.path().join("journal");
    fs::write(journal.join("00009999.seg"), vec![0x5a; 256 * 1024]).unwrap();
    fs::write(journal.join("00009998.seg"), "").unwrap();
    let spool = tiered.start().await;
    assert_eq!(account(&spool, &stored).await.whole.len(), stored.len());
    stop(spool).await;
}

/// A message that is damaged is damaged once, however often it is asked for: retries once kept the gate shut for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_message_that_is_asked_for_again_and_again_is_one_finding() {
    let tiered = Tiered::new(|config| config);
    let (spool, stored) = filed(&tiered).await;
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

/// A checkpoint that did not end leaves open what sled holds of it, and not of what was filed before: a sled from earlier is noticed. It once was taken
/// for good wherever the journal had as many records as were missing, and segments that the lost ones pointed into were given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_sled_from_earlier_is_noticed_after_a_checkpoint_that_did_not_end() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR));
    let (sled, earlier) = (broken.tiered.path().join("sled"), broken.tiered.path().join("../earlier"));
    let mut stored = Vec::new();
    for round in 0..2 {
        let spool = broken.start().await;
        for _ in 0..50 {
            stored.push(put(spool.as_ref(), SMALL, true).await);
        }
        spool.compact().await.expect("compact");
        stop(spool).await;
        if round == 0 {
            copy_dir(&sled, &earlier);
        }
    }
    let spool = broken.start().await;
    let mut younger = Vec::new();
    for _ in 0..200 {
        younger.push(put(spool.as_ref(), SMALL, true).await);
    }
    // Everything is in sled by then, and not known to be on stable storage.
    broken.disk.inject(Fault::on(Call::Sync).file("db").always());
    spool.compact().await.expect_err("sled can't be made durable");
    drop(spool);
    broken.disk.heal();
    fs::remove_dir_all(&sled).unwrap();
    fs::rename(&earlier, &sled).unwrap();

    let verified = Inspector::open(&broken.tiered.path()).expect("open").verify().expect("verify");
    assert!(!verified.damage.is_empty(), "{verified:?}");
    let spool = broken.start().await;
    assert_eq!(spool.recovery().lost, 50, "{:?}", spool.recovery());
    assert_eq!(enumerate(spool.as_ref()).await.len(), 250);
    for id in stored[..50].iter().chain(&younger) {
        assert_holds(spool.as_ref(), *id, SMALL).await;
    }
    stop(spool).await;
    broken
        .assert_reopens_with(&stored[..50].iter().chain(&younger).map(|id| (*id, SMALL)).collect::<Vec<_>>())
        .await;
}

/// What was removed may come back with what sled lost. It does not make up for messages that are gone.
#[tokio::test(flavor = "multi_thread")]
async fn removed_messages_that_come_back_are_not_counted_for_lost_ones() {
    for is_forgotten in [false, true] {
        let broken = Broken::new(|config| config.checkpoint_after(Duration::ZERO));
        let spool = broken.start().await;
        let mut large = Vec::new();
        for _ in 0..30 {
            large.push(put(spool.as_ref(), LARGE, true).await);
        }
        for _ in 0..3 {
            put(spool.as_ref(), SMALL, true).await;
        }
        spool.compact().await.expect("compact");
        let filed = spool.stats().checkpointed_records;
        for id in large.drain(..6) {
            spool.remove(id).await.expect("remove");
        }
        wait::until("the removals are durable", || spool.stats().gauges.dirty_entries == 0).await;
        let mut live = 27;
        // The segment with the removals is used again when there is something else to file, and nothing tells of them then.
        while is_forgotten && spool.stats().checkpointed_records < filed + 6 {
            put(spool.as_ref(), SMALL, true).await;
            live += 1;
        }
        stop(spool).await;
        fs::remove_dir_all(broken.tiered.path().join("sled")).unwrap();
        let spool = broken.start().await;
        let report = spool.recovery().clone();
        assert_eq!(report.refiled, if is_forgotten { 30 } else { 24 }, "{report:?}");
        let found = enumerate(spool.as_ref()).await.len() as u64;
        let gone = live - (found - (report.refiled - 24));
        // Whether sled still had what was removed and not yet filed is not known: it counts.
        assert_eq!(report.lost, if is_forgotten { gone } else { gone + 6 }, "{found} of {live}: {report:?}");
        for id in large {
            assert_holds(spool.as_ref(), id, LARGE).await;
        }
        stop(spool).await;
    }
}
