//! `stream` and `list`: complete, or ended by an error.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tidespool::{Listed, ListedTier, Scan, Tidespool, TieredSpool};
use tidespool_core::{Closed, Spool, SpoolEntry, SpoolId};
use tidespool_testkit::faults::{Call, Fault};
use tidespool_testkit::{payload, wait};

use crate::broken::{Broken, HOUR, LARGE, is_thread};
use crate::setup::{Tiered, enumerate, put, stop};

const ALL: DateTime<Utc> = DateTime::<Utc>::MAX_UTC;

/// One of the ways to get all messages of a spool.
pub(crate) enum Way {
    Enumerate(async_channel::Receiver<SpoolEntry>),
    Stream(Scan<SpoolEntry>),
    List(Scan<Listed>),
}

impl Way {
    /// All ways, one after the other.
    pub(crate) const ALL: [fn(&TieredSpool) -> Self; 3] = [
        |spool| {
            let (sender, receiver) = async_channel::bounded(1);
            spool.enumerate(sender, ALL).expect("enumerate");
            Self::Enumerate(receiver)
        },
        |spool| Self::Stream(spool.stream(ALL).expect("stream")),
        |spool| Self::List(spool.list(ALL).expect("list")),
    ];

    /// Returns the next message. Payloads are compared with what was stored.
    pub(crate) async fn next(&mut self) -> Option<SpoolId> {
        match self {
            Self::Enumerate(receiver) => receiver.recv().await.ok().map(whole),
            Self::Stream(scan) => Some(whole(scan.next().await?.expect("complete"))),
            Self::List(scan) => Some(scan.next().await?.expect("complete").id),
        }
    }
}

pub(crate) fn whole(entry: SpoolEntry) -> SpoolId {
    match entry {
        SpoolEntry::Item { id, data } => {
            payload::read(id, &data).expect("whole");
            id
        }
        SpoolEntry::Corrupt { id, error } => panic!("{id}: {error}"),
    }
}

/// Reads until the end. Returns the number of messages, and the error at the end.
async fn drain<T: Unpin>(scan: &mut Scan<T>) -> (usize, Option<anyhow::Error>) {
    let mut messages = 0;
    while let Some(next) = wait::bounded("the next message", scan.next()).await {
        match next {
            Ok(_) => messages += 1,
            Err(error) => {
                assert!(scan.next().await.is_none(), "nothing comes after the error");
                return (messages, Some(error));
            }
        }
    }
    (messages, None)
}

/// Returns the error of a scan that was cut short.
async fn cut_short<T: Unpin>(scan: &mut Scan<T>) -> anyhow::Error {
    let (messages, error) = drain(scan).await;
    error.unwrap_or_else(|| panic!("it looks complete after {messages} messages"))
}

/// More messages than the channel of a list holds.
const MANY: usize = 3_000;

async fn fill(spool: &dyn Spool, count: usize) {
    for n in 0..count {
        put(spool, 100, n + 1 == count).await;
    }
}

/// Each message is listed with its size and its tier, and its payload is not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_has_sizes_and_tiers_and_reads_no_payload() {
    let broken = Broken::new(|config| config.checkpoint_after(HOUR).dirty_expire(HOUR));
    let spool = broken.start().await;
    let mut expected = Vec::new();
    expected.push((put(spool.as_ref(), 300, true).await, 300, ListedTier::Checkpointed));
    let replaced = put(spool.as_ref(), 301, true).await;
    spool.compact().await.expect("compact");
    let removed = put(spool.as_ref(), 302, true).await;
    expected.push((put(spool.as_ref(), LARGE, true).await, LARGE, ListedTier::Journal));
    expected.push((put(spool.as_ref(), 303, false).await, 303, ListedTier::Memory));
    spool.store(replaced, payload::shared(replaced, 2, 304), false, None).await.expect("store");
    expected.push((replaced, 304, ListedTier::Memory));
    spool.remove(removed).await.expect("remove");

    let reads = |disk: &tidespool_testkit::faults::FaultyStorage| {
        disk.count(Call::Read) + disk.count(Call::ReadInMemory)
    };
    let before = reads(&broken.disk);
    let mut list = spool.list(ALL).expect("list");
    let mut listed = Vec::new();
    while let Some(message) = list.next().await {
        let message = message.expect("complete");
        assert_eq!(message.created(), message.id.created());
        listed.push((message.id, usize::try_from(message.size).unwrap(), message.tier));
    }
    assert_eq!(reads(&broken.disk), before, "no payload is read");
    expected.sort_by_key(|(id, ..)| *id);
    listed.sort_by_key(|(id, ..)| *id);
    assert_eq!(listed, expected);
    let (messages, error) = drain(&mut spool.list(DateTime::<Utc>::MIN_UTC).expect("list")).await;
    assert!(messages == 0 && error.is_none(), "all are newer: {error:?}");
    stop(spool).await;
}

/// A scan that a shutdown cut short looked complete. Its caller could delete what it had not seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_during_a_scan_is_its_last_item() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    fill(spool.as_ref(), MANY).await;
    let (mut stream, mut list) = (spool.stream(ALL).expect("stream"), spool.list(ALL).expect("list"));
    stream.next().await.expect("a message").expect("whole");
    list.next().await.expect("a message").expect("listed");
    stop(spool).await;
    for error in [cut_short(&mut stream).await, cut_short(&mut list).await] {
        assert!(error.root_cause().is::<Closed>(), "{error:#}");
        assert!(error.to_string().contains("cut short"), "{error}");
    }
}

