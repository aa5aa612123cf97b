use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use tidespool::{Config, TieredSpool};
use tidespool_core::{Corrupt, NotFound, Spool as _};
use tidespool_testkit::{ids, payload, wait};

use crate::mount::Mount;
use crate::setup::{Live, MIB, config, durable, start_with, stop};

/// Number of messages, more than sled keeps in memory.
const MESSAGES: usize = 4_000;

/// Blocks of sled's files that become unreadable.
const FLIPPED: usize = 4;

// One failed read of sled's file destroyed acknowledged messages: sled took the error for the end
// of its log and cleared the rest. Here the kernel rejects the read, because btrfs finds a wrong
// checksum. Since no message is stored in sled only, none may be missing, and no removed one may be
// restored.

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_blocks_of_sled_are_rebuilt_in_a_running_spool() {
    let Some(mount) = Mount::with_checksums() else { return };
    let config = small_cache(&mount);
    let (spool, live) = filled(&config).await;
    flip(&mount, &config.path.join("sled"));
    // Empties the cache, so that loads read the disk.
    spool.advise_low_memory().await.expect("a flush");
    recovered(&spool, &live).await;
    live.assert_are_all(&spool).await;
    stop(spool).await;
    assert_opens_whole(config, &live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_blocks_of_sled_are_rebuilt_after_a_shutdown() {
    let Some(mount) = Mount::with_checksums() else { return };
    let config = small_cache(&mount);
    let (spool, live) = filled(&config).await;
    stop(spool).await;
    flip(&mount, &config.path.join("sled"));
    assert_opens_whole(config, &live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_blocks_of_sled_are_rebuilt_after_a_crash() {
    let Some(mount) = Mount::with_checksums() else { return };
    let config = small_cache(&mount);
    let (spool, live) = filled(&config).await;
    drop(spool);
    flip(&mount, &config.path.join("sled"));
    assert_opens_whole(config, &live).await;
}

fn small_cache(mount: &Mount) -> Config {
    config(mount.path()).memory_budget(16 * MIB).checkpoint_after(Duration::ZERO)
}

async fn assert_opens_whole(config: Config, live: &Live) {
    let spool = start_with(config).await;
    assert_eq!(spool.recovery().damage, []);
    recovered(&spool, live).await;
    live.assert_are_all(&spool).await;
    stop(spool).await;
}

/// A spool with nearly all messages checkpointed, and some of them removed afterwards.
async fn filled(config: &Config) -> (Arc<TieredSpool>, Live) {
    let spool = start_with(config.clone()).await;
    let mut live = Live::default();
    for n in 0..MESSAGES {
        // Ids in random order are spread over many pages of sled.
        let id = ids::v4(n as u64);
        let data = payload::shared(id, 1, 300);
        wait::bounded("a store", spool.store(id, data, n % 100 == 0, None)).await.expect("store");
        live.0.insert(id, 300);
    }
    wait::bounded("compaction", spool.compact()).await.expect("compact");
    live.remove(&spool, 5).await;
    live.store_all(&spool, 30).await;
    // Nothing is written after this.
    wait::bounded("compaction", spool.compact()).await.expect("compact");
    durable(&spool).await;
    (spool, live)
}

/// Loads each message until it is read. No message may be reported as missing or damaged meanwhile.
async fn recovered(spool: &TieredSpool, live: &Live) {
    for (&id, &len) in &live.0 {
        let loaded = wait::bounded("a load", async {
            loop {
                match spool.load(id).await {
                    Ok(data) => return data,
                    Err(err) => {
                        let root = err.root_cause();
                        assert!(!root.is::<NotFound>() && !root.is::<Corrupt>(), "{id}: {err:#}");
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
            }
        });
        payload::assert_is(id, 1, len, &loaded.await);
    }
}

/// Changes some blocks of the largest file in `sled` on the device below the file system.
fn flip(mount: &Mount, sled: &Path) {
    let largest = files(sled).into_iter().max_by_key(|path| path.metadata().unwrap().len());
    let file = File::open(largest.expect("sled has files")).unwrap();
    file.sync_all().unwrap();
    let mut blocks = Vec::new();
    let mut block = vec![0; 4096];
    let mut at = 0;
    while file.read_exact_at(&mut block, at).is_ok() {
        // Blocks with little content repeat.
        if block.iter().filter(|byte| **byte != 0).count() > 400 {
            blocks.push((at, block.clone()));
        }
        at += 4096;
    }
    assert!(blocks.len() >= FLIPPED, "sled's file has {} blocks", blocks.len());
    let step = blocks.len() / FLIPPED;
    let chosen: Vec<(u64, Vec<u8>)> = blocks.into_iter().step_by(step).take(FLIPPED).collect();
    let contents: BTreeSet<Vec<u8>> = chosen.iter().map(|(_, block)| block.clone()).collect();
    assert!(mount.flip(&contents) >= FLIPPED as u64, "the blocks are not on the device");
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    let refused = |(at, _): &&(u64, Vec<u8>)| file.read_exact_at(&mut [0; 4096], *at).is_err();
    assert!(chosen.iter().filter(refused).count() > 0, "the kernel reads the changed blocks");
}

/// All files below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
