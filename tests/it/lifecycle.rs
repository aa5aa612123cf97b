use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tidespool::{Config, TieredSpool};
use tidespool_core::{Locked, Spool, UnsupportedFormat};
use tidespool_testkit::wait;

use crate::setup::{MIB, Tiered, assert_holds, put, small, stop, walk};

/// Set for the child of [`a_spool_in_use_by_another_process_is_named`]: the directory it opens.
const CHILD_DIR: &str = "TIDESPOOL_LIFECYCLE_DIR";

async fn opening_error(path: &Path) -> anyhow::Error {
    match TieredSpool::open(small(path)).await {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(err) => err,
    }
}

/// Within one process, too, a directory has one owner at a time, and can be reopened after it.
#[tokio::test(flavor = "multi_thread")]
async fn the_error_of_a_second_opening_names_the_owner() {
    let tiered = Tiered::new(|config| config);
    let first = tiered.start().await;
    let id = put(first.as_ref(), 5000, false).await;
    let err = opening_error(&tiered.path()).await;
    let locked = err.root_cause().downcast_ref::<Locked>().unwrap_or_else(|| panic!("{err:#}"));
    assert_eq!(locked.pid, Some(std::process::id()));
    assert_eq!(locked.path, tiered.path());
    // The first spool is not affected, and releases the directory at its shutdown.
    assert_holds(first.as_ref(), id, 5000).await;
    first.shutdown().await.expect("shutdown");
    let second = tiered.start().await;
    assert_holds(second.as_ref(), id, 5000).await;
    drop(first);
    assert_holds(second.as_ref(), id, 5000).await;
    stop(second).await;
}

/// Not a test itself: runs in the child process.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_holds_a_spool() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let spool = TieredSpool::open(small(Path::new(&dir))).await.expect("open");
    println!("\nopened");
    // Blocks until the parent closes the input.
    std::io::stdin().read_line(&mut String::new()).expect("reading the input");
    spool.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_in_use_by_another_process_is_named() {
    let tiered = Tiered::new(|config| config);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lifecycle::child_that_holds_a_spool", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, tiered.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "opened"), "the child did not open the spool");
    let err = opening_error(&tiered.path()).await;
    let locked = err.root_cause().downcast_ref::<Locked>().unwrap_or_else(|| panic!("{err:#}"));
    assert_eq!(locked.pid, Some(child.id()));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    stop(tiered.start().await).await;
}

/// The kernel releases the lock of a dead owner. The remaining lock file blocks no opening.
#[tokio::test(flavor = "multi_thread")]
async fn the_lock_file_of_a_dead_process_blocks_no_opening() {
    let tiered = Tiered::new(|config| config);
    stop(tiered.start().await).await;
    std::fs::write(tiered.path().join("LOCK"), "999999999\n").unwrap();
    stop(tiered.start().await).await;
}

/// If the directory cannot be created or written, the error names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_cannot_be_created_is_named() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    for path in [file.clone(), file.join("spool"), dir.path().join("not-there").join("spool")] {
        let err = format!("{:#}", opening_error(&path).await);
        assert!(err.contains(&*path.to_string_lossy()), "{} is not named: {err}", path.display());
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"not a directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_directory_is_named() {
    if rustix::process::geteuid().is_root() {
        println!("skipped: permission bits do not stop root");
        return;
    }
    let dir = TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
    let path = dir.path().join("spool");
    let err = format!("{:#}", opening_error(&path).await);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    assert!(err.contains(&*path.to_string_lossy()), "{err}");
}

/// File names are bytes, not text.
#[tokio::test(flavor = "multi_thread")]
async fn unusual_paths_work() {
    let dir = TempDir::new().unwrap();
    let real = dir.path().join("real");
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
    let not_utf8 = OsString::from_vec(b"not \xff utf-8".to_vec());
    let paths = [
        relative(&dir.path().join("relative")),
        dir.path().join("with spaces, ünïcödé and \"quotes\""),
        dir.path().join(not_utf8),
        dir.path().join("real/../dots"),
        dir.path().join("slash/"),
        dir.path().join("link"),
    ];
    for path in paths {
        // The first round creates the spool, the second one finds it.
        let mut stored = Vec::new();
        for len in [100, 9000] {
            let spool = TieredSpool::open(small(&path)).await;
            let spool = spool.unwrap_or_else(|err| panic!("{}: {err:#}", path.display()));
            stored.push((put(&spool, len, false).await, len));
            for &(id, len) in &stored {
                assert_holds(&spool, id, len).await;
            }
            spool.compact().await.expect("compact");
            spool.shutdown().await.expect("shutdown");
        }
    }
}

/// The same path, relative to the working directory.
fn relative(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap().canonicalize().unwrap();
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    let parent = path.parent().unwrap().canonicalize().unwrap();
    up.join(parent.strip_prefix("/").unwrap()).join(path.file_name().unwrap())
}