/// The shutdown of one spool of a store ends its scans, and no scan of another spool.
#[tokio::test(flavor = "multi_thread")]
async fn the_shutdown_of_one_spool_is_the_last_item_of_its_scans_only() {
    let tiered = Tiered::new(|config| config);
    let store = Tidespool::open(tiered.config.clone()).await.expect("open");
    let (data, meta) = (store.spool("data").expect("data"), store.spool("meta").expect("meta"));
    fill(&data, MANY).await;
    fill(&meta, MANY).await;
    let (mut of_data, mut of_meta) = (data.list(ALL).expect("list"), meta.list(ALL).expect("list"));
    of_data.next().await.expect("a message").expect("listed");
    data.shutdown().await.expect("shutdown");
    let error = cut_short(&mut of_data).await;
    assert!(error.root_cause().is::<Closed>(), "{error:#}");
    let error = data.list(ALL).expect_err("the spool is shut down");
    assert!(error.root_cause().is::<Closed>(), "{error:#}");
    let (messages, error) = drain(&mut of_meta).await;
    assert!(messages == MANY && error.is_none(), "{messages}, {error:?}");
    store.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_disk_is_the_last_item_of_a_stream() {
    let broken = Broken::new(|config| config.read_wait(Duration::from_millis(1)));
    let spool = broken.start().await;
    for n in 0..60 {
        put(spool.as_ref(), LARGE, n == 59).await;
    }
    spool.compact().await.expect("compact");
    spool.advise_low_memory().await.expect("advise_low_memory");
    broken.disk.inject(Fault::on(Call::Read).file(".seg").always());
    broken.disk.inject(Fault::on(Call::ReadInMemory).file(".seg").always());
    let error = cut_short(&mut spool.stream(ALL).expect("stream")).await;
    assert!(error.root_cause().is::<io::Error>(), "{error:#}");
    assert!(error.to_string().contains("Input/output error"), "{error}");
    // A list reads no payload.
    assert_eq!(drain(&mut spool.list(ALL).expect("list")).await.0, 60);
    broken.disk.heal();
    let (messages, error) = drain(&mut spool.stream(ALL).expect("stream")).await;
    assert!(messages == 60 && error.is_none(), "{messages}, {error:?}");
    stop(spool).await;
}

/// A read that never returns ends the stream, not only one that fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_disk_is_the_last_item_of_a_stream() {
    let broken = Broken::new(|config| config.read_wait(Duration::from_millis(1)));
    let spool = broken.start().await;
    put(spool.as_ref(), LARGE, true).await;
    spool.compact().await.expect("compact");
    spool.advise_low_memory().await.expect("advise_low_memory");
    broken.disk.inject(Fault::on(Call::ReadInMemory).file(".seg").always());
    broken.disk.inject(Fault::on(Call::Read).file(".seg").only(|_| is_thread("tide-enum")).always().block());
    let error = cut_short(&mut spool.stream(ALL).expect("stream")).await;
    let root = error.root_cause().downcast_ref::<io::Error>();
    assert_eq!(root.map(io::Error::kind), Some(io::ErrorKind::TimedOut), "{error:#}");
    broken.disk.heal();
    assert_eq!(drain(&mut spool.stream(ALL).expect("stream")).await.0, 1);
    stop(spool).await;
}

/// A panic of the scan's thread only closed the channel.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_panics_is_the_last_item_of_a_stream() {
    let broken = Broken::new(|config| config);
    let spool = broken.start().await;
    put(spool.as_ref(), LARGE, true).await;
    spool.compact().await.expect("compact");
    spool.advise_low_memory().await.expect("advise_low_memory");
    broken.disk.watch(|_| assert!(!is_thread("tide-enum"), "on purpose"));
    let error = cut_short(&mut spool.stream(ALL).expect("stream")).await;
    assert!(error.to_string().contains("a thread of the spool has died"), "{error}");
    broken.disk.watch(|_| ());
    spool.shutdown().await.expect_err("it reports the thread");
}

/// More scans are begun and dropped than may run at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_scan_ends() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    fill(spool.as_ref(), MANY).await;
    for _ in 0..70 {
        let mut begun = None;
        wait::until("a scan may begin", || match spool.stream(ALL) {
            Ok(scan) => {
                begun = Some((scan, spool.list(ALL)));
                true
            }
            Err(error) => {
                let root = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
                assert_eq!(root, Some(io::ErrorKind::WouldBlock), "{error:#}");
                false
            }
        })
        .await;
        let (mut scan, _list) = begun.expect("a scan");
        scan.next().await.expect("a message").expect("whole");
    }
    assert_eq!(enumerate(spool.as_ref()).await.len(), MANY);
    stop(spool).await;
}

/// The ids that a list returns.
pub(crate) async fn ids<T: Unpin>(mut scan: Scan<T>, id_of: fn(T) -> SpoolId) -> BTreeSet<SpoolId> {
    let mut ids = BTreeSet::new();
    while let Some(next) = scan.next().await {
        let id = id_of(next.expect("complete"));
        assert!(ids.insert(id), "{id} came twice");
    }
    ids
}
