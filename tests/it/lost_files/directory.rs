use super::*;

/// Removes all files and folders of the directory.
fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
}

/// `rm -rf DIR/*`, `rm -rf DIR/journal`, `rm -rf DIR/sled`: all their files are written again.
#[tokio::test(flavor = "multi_thread")]
async fn the_contents_of_the_directory() {
    for below in ["", "journal", "sled"] {
        println!("all in DIR/{below}");
        let mut world = World::new().await;
        let dir = world.path().join(below);
        if below.is_empty() {
            empty(&dir);
        } else {
            fs::remove_dir_all(&dir).unwrap();
        }
        world.assert_detected().await;
        world.open_gate().await;
        assert_eq!(world.check(&world.spool).await, 0);
        world.fill(2).await;
        world.assert_survives().await;
    }
}

/// Asserts that upkeep and shutdown report the loss of dirty messages and of files. Messages that
/// are in memory or in open files can still be loaded and removed.
async fn assert_loss_is_reported(world: &mut World) {
    let error = world.spool.cleanup().await.expect_err("the directory is gone");
    assert!(format!("{error:#}").contains(world.path().to_str().unwrap()), "{error:#}");
    let spool = world.spool.clone();
    wait::until("the gate is shut", || spool.unhealthy_reason().is_some()).await;
    assert_eq!(spool.stats().gauges.unhealthy, Some(HealthSignal::LostFiles));
    let (removed, _) = world.live.pop_first().unwrap();
    spool.remove(removed).await.expect("remove");
    world.removed.push(removed);
    assert_eq!(world.check(&spool).await, 0);
    let error = format!("{:#}", spool.shutdown().await.expect_err("the directory is gone"));
    let wanted = format!("could not be kept in {}", world.path().display());
    assert!(error.contains(&wanted), "{error}");
}

fn short(config: Config) -> Config {
    // Long enough for threads that end. A shutdown waits this long for data that cannot be written.
    still(config).shutdown_timeout(Duration::from_secs(8))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_deleted() {
    let mut world = World::with(short).await;
    fs::remove_dir_all(world.path()).unwrap();
    assert_loss_is_reported(&mut world).await;
}

/// If the directory was moved, the spool writes neither there nor into its replacement, which may
/// be another spool's.
#[tokio::test(flavor = "multi_thread")]
async fn the_directory_moved_and_replaced_by_another_spool() {
    let mut world = World::with(short).await;
    let (path, aside) = (world.path(), world.aside.path().join("moved"));
    fs::rename(&path, &aside).unwrap();
    let other = world.tiered.start().await;
    let id = put(other.as_ref(), LARGE, true).await;
    other.compact().await.expect("compact");
    stop(other).await;
    assert_loss_is_reported(&mut world).await;
    let other = TieredSpool::open(still(crate::setup::small(&path))).await.expect("open");
    assert_eq!(other.recovery().damage, []);
    crate::setup::assert_holds(&other, id, LARGE).await;
    other.shutdown().await.expect("shutdown");
}

/// The directory is moved and moved back. Nothing is lost, and the gate opens.
#[tokio::test(flavor = "multi_thread")]
async fn the_directory_moved_away_and_back() {
    let mut world = World::new().await;
    let (path, aside) = (world.path(), world.aside.path().join("moved"));
    fs::rename(&path, &aside).unwrap();
    world.spool.cleanup().await.expect_err("the directory is gone");
    let spool = world.spool.clone();
    wait::until("the gate is shut", || spool.unhealthy_reason().is_some()).await;
    let (removed, _) = world.live.pop_first().unwrap();
    spool.remove(removed).await.expect("remove");
    world.removed.push(removed);
    fs::rename(&aside, &path).unwrap();
    world.spool.cleanup().await.expect("cleanup");
    world.open_gate().await;
    world.fill(2).await;
    wait::until("everything is durable", || spool.stats().gauges.dirty_entries == 0).await;
    drop(spool);
    world.assert_survives().await;
}

/// If all files were gone, a second process treated the directory as empty and created its own
/// spool in it.
#[tokio::test(flavor = "multi_thread")]
async fn no_second_owner_of_an_emptied_directory() {
    let world = World::new().await;
    empty(&world.path());
    let error = TieredSpool::open(world.tiered.config.clone()).await.expect_err("two owners");
    assert!(error.root_cause().is::<tidespool_core::Locked>(), "{error:#}");
    world.assert_detected().await;
    world.open_gate().await;
    world.assert_survives().await;
}

/// Without its lock file, a second process could create and lock a new one, and open the spool too.
#[tokio::test(flavor = "multi_thread")]
async fn no_second_owner_without_the_lock_file() {
    let world = World::new().await;
    for way in [Way::Delete, Way::Move, Way::Replace] {
        way.strike(&world.path().join("LOCK"), world.aside.path());
        for _ in 0..2 {
            let error = TieredSpool::open(world.tiered.config.clone()).await.expect_err("two owners");
            assert!(error.root_cause().is::<tidespool_core::Locked>(), "{error:#}");
            // Detects the loss and locks again before the next attempt.
            world.spool.cleanup().await.expect("cleanup");
        }
    }
    world.open_gate().await;
    world.assert_survives().await;
}
