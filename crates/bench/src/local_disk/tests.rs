use std::collections::HashMap;
use std::time::Duration;

use chrono::TimeDelta;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

async fn spool() -> (LocalDiskSpool, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (LocalDiskSpool::open(dir.path()).await.unwrap(), dir)
}

fn payload(text: &str) -> Arc<Box<[u8]>> {
    Arc::new(text.as_bytes().into())
}

async fn enumerated(spool: &LocalDiskSpool, start_time: DateTime<Utc>) -> HashMap<SpoolId, Vec<u8>> {
    let (sender, receiver) = async_channel::bounded(1);
    spool.enumerate(sender, start_time).unwrap();
    let mut found = HashMap::new();
    while let Ok(entry) = receiver.recv().await {
        let SpoolEntry::Item { id, data } = entry else { panic!("{entry:?}") };
        assert!(found.insert(id, data).is_none(), "{id} came twice");
    }
    found
}

fn later() -> DateTime<Utc> {
    Utc::now() + TimeDelta::seconds(60)
}

#[tokio::test]
async fn stores_replaces_loads_and_removes() {
    let (spool, _dir) = spool().await;
    let id = SpoolId::new();
    for (text, sync) in [("first", false), ("second", true), ("", false)] {
        spool.store(id, payload(text), sync, None).await.unwrap();
        assert_eq!(spool.load(id).await.unwrap(), text.as_bytes());
    }
    spool.remove(id).await.unwrap();
    let err = spool.load(id).await.unwrap_err();
    assert!(err.root_cause().is::<NotFound>(), "{err:#}");
    spool.remove(id).await.unwrap();
}

#[tokio::test]
async fn messages_are_there_when_opened_again() {
    let (spool, dir) = spool().await;
    let id = SpoolId::new();
    spool.store(id, payload("kept"), true, None).await.unwrap();
    spool.shutdown().await.unwrap();
    drop(spool);
    let half_written = dir.path().join("new/half");
    std::fs::write(&half_written, "hal").unwrap();

    let spool = LocalDiskSpool::open(dir.path()).await.unwrap();
    assert_eq!(spool.load(id).await.unwrap(), b"kept");
    assert_eq!(enumerated(&spool, later()).await.len(), 1);
    assert!(!half_written.exists());
}

#[tokio::test]
async fn enumerates_what_is_older_than_the_start_and_what_has_no_time() {
    let (spool, dir) = spool().await;
    let mut expected = HashMap::new();
    for n in 0..40 {
        let id = SpoolId::new();
        spool.store(id, payload(&n.to_string()), false, None).await.unwrap();
        expected.insert(id, n.to_string().into_bytes());
    }
    let timeless = SpoolId::from(Uuid::new_v4());
    spool.store(timeless, payload("timeless"), false, None).await.unwrap();
    expected.insert(timeless, b"timeless".to_vec());
    std::fs::write(dir.path().join("data/not-a-message"), "").unwrap();

    let newest = SpoolId::new();
    spool.store(newest, payload("new"), false, None).await.unwrap();
    assert_eq!(enumerated(&spool, newest.created().unwrap()).await, expected);
    assert_eq!(enumerated(&spool, later()).await.len(), expected.len() + 1);
}

#[tokio::test]
async fn shutdown_ends_an_enumeration_that_is_not_received() {
    let (spool, _dir) = spool().await;
    for _ in 0..3 {
        spool.store(SpoolId::new(), payload("x"), false, None).await.unwrap();
    }
    let (sender, receiver) = async_channel::bounded(1);
    spool.enumerate(sender, later()).unwrap();
    assert!(receiver.recv().await.is_ok());
    spool.shutdown().await.unwrap();
    spool.shutdown().await.unwrap();
    let mut rest = 0;
    while receiver.recv().await.is_ok() {
        rest += 1;
    }
    assert!(rest <= 1, "{rest} entries were sent after the shutdown");

    let err = spool.store(SpoolId::new(), payload("x"), false, None).await.unwrap_err();
    assert!(err.root_cause().is::<Closed>(), "{err:#}");
}

#[tokio::test]
async fn a_dropped_receiver_ends_its_enumeration() {
    let (spool, _dir) = spool().await;
    for _ in 0..3 {
        spool.store(SpoolId::new(), payload("x"), false, None).await.unwrap();
    }
    let (sender, receiver) = async_channel::bounded(1);
    drop(receiver);
    spool.enumerate(sender, later()).unwrap();
    let mut enumerations = std::mem::take(&mut *spool.enumerations.lock().unwrap());
    enumerations.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_deadline_that_passed_leaves_nothing_behind() {
    let (spool, dir) = spool().await;
    let id = SpoolId::new();
    let past = Instant::now() - Duration::from_millis(1);
    let err = spool.store(id, payload("late"), false, Some(past)).await.unwrap_err();
    assert!(err.root_cause().is::<SpoolCallerDeadlineExceeded>(), "{err:#}");
    assert!(spool.load(id).await.unwrap_err().root_cause().is::<NotFound>());
    assert_eq!(list(&dir.path().join("new")).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(list(&dir.path().join("data")).unwrap(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn cleanup_removes_empty_directories_beside_traffic() {
    let (spool, dir) = spool().await;
    let spool = Arc::new(spool);
    let traffic = tokio::spawn({
        let spool = Arc::clone(&spool);
        async move {
            for _ in 0..200 {
                let id = SpoolId::new();
                spool.store(id, payload("x"), false, None).await.unwrap();
                spool.remove(id).await.unwrap();
            }
        }
    });
    while !traffic.is_finished() {
        spool.cleanup().await.unwrap();
    }
    traffic.await.unwrap();
    spool.cleanup().await.unwrap();
    assert_eq!(list(&dir.path().join("data")).unwrap(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn an_io_error_is_neither_not_found_nor_silent() {
    let (spool, _dir) = spool().await;
    let id = SpoolId::new();
    // A directory is in the place of the file.
    std::fs::create_dir_all(place(&spool.root, id).join("in-the-way")).unwrap();
    for err in [
        spool.load(id).await.unwrap_err(),
        spool.remove(id).await.unwrap_err(),
        spool.store(id, payload("x"), false, None).await.unwrap_err(),
    ] {
        assert!(err.root_cause().is::<io::Error>(), "{err:#}");
        assert!(err.to_string().contains(&id.to_string()), "{err:#}");
    }
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let (_spool, dir) = spool().await;
    let err = LocalDiskSpool::open(dir.path()).await.unwrap_err();
    assert!(err.root_cause().is::<Locked>(), "{err:#}");
}

#[test]
fn ids_minted_in_a_row_spread_over_the_directories() {
    let parents: std::collections::HashSet<_> =
        (0..10_000).map(|_| place(Path::new(""), SpoolId::new()).parent().unwrap().to_owned()).collect();
    assert!(parents.len() > 200, "{}", parents.len());
}
