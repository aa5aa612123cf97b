use super::*;

/// All files of the directory, and the folders in it.
fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
}

/// `rm -rf DIR/*`, `rm -rf DIR/journal`, `rm -rf DIR/sled`: everything that was in there is written
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_directory() {
    for below in ["", "journal", "sled"] {
        println!("all in DIR/{below}");
        let mut world = World::new().await;
        let dir = world.path().join(below);
        if below.is_empty() {
            empty(&dir);
        } else {
            fs::remove_dir_all(&dir).unwrap();
        }
        world.notice().await;
        world.open_gate().await;
        assert_eq!(world.check(&world.spool).await, 0);
        world.fill(2).await;
        world.assert_survives().await;
    }
}

/// What was dirty, or was written to files that are not there, is not called kept. What is still in
/// memory or open can be loaded, and removed.
async fn assert_is_lost_in_an_orderly_way(world: &mut World) {
    let error = world.spool.cleanup().await.expect_err("there is no directory to clean up");
    assert!(format!("{error:#}").contains(world.path().to_str().unwrap()), "{error:#}");
    let spool = world.spool.clone();
    wait::until("the gate is shut", || spool.unhealthy_reason().is_some()).await;
    assert_eq!(spool.stats().gauges.unhealthy, Some(HealthSignal::LostFiles));
    let (removed, _) = world.live.pop_first().unwrap();
    spool.remove(removed).await.expect("remove");
    world.removed.push(removed);
    assert_eq!(world.check(&spool).await, 0);
    let error = format!("{:#}", spool.shutdown().await.expect_err("nothing could be kept"));
    let wanted = format!("could not be kept in {}", world.path().display());
    assert!(error.contains(&wanted), "{error}");
}

fn short(config: Config) -> Config {
    // Long enough for what ends, and what can't be written is waited for.
    still(config).shutdown_timeout(Duration::from_secs(8))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_itself_deleted() {
    let mut world = World::with(short).await;
    fs::remove_dir_all(world.path()).unwrap();
    assert_is_lost_in_an_orderly_way(&mut world).await;
}

/// Of a directory that was moved nothing is written any more, neither there nor into the one in its
/// place: that may be another spool's.
#[tokio::test(flavor = "multi_thread")]
async fn the_directory_itself_moved_and_another_spool_in_its_place() {
    let mut world = World::with(short).await;
    let (path, aside) = (world.path(), world.aside.path().join("moved"));
    fs::rename(&path, &aside).unwrap();
    let other = world.tiered.start().await;
    let id = put(other.as_ref(), LARGE, true).await;
    other.compact().await.expect("compact");
    stop(other).await;
    assert_is_lost_in_an_orderly_way(&mut world).await;
    let other = TieredSpool::open(still(crate::setup::small(&path))).await.expect("open");
    assert_eq!(other.recovery().damage, []);
    crate::setup::assert_holds(&other, id, LARGE).await;
    other.shutdown().await.expect("shutdown");
}

/// Moved by mistake, and moved back: nothing is lost, and the gate opens.
#[tokio::test(flavor = "multi_thread")]
async fn the_directory_itself_moved_away_and_back() {
    let mut world = World::new().await;
    let (path, aside) = (world.path(), world.aside.path().join("moved"));
    fs::rename(&path, &aside).unwrap();
    world.spool.cleanup().await.expect_err("there is no directory to clean up");
    let spool = world.spool.clone();
    wait::until("the gate is shut", || spool.unhealthy_reason().is_some()).await;
    let (removed, _) = world.live.pop_first().unwrap();
    spool.remove(removed).await.expect("remove");
    world.removed.push(removed);
    fs::rename(&aside, &path).unwrap();
    world.spool.cleanup().await.expect("cleanup");
    world.open_gate().await;
    world.fill(2).await;
    wait::until("all is durable", || spool.stats().gauges.dirty_entries == 0).await;
    drop(spool);
    world.assert_survives().await;
}

/// Where all files are gone a second process took the directory for an empty one, and made its own
/// spool in it.
#[tokio::test(flavor = "multi_thread")]
async fn no_second_owner_of_an_emptied_directory() {
    let world = World::new().await;
    empty(&world.path());
    let error = TieredSpool::open(world.tiered.config.clone()).await.expect_err("two owners");
    assert!(error.root_cause().is::<tidespool_core::Locked>(), "{error:#}");
    world.notice().await;
    world.open_gate().await;
    world.assert_survives().await;
}

/// Without its lock file a second process could make and lock a new one, and open the spool beside
/// the first.
#[tokio::test(flavor = "multi_thread")]
async fn no_second_owner_without_the_lock_file() {
    let world = World::new().await;
    for way in [Way::Delete, Way::Move, Way::Replace] {
        way.strike(&world.path().join("LOCK"), world.aside.path());
        for _ in 0..2 {
            let error = TieredSpool::open(world.tiered.config.clone()).await.expect_err("two owners");
            assert!(error.root_cause().is::<tidespool_core::Locked>(), "{error:#}");
            // Noticed and locked again, before the next try.
            world.spool.cleanup().await.expect("cleanup");
        }
    }
    world.open_gate().await;
    world.assert_survives().await;
}
