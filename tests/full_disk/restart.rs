use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tidespool::Config;
use tidespool_core::{Spool as _, SpoolId};
use tidespool_testkit::payload;

use crate::mount::{KINDS, Kind, Mount, Neighbour};
use crate::setup::{Live, MIN_FREE, SIZE, SIZES, config, durable, healthy, short, start, start_with, stop};

const HOUR: Duration = Duration::from_secs(3600);

/// A spool on a disk without a free byte is dropped, opened there, partly emptied, shut down and
/// opened again.
async fn crash_and_open(kind: Kind, adjust: impl Fn(Config) -> Config) {
    let Some(mount) = Mount::make(kind, SIZE) else { return };
    let config = || adjust(config(mount.path()));
    let spool = start_with(config()).await;
    let mut neighbour = Neighbour::of(&mount);
    let mut live = Live::default();
    live.store_all(&spool, 80).await;
    spool.compact().await.expect("compact");
    // These messages are in the journal only.
    live.store_all(&spool, 40).await;
    durable(&spool).await;
    neighbour.fill();
    short(&spool).await;
    live.remove(&spool, 4).await;
    durable(&spool).await;
    drop(spool);
    neighbour.fill();
    assert_eq!(mount.left().0, 0);

    let spool = live.open_with(config()).await;
    live.remove(&spool, 3).await;
    live.assert_are_all(&spool).await;
    stop(spool).await;
    // The space of the ballast stays with the spool, so this works repeatedly.
    for _ in 0..2 {
        let spool = live.open_with(config()).await;
        live.remove(&spool, 5).await;
        durable(&spool).await;
        drop(spool);
    }
    neighbour.shrink(0);
    let spool = live.open_with(config()).await;
    healthy(&spool).await;
    live.store_all(&spool, 40).await;
    stop(spool).await;
    let spool = live.open_with(config()).await;
    assert!(mount.path().join("spool/ballast").exists(), "the ballast was not recreated");
    stop(spool).await;
}

/// sled has to be opened on a full disk, with the ballast in place.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_crashed_on_a_full_disk_is_opened_on_it() {
    for kind in KINDS {
        crash_and_open(kind, |config| config.checkpoint_after(HOUR)).await;
    }
}

/// The same with checkpoints, which may have used the ballast before the crash.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_made_checkpoints_on_a_full_disk_is_opened_on_it() {
    for kind in KINDS {
        crash_and_open(kind, |config| config).await;
    }
}

/// Environment variable of the child: the directory of its spool.
const CHILD_DIR: &str = "TIDESPOOL_FULL_DISK_DIR";

/// Not a test itself: runs in the process that is killed. It stores until it is rejected, then
/// removes, and prints the acknowledged calls.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let spool = start_with(config(Path::new(&dir)).checkpoint_after(HOUR)).await;
    let print_report = |what: &str, id: SpoolId, len: usize| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "report {what} {id} {len}").and_then(|()| out.flush()).unwrap();
    };
    let mut stored = Vec::new();
    loop {
        let (id, len) = (SpoolId::new(), SIZES[stored.len() % SIZES.len()]);
        print_report("stores", id, len);
        match spool.store(id, payload::shared(id, 1, len), true, None).await {
            Ok(()) => print_report("stored", id, len),
            Err(_) => break,
        }
        stored.push((id, len));
        if stored.len() > 60 {
            let (id, len) = stored.remove(0);
            print_report("removes", id, len);
            spool.remove(id).await.unwrap();
        }
    }
    print_report("refused", SpoolId::new(), 0);
    for (id, len) in stored {
        print_report("removes", id, len);
        spool.remove(id).await.unwrap();
        durable(&spool).await;
        print_report("removed", id, len);
    }
    print_report("ended", SpoolId::new(), 0);
}

/// A child that is killed if the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run_child(dir: &Path) -> (Running, impl Iterator<Item = (String, SpoolId, usize)>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "restart::child", "--nocapture", "--test-threads=1"]);
    let mut child = command.env(CHILD_DIR, dir).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let report = lines.filter_map(|line| {
        let (_, report) = line.split_once("report ")?;
        let mut words = report.split(' ');
        let what = words.next()?.to_owned();
        Some((what, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    });
    (Running(child), report)
}

/// A child is killed while it removes on a full disk.
async fn kill_and_open(kind: Kind) {
    let Some(mount) = Mount::make(kind, SIZE) else { return };
    let mut neighbour = Neighbour::of(&mount);
    let (mut child, mut report) = run_child(mount.path());
    let mut live = Live::default();
    // Calls without an acknowledgement, which may have taken effect or not.
    let mut doubtful = Live::default();
    let mut removed = 0;
    while removed < 20 {
        let (what, id, len) = report.next().expect("the child ended");
        match &*what {
            "stores" => drop(doubtful.0.insert(id, len)),
            "stored" => {
                doubtful.0.remove(&id);
                live.0.insert(id, len);
                if live.0.len() == 50 {
                    // Leaves so little space that the gate shuts.
                    neighbour.grow(mount.left().0 - MIN_FREE / 2);
                }
            }
            "removes" => {
                live.0.remove(&id);
                doubtful.0.insert(id, len);
            }
            "removed" => {
                doubtful.0.remove(&id);
                removed += 1;
            }
            "refused" => neighbour.fill(),
            other => panic!("{other}"),
        }
    }
    child.0.kill().unwrap();
    for (what, id, len) in report {
        match &*what {
            "removes" => {
                live.0.remove(&id);
                doubtful.0.insert(id, len);
            }
            "removed" => drop(doubtful.0.remove(&id)),
            _ => {}
        }
    }
    child.0.wait().unwrap();
    neighbour.fill();

    let spool = start(mount.path()).await;
    assert!(spool.recovery().damage.is_empty() && spool.recovery().lost == 0, "{:?}", spool.recovery());
    for (id, len) in doubtful.0 {
        if spool.load(id).await.is_ok() {
            live.0.insert(id, len);
        }
    }
    live.assert_are_all(&spool).await;
    live.remove(&spool, 2).await;
    // The killed process may have used the last free segment, before anything in it was
    // checkpointed. Without a free byte, removals become durable when there is space for a segment.
    neighbour.shrink(0);
    durable(&spool).await;
    stop(spool).await;
    stop(live.open(mount.path()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_on_a_full_disk_loses_nothing() {
    for kind in KINDS {
        kill_and_open(kind).await;
    }
}

/// After a kill on a full disk, no checkpointed message could be read: the rebuild of the index
/// required more space than an index takes.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_rebuilt_in_the_space_of_the_last_one() {
    for kind in KINDS {
        let Some(mount) = Mount::make(kind, SIZE) else { return };
        let config = config(mount.path()).ballast(0);
        let spool = start_with(config.clone()).await;
        let mut live = Live::default();
        live.store_all(&spool, 40).await;
        spool.compact().await.expect("compact");
        // A drop without shutdown acts like a crash.
        drop(spool);
        Neighbour::of(&mount).fill();
        let spool = live.open_with(config).await;
        assert!(spool.recovery().rebuilds_index);
        stop(spool).await;
    }
}
