use std::path::Path;

use tidespool_core::Spool as _;

use crate::child;
use crate::setup::{assert_holds, block_on, config, open, put_some, walk};

/// A daemon opens its spool under a relative path and then calls `chdir("/")`. The checkpoint
/// looked for its files below the new directory. Acknowledged messages were lost, and a spool of
/// the same name in the new directory was damaged.
#[test]
fn a_relative_path_outlives_a_chdir() {
    child::run("cwd::a_relative_path_outlives_a_chdir", |dir| {
        let elsewhere = dir.join("elsewhere");
        std::fs::create_dir_all(elsewhere.join("deep")).unwrap();
        std::env::set_current_dir(dir).unwrap();
        block_on(async {
            // A spool of the same name in the later working directory.
            let neighbour = open(&elsewhere.join("spool")).await;
            let neighbours = put_some(&neighbour, true).await;
            neighbour.shutdown().await.unwrap();
            let before = contents(&elsewhere);

            let spool = open(Path::new("spool")).await;
            assert_eq!(spool.config().path, dir.canonicalize().unwrap().join("spool"));
            std::env::set_current_dir(&elsewhere).unwrap();
            let mut stored = Vec::new();
            for _ in 0..60 {
                stored.extend(put_some(&spool, true).await);
            }
            spool.cleanup().await.unwrap();
            spool.compact().await.unwrap();
            // The relative path of the opening, and the absolute one, are still the path of the
            // spool.
            spool.reconfigure(config(Path::new("spool"))).unwrap();
            spool.reconfigure(tidespool::Config::clone(&spool.config())).unwrap();
            let other = spool.reconfigure(config(Path::new("deep"))).unwrap_err();
            assert!(other.to_string().contains("path"), "{other}");
            assert_holds(&spool, &stored).await;
            spool.shutdown().await.unwrap();
            assert!(contents(&elsewhere) == before, "the neighbour was changed");

            let spool = open(&dir.join("spool")).await;
            assert_eq!(spool.recovery().damage, []);
            assert_holds(&spool, &stored).await;
            spool.shutdown().await.unwrap();
            let neighbour = open(&elsewhere.join("spool")).await;
            assert_holds(&neighbour, &neighbours).await;
            neighbour.shutdown().await.unwrap();
        });
    });
}

/// A deployment re-points the symlink `current` while the server runs. The spool would look for
/// half of its files in the new place.
#[test]
fn a_symlink_may_be_pointed_elsewhere() {
    child::run("cwd::a_symlink_may_be_pointed_elsewhere", |dir| {
        let (one, two, link) = (dir.join("one"), dir.join("two"), dir.join("current"));
        for place in [&one, &two] {
            std::fs::create_dir(place).unwrap();
        }
        std::os::unix::fs::symlink(&one, &link).unwrap();
        block_on(async {
            let spool = open(&link.join("spool")).await;
            std::fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink(&two, &link).unwrap();
            let mut stored = Vec::new();
            for _ in 0..60 {
                stored.extend(put_some(&spool, true).await);
            }
            spool.compact().await.unwrap();
            assert_holds(&spool, &stored).await;
            spool.shutdown().await.unwrap();
            assert_eq!(walk(&two).len(), 1, "something was written to the new place");
            let spool = open(&one.join("spool")).await;
            assert_eq!(spool.recovery().damage, []);
            assert_holds(&spool, &stored).await;
            spool.shutdown().await.unwrap();
        });
    });
}

/// A tool reads and repairs a spool while another thread of its process changes the working
/// directory.
#[test]
fn inspection_and_repair_outlive_a_chdir() {
    child::run("cwd::inspection_and_repair_outlive_a_chdir", |dir| {
        std::env::set_current_dir(dir).unwrap();
        block_on(async {
            let spool = open(Path::new("spool")).await;
            let stored = put_some(&spool, true).await;
            spool.shutdown().await.unwrap();
            let look = tidespool::inspect::Inspector::open(Path::new("spool")).unwrap();
            std::env::set_current_dir("/").unwrap();
            let found = look.verify().unwrap();
            assert_eq!((found.messages, found.damage), (stored.len() as u64, Vec::new()));
            drop(look);
            std::env::set_current_dir(dir).unwrap();
            let saved = tidespool::inspect::salvage(Path::new("spool"), Path::new("new")).unwrap();
            assert_eq!(saved.saved, stored.len() as u64);
            let spool = open(Path::new("new")).await;
            assert_holds(&spool, &stored).await;
            spool.shutdown().await.unwrap();
        });
    });
}

/// All files below `dir` with their contents.
fn contents(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let files = walk(dir).into_iter().filter(|path| path.is_file());
    let mut files: Vec<_> = files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    files.sort_unstable();
    files
}
