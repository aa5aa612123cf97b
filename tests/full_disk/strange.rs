use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use tidespool::TieredSpool;
use tidespool_core::{DamagedSpool, Spool as _, SpoolId};
use tidespool_testkit::{payload, wait};

use crate::mount::{Kind, Mount};
use crate::setup::{KIB, Live, MIB, SIZE, config, durable, healthy, start, stop};

/// ramfs reports zero blocks, as some FUSE file systems do. The health gate treated that as an
/// unknown size, but the segment pool and the ballast treated it as a full disk, so no spool could
/// be created.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_without_a_size_has_space() {
    let Some(mount) = Mount::make(Kind::Ramfs, SIZE) else { return };
    let spool = start(mount.path()).await;
    assert!(mount.path().join("spool/ballast").exists(), "no ballast");
    let mut live = Live::default();
    live.store_all(&spool, 200).await;
    spool.compact().await.expect("compact");
    live.remove(&spool, 3).await;
    live.store_all(&spool, 40).await;
    durable(&spool).await;
    assert_eq!(spool.unhealthy_reason(), None);
    stop(spool).await;
    stop(live.open(mount.path()).await).await;
}

/// Environment variable of a child: its task.
const CHILD: &str = "TIDESPOOL_STRANGE_CHILD";
/// Environment variable of a child: its directory.
const CHILD_DIR: &str = "TIDESPOOL_STRANGE_DIR";

/// Runs one of the children below, with `wrapper` as its command if there is one.
fn run_child(what: &str, dir: &Path, wrapper: &[&str]) -> Output {
    let exe = std::env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => Command::new(exe),
        [program, args @ ..] => {
            let mut command = Command::new(program);
            command.args(args).arg(exe);
            command
        }
    };
    command.args(["--exact", "strange::child", "--nocapture"]);
    command.env(CHILD, what).env(CHILD_DIR, dir).output().unwrap()
}

/// Not a test itself: runs in the processes that the tests below start.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR).map(PathBuf::from) else { return };
    match std::env::var(CHILD).as_deref() {
        Ok("limit") => work_at_the_limit(&dir).await,
        Ok("refused") => open_refused(&dir).await,
        other => panic!("{other:?}"),
    }
}

/// A limit on file sizes affected sled or a new segment, and its signal ended the process. Dirty
/// messages were lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_the_size_of_files_does_not_end_the_process() {
    let dir = TempDir::new().unwrap();
    let output = run_child("limit", dir.path(), &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), None, "{text}");
    assert!(output.status.success(), "{text}");
    let live = String::from_utf8_lossy(&output.stdout);
    let live: BTreeMap<SpoolId, usize> = live
        .lines()
        .filter_map(|line| line.strip_prefix("live ")?.split_once(' '))
        .map(|(id, len)| (id.parse().unwrap(), len.parse().unwrap()))
        .collect();
    assert!(live.len() > 10, "{}", live.len());
    stop(Live(live).open(dir.path()).await).await;
}

/// Segments of 256 KiB fit under the limit. A larger message and sled's next file do not.
async fn work_at_the_limit(dir: &Path) {
    let spool = start(dir).await;
    let mut live = Live::default();
    live.store_all(&spool, 40).await;
    spool.compact().await.expect("compact");
    let before = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(300 * KIB), maximum: before.maximum }).unwrap();
    let large = SpoolId::new();
    let len = usize::try_from(MIB / 2).unwrap();
    let store = spool.store(large, payload::shared(large, 1, len), true, None);
    wait::bounded("the large message", store).await.expect_err("its file would be too large");
    // Stores until the journal is full: no checkpoint is possible.
    while live.0.len() < 2000 && live.store(&spool, live.0.len() % 2 == 0).await.is_ok() {}
    assert!(live.0.len() < 2000, "checkpoints still succeed");
    live.assert_are_all(&spool).await;
    live.remove(&spool, 3).await;
    live.assert_are_all(&spool).await;
    let error = spool.cleanup().await.expect_err("sled can't grow");
    assert!(format!("{error:#}").contains("RLIMIT_FSIZE"), "{error:#}");
    setrlimit(Resource::Fsize, before).unwrap();
    healthy(&spool).await;
    // The full segments are checkpointed now.
    wait::bounded("a store", async { while live.store(&spool, true).await.is_err() {} }).await;
    live.assert_are_all(&spool).await;
    stop(spool).await;
    for (id, len) in live.0 {
        println!("live {id} {len}");
    }
}

/// sled calls `sync_file_range`. If that failed with `EINVAL`, a new spool was reported as damaged,
/// and a repair was recommended.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_without_sync_file_range_is_not_damage() {
    const INJECT: &str = "inject=sync_file_range:error=EINVAL";
    let wrapper =
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=sync_file_range", "-e", INJECT, "--"];
    let can_trace = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").status();
    if !can_trace.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no system call can be made to fail here (strace)");
        return;
    }
    let dir = TempDir::new().unwrap();
    let refused = |what: &str| {
        let output = run_child("refused", dir.path(), &wrapper);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: {text}");
    };
    refused("a new spool");
    let spool = start(dir.path()).await;
    let mut live = Live::default();
    live.store_all(&spool, 40).await;
    spool.compact().await.expect("compact");
    live.store_all(&spool, 40).await;
    durable(&spool).await;
    drop(spool);
    refused("a spool created where the call works");
    stop(live.open(dir.path()).await).await;
}

async fn open_refused(dir: &Path) {
    let is_there = dir.join("spool/FORMAT").exists();
    let error = match TieredSpool::open(config(dir)).await {
        // The opening had nothing to write to sled.
        Ok(spool) => {
            assert!(is_there, "a new spool was created");
            spool.compact().await.expect_err("sled can't be written")
        }
        Err(error) => error,
    };
    assert!(!error.root_cause().is::<DamagedSpool>(), "{error:#}");
    let text = format!("{error:#}");
    assert!(text.contains("sync_file_range") && text.contains("spool/sled"), "{text}");
    assert!(!dir.join("spool/sled.trial").exists());
}
