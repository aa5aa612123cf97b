use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tidespool::inspect::{Inspector, salvage};
use tidespool::{ConfigError, TieredSpool};
use tidespool_core::{
    Closed, DamagedSpool, Locked, NotFound, Spool as _, SpoolId, TooLarge, UnsupportedFormat,
};
use tidespool_testkit::payload;

use crate::setup::{Tiered, put, small};

/// The outermost text has all that is below it, each text once, and the root cause is still a type.
fn assert_whole<T: std::error::Error + Send + Sync + 'static>(doing: &str, error: &anyhow::Error) {
    let (said, root) = (error.to_string(), error.root_cause());
    assert!(root.is::<T>(), "{doing}: {error:?}");
    assert!(said.contains(&root.to_string()), "{doing}: {said} lacks {root}");
    assert_eq!(said.matches(&root.to_string()).count(), 1, "{doing}: {said}");
    assert!(error.chain().count() <= 2, "{doing}: {error:?}");
}

/// A server that logs `{error}` had "opening the spool X" in its log, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_text_of_an_error_has_its_cause() {
    let dir = TempDir::new().unwrap();
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    let (id, absent) = (put(spool.as_ref(), 9000, true).await, SpoolId::new());
    let open = async |path: &Path| TieredSpool::open(small(path)).await.expect_err("opened");

    let error = open(&tiered.path()).await;
    assert_whole::<Locked>("open", &error);
    assert!(error.to_string().starts_with("opening the spool"), "{error}");
    assert!(error.to_string().contains("this process itself"), "{error}");
    assert!(!error.to_string().contains("stop that process"), "{error}");
    assert!(error.is::<Locked>(), "it is found without asking for the root");
    assert_whole::<Locked>("inspect", &Inspector::open(&tiered.path()).unwrap_err());
    assert_whole::<Locked>("repair", &salvage(&tiered.path(), &dir.path().join("new")).unwrap_err());
    assert_whole::<NotFound>("load", &spool.load(absent).await.unwrap_err());
    let large = payload::shared(absent, 1, 3 << 20);
    assert_whole::<TooLarge>("store", &spool.store(absent, large, true, None).await.unwrap_err());
    spool.shutdown().await.unwrap();
    assert_whole::<Closed>("load", &spool.load(id).await.unwrap_err());
    assert_whole::<Closed>("remove", &spool.remove(id).await.unwrap_err());
    assert_whole::<Closed>("cleanup", &spool.cleanup().await.unwrap_err());
    assert_whole::<Closed>("compact", &spool.compact().await.unwrap_err());
    assert_whole::<Closed>("advise", &spool.advise_low_memory().await.unwrap_err());
    let (sender, _receiver) = async_channel::bounded(1);
    assert_whole::<Closed>("enumerate", &spool.enumerate(sender, chrono::Utc::now()).unwrap_err());

    let missing = dir.path().join("missing");
    assert_whole::<std::io::Error>("open", &open(&missing.join("spool")).await);
    assert_whole::<std::io::Error>("inspect", &Inspector::open(&missing).unwrap_err());
    assert_whole::<std::io::Error>("repair", &salvage(&missing, &dir.path().join("new")).unwrap_err());
    assert_whole::<ConfigError>("open", &open(Path::new("")).await);
    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
    assert_whole::<UnsupportedFormat>("open", &open(&foreign).await);
    // A ledger that can't be opened: an error of our own around the system's.
    let ledger = tiered.path().join("ledger");
    let kept = fs::read(&ledger).unwrap();
    fs::remove_file(&ledger).unwrap();
    std::os::unix::fs::symlink("ledger", &ledger).unwrap();
    let error = open(&tiered.path()).await;
    assert_whole::<std::io::Error>("open", &error);
    assert!(error.to_string().contains(&ledger.display().to_string()), "{error}");
    fs::remove_file(&ledger).unwrap();
    fs::write(&ledger, kept).unwrap();
    fs::write(tiered.path().join("FORMAT"), "tidespool 1\nid x\n").unwrap();
    assert_whole::<DamagedSpool>("open", &open(&tiered.path()).await);
}
