use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidespool::TieredSpool;
use tidespool::inspect::{Inspector, salvage};
use tidespool_core::Spool;

use crate::setup::{assert_holds, put, small, walk};

async fn opening_error(path: &Path) -> anyhow::Error {
    match TieredSpool::open(small(path)).await {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(err) => err,
    }
}

/// A dangling symlink was reported as "its parent must exist: File exists", a file as "not a
/// directory" without a remedy. The error for an unusable path names the path, the problem, and the
/// remedy.
#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_path_is_explained() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("file"), "not a directory").unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    symlink(at("circle-2"), at("circle-1")).unwrap();
    symlink(at("circle-1"), at("circle-2")).unwrap();
    symlink(at("file"), at("link-to-file")).unwrap();
    let long_name = at(&"n".repeat(256));
    let long_path = (0..30).fold(dir.path().to_owned(), |path, _| path.join("d".repeat(140)));
    let deep = deep_directory(dir.path());
    let table = [
        (at("file"), "is no directory: move it away"),
        (at("file").join("spool"), "file is no directory: move it away"),
        (at("link-to-file"), "is no directory: move it away"),
        (at("dangling"), "is a symlink to"),
        (at("dangling").join("spool"), "is a symlink to"),
        (at("circle-1"), "form a circle"),
        (at("not-there").join("spool"), "does not exist: create it, or mount its file system"),
        (long_name, "a name may have 255"),
        (long_path, "a name may have 255"),
        (deep, "a name may have 255"),
        (PathBuf::from(""), "path"),
        (PathBuf::from("nul\0nul"), "a byte that no path may hold"),
        (PathBuf::from("/proc/self"), ""),
    ];
    let before = walk(dir.path());
    for (path, what) in table {
        let text = opening_error(&path).await.to_string();
        assert!(text.contains(&path.display().to_string()), "{} is not named: {text}", path.display());
        assert!(text.contains(what), "{}: {text}", path.display());
    }
    assert_eq!(walk(dir.path()), before, "something was created");
}

/// A directory whose own path is short enough, while the paths of a spool's files are too long. The
/// system accepts such a path only in steps.
fn deep_directory(root: &Path) -> PathBuf {
    let mut path = root.to_owned();
    while path.as_os_str().len() < 4060 {
        path.push("d".repeat(200.min(4070 - path.as_os_str().len())));
    }
    fs::create_dir_all(&path).unwrap();
    path
}

/// Every path to a directory opens the same spool.
#[tokio::test(flavor = "multi_thread")]
async fn every_path_to_a_directory_opens_the_same_spool() {
    let dir = TempDir::new().unwrap();
    let real = dir.path().join("real");
    fs::create_dir(&real).unwrap();
    symlink(&real, dir.path().join("link")).unwrap();
    symlink(dir.path(), dir.path().join("up")).unwrap();
    let ways = [
        real.clone(),
        dir.path().join("link"),
        dir.path().join("up/real"),
        dir.path().join("real/../real"),
        dir.path().join("real/./"),
        dir.path().join("link/"),
        dir.path().join("up/up/link/.."),
    ];
    let mut stored = Vec::new();
    for way in &ways[..6] {
        let spool = TieredSpool::open(small(way)).await.unwrap();
        assert_eq!(spool.config().path, real.canonicalize().unwrap(), "{}", way.display());
        stored.push(put(&spool, 700, true).await);
        for id in &stored {
            assert_holds(&spool, *id, 700).await;
        }
        spool.shutdown().await.unwrap();
        drop(Inspector::open(way).unwrap());
    }
    // The parent of the link's target, which contains other things.
    let text = opening_error(&ways[6]).await.to_string();
    assert!(text.contains("not a spool"), "{text}");
}

/// A new disk was rejected because `mkfs` had created `lost+found` in it, and an empty directory of
/// a repository because of its `.gitkeep`. Files of file systems and tools are accepted and not
/// touched.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_file_systems_and_tools_are_not_touched() {
    let dir = TempDir::new().unwrap();
    let (path, new) = (dir.path().join("spool"), dir.path().join("new"));
    let folders = ["lost+found", ".snapshot", ".zfs", "System Volume Information", ".Trash-1000"];
    let files = [".gitkeep", ".keep", ".gitignore", ".DS_Store", ".nfs000000000123", "._journal"];
    let leave = |place: &Path| {
        fs::create_dir_all(place).unwrap();
        for name in folders {
            fs::create_dir(place.join(name)).unwrap();
            fs::write(place.join(name).join("inside"), "theirs").unwrap();
        }
        for name in files {
            fs::write(place.join(name), "theirs").unwrap();
        }
    };
    let check = |place: &Path| {
        for name in folders {
            assert_eq!(fs::read(place.join(name).join("inside")).unwrap(), b"theirs", "{name}");
        }
        for name in files {
            assert_eq!(fs::read(place.join(name)).unwrap(), b"theirs", "{name}");
        }
    };
    leave(&path);
    leave(&new);
    let mut stored = Vec::new();
    for round in 0..3 {
        let spool = TieredSpool::open(small(&path)).await.unwrap();
        assert_eq!(spool.recovery().damage, []);
        for _ in 0..20 {
            for len in [300, 20_000] {
                stored.push((put(&spool, len, true).await, len));
            }
        }
        spool.compact().await.unwrap();
        spool.shutdown().await.unwrap();
        if round == 0 {
            // Each folder of the spool may be a file system of its own.
            leave(&path.join("journal"));
            leave(&path.join("sled"));
        }
    }
    let look = Inspector::open(&path).unwrap();
    assert_eq!(look.verify().unwrap().damage, []);
    drop(look);
    // The remains of a killed repair are accepted too.
    let unfinished = new.join(".tidespool-repair.partial");
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("unfinished-repair"), "").unwrap();
    fs::create_dir(new.join("journal")).unwrap();
    fs::write(new.join("manifest"), "half").unwrap();
    let saved = salvage(&path, &new).unwrap();
    assert!(!unfinished.exists());
    assert!(saved.is_complete() && saved.damage.is_empty(), "{saved:?}");
    for place in [&path, &path.join("journal"), &path.join("sled"), &new] {
        check(place);
    }
    let spool = TieredSpool::open(small(&new)).await.unwrap();
    for (id, len) in stored {
        assert_holds(&spool, id, len).await;
    }
    spool.shutdown().await.unwrap();
    check(&new);
    // Beside a user's file, the directory is rejected.
    let other = dir.path().join("other");
    leave(&other);
    fs::write(other.join("thesis.txt"), "years of work").unwrap();
    let text = opening_error(&other).await.to_string();
    assert!(text.contains("thesis.txt"), "{text}");
    let text = salvage(&path, &other).unwrap_err().to_string();
    assert!(text.contains("is not empty"), "{text}");
    check(&other);
}
