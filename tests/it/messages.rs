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

/// Asserts that the outermost text contains the root cause once, and that the root cause is a `T`.
fn assert_whole<T: std::error::Error + Send + Sync + 'static>(doing: &str, error: &anyhow::Error) {
    let (text, root) = (error.to_string(), error.root_cause());
    assert!(root.is::<T>(), "{doing}: {error:?}");
    assert!(text.contains(&root.to_string()), "{doing}: {text} lacks {root}");
    assert_eq!(text.matches(&root.to_string()).count(), 1, "{doing}: {text}");
    assert!(error.chain().count() <= 2, "{doing}: {error:?}");
}

/// A server that logged `{error}` got "opening the spool X" and no cause.
#[tokio::test(flavor = "multi_thread")]
async fn the_outermost_text_of_an_error_contains_its_cause() {
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
    assert!(error.is::<Locked>(), "the error itself is a `Locked`, not only its root cause");
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
    // A manifest that cannot be opened: an error of Tidespool that wraps an I/O error.
    let manifest = tiered.path().join("manifest");
    let kept = fs::read(&manifest).unwrap();
    fs::remove_file(&manifest).unwrap();
    std::os::unix::fs::symlink("manifest", &manifest).unwrap();
    let error = open(&tiered.path()).await;
    assert_whole::<std::io::Error>("open", &error);
    assert!(error.to_string().contains(&manifest.display().to_string()), "{error}");
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, kept).unwrap();
    fs::write(tiered.path().join("FORMAT"), "tidespool 2\nid x\n").unwrap();
    assert_whole::<DamagedSpool>("open", &open(&tiered.path()).await);
}