/// Files are private whatever the umask is.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_accessible_to_their_owner_only() {
    let tiered = Tiered::new(|config| config.ballast(64 * 1024));
    let spool = tiered.start().await;
    for len in [10, 5000, 600_000] {
        put(spool.as_ref(), len, true).await;
    }
    spool.compact().await.expect("compact");
    let check = |when: &str| {
        for path in walk(&tiered.path()) {
            let metadata = path.symlink_metadata().unwrap();
            let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
            let mode = metadata.permissions().mode() & 0o7777;
            assert_eq!(mode, expected, "{} has mode {mode:o} {when}", path.display());
        }
    };
    check("while the spool is open");
    stop(spool).await;
    check("after shutdown");
}

/// A spool of a later version is rejected and not changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_rejected_without_changes() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    put(spool.as_ref(), 9000, true).await;
    stop(spool).await;
    let format = tiered.path().join("FORMAT");
    let text = std::fs::read_to_string(&format).unwrap();
    std::fs::write(&format, with_first_number(&text, "987654")).unwrap();

    let before = contents(&tiered.path());
    let err = opening_error(&tiered.path()).await;
    let refused = err.root_cause().downcast_ref::<UnsupportedFormat>().unwrap_or_else(|| panic!("{err:#}"));
    assert!(refused.found.contains("987654"), "{refused}");
    assert!(contents(&tiered.path()) == before, "something was changed");

    // With the original file, it opens again.
    std::fs::write(&format, text).unwrap();
    stop(tiered.start().await).await;
}

/// An unreadable format file must not lead to a new spool over the messages.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_format_is_rejected_without_changes() {
    let tiered = Tiered::new(|config| config);
    let spool = tiered.start().await;
    put(spool.as_ref(), 9000, true).await;
    stop(spool).await;
    for text in ["", "something else entirely\n"] {
        std::fs::write(tiered.path().join("FORMAT"), text).unwrap();
        let before = contents(&tiered.path());
        let err = format!("{:#}", opening_error(&tiered.path()).await);
        assert!(err.contains("FORMAT"), "{err}");
        assert!(contents(&tiered.path()) == before, "something was changed");
    }
}

/// `text` with another first number: the version of the layout.
fn with_first_number(text: &str, number: &str) -> String {
    let from = text.find(|c: char| c.is_ascii_digit()).expect("a version");
    let rest = text[from..].trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{}{number}{rest}", &text[..from])
}

/// All files with their contents, without the lock file, which an opening may write.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = walk(dir).into_iter().filter(|path| path.is_file() && !path.ends_with("LOCK"));
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// A dropped `open` future releases the directory.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_opening_is_abandoned() {
    let tiered = Tiered::new(|config| config);
    stop(tiered.start().await).await;
    for _ in 0..3 {
        let mut opening = Box::pin(TieredSpool::open(tiered.config.clone()));
        assert!(futures_lite::future::poll_once(&mut opening).await.is_none());
        drop(opening);
        let opened = wait::bounded("the next opening", async {
            loop {
                match TieredSpool::open(tiered.config.clone()).await {
                    Ok(spool) => break spool,
                    // The previous opening still runs, and ends by itself.
                    Err(err) => assert!(format!("{err:#}").contains("in use"), "{err:#}"),
                }
            }
        });
        opened.await.shutdown().await.expect("shutdown");
    }
}

/// After the shutdown another spool may own the directory, and segments that were free may hold
/// messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_reconfiguration_after_the_shutdown_changes_no_files() {
    let hour = Duration::from_secs(3600);
    let tiered = Tiered::new(|config| config.checkpoint_after(hour));
    let before = tiered.start().await;
    for _ in 0..60 {
        let id = put(before.as_ref(), 50_000, true).await;
        before.remove(id).await.unwrap();
    }
    before.compact().await.unwrap();
    assert!(before.stats().gauges.journal_segments_free > 4);
    before.shutdown().await.unwrap();
    let after = tiered.start().await;
    let mut ids = Vec::new();
    for _ in 0..60 {
        ids.push(put(after.as_ref(), 50_000, true).await);
    }
    let changed = before.reconfigure(Config::clone(&before.config()).journal_capacity(MIB));
    stop(after).await;
    let after = tiered.start().await;
    assert_eq!(after.recovery().damage, []);
    for id in ids {
        assert_holds(after.as_ref(), id, 50_000).await;
    }
    stop(after).await;
    assert!(changed.is_err(), "a closed spool accepted new settings");
}

/// If a pipe has the name of one of the spool's files, the error names it. Opening a pipe would
/// wait for a writer.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_in_place_of_a_file_does_not_block_the_opening() {
    for name in ["FORMAT", "manifest"] {
        let tiered = Tiered::new(|config| config);
        let spool = tiered.start().await;
        let id = put(spool.as_ref(), 700, true).await;
        stop(spool).await;
        let (path, kept) = (tiered.path().join(name), tiered.path().join("kept"));
        std::fs::rename(&path, &kept).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let opened = wait::bounded("opening", TieredSpool::open(tiered.config.clone())).await;
        let error = format!("{:#}", opened.expect_err("a pipe was opened"));
        assert!(error.contains(&path.display().to_string()), "{error}");
        std::fs::rename(&kept, &path).unwrap();
        let spool = tiered.start().await;
        assert_holds(spool.as_ref(), id, 700).await;
        stop(spool).await;
    }
}
