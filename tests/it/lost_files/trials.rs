use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tidespool_testkit::env::seed_from_env;

use super::*;
use crate::setup::walk;

/// Files are deleted, moved and replaced at random under traffic, and checked now and then. At the
/// end every acknowledged message exists. `TIDESPOOL_LOST_FILES_SEED` repeats a trial.
#[tokio::test(flavor = "multi_thread")]
async fn random_files_under_traffic() {
    let seed = seed_from_env("TIDESPOOL_LOST_FILES_SEED");
    for trial in 0..3 {
        println!("TIDESPOOL_LOST_FILES_SEED={}", seed + trial);
        run(&mut SmallRng::seed_from_u64(seed + trial)).await;
    }
}

fn config(config: Config) -> Config {
    config.checkpoint_after(Duration::from_millis(20)).ballast(128 * KIB)
}

async fn run(rng: &mut SmallRng) {
    let mut world = World::empty(Tiered::new(config)).await;
    for _ in 0..8 {
        for _ in 0..rng.random_range(0..40) {
            step(&mut world, rng).await;
        }
        for _ in 0..=rng.random_range(0..3) {
            lose_one(&world, rng);
        }
        // Traffic before and during the restoration.
        for _ in 0..rng.random_range(0..5) {
            step(&mut world, rng).await;
        }
        world.spool.cleanup().await.expect("cleanup");
    }
    crate::setup::healthy(world.spool.as_ref()).await;
    world.spool.cleanup().await.expect("cleanup");
    assert!(world.spool.stats().lost_files > 0);
    assert_eq!(world.check(&world.spool).await, 0);
    assert_eq!(world.spool.stats().corrupt, 0);
    stop(world.spool.clone()).await;
    world.assert_is_whole(&world.path()).await;
}

async fn step(world: &mut World, rng: &mut SmallRng) {
    crate::setup::healthy(world.spool.as_ref()).await;
    let known = rng.random_range(0..=world.live.len());
    let known = world.live.iter().nth(known).map(|(id, (version, _))| (*id, *version));
    let len = rng.random_range(1..30_001);
    match known {
        Some((id, _)) if rng.random_bool(0.3) => {
            world.spool.remove(id).await.expect("remove");
            world.live.remove(&id);
            world.removed.push(id);
        }
        known => {
            let known = known.filter(|_| rng.random_bool(0.3));
            let (id, version) = known.map_or_else(|| (SpoolId::new(), 1), |(id, version)| (id, version + 1));
            let data = payload::shared(id, version, len);
            match world.spool.store(id, data, rng.random_bool(0.5), None).await {
                Ok(()) => drop(world.live.insert(id, (version, len))),
                // The gate was shut meanwhile, so nothing was stored.
                Err(error) if error.root_cause().is::<tidespool_core::SpoolUnhealthyError>() => {}
                Err(error) => panic!("{error:#}"),
            }
        }
    }
}

fn lose_one(world: &World, rng: &mut SmallRng) {
    // sled recreates its snapshots and settings itself, and does not open while one of them is
    // swapped.
    let is_candidate = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        path.is_file() && (name == "db" || !path.starts_with(world.path().join("sled")))
    };
    let mut files: Vec<_> = walk(&world.path()).into_iter().filter(is_candidate).collect();
    files.sort();
    let file = &files[rng.random_range(0..files.len())];
    // The spool may still have files open that were moved there earlier.
    let other = world.aside.path().join(rng.random::<u64>().to_string());
    // The segment may be gone already.
    let done = match rng.random_range(0..3) {
        0 => fs::remove_file(file),
        1 => fs::rename(file, &other),
        _ => fs::copy(file, &other).and_then(|_| fs::rename(&other, file)),
    };
    println!("{}: {done:?}", file.display());
}
