use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidespool::TieredSpool;
use tidespool::inspect::{Inspector, salvage};
use tidespool_core::Spool;

use crate::setup::{assert_holds, put, small, walk};

async fn refusal(path: &Path) -> anyhow::Error {
    match TieredSpool::open(small(path)).await {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(err) => err,
    }
}

/// A dangling symlink was reported as "its parent must exist: File exists", a file as "not a
/// directory" without what to do. Every path that can't be a spool's gets an error that names the
/// path, what is wrong there, and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_can_not_be_a_spools_is_explained() {
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
        let said = refusal(&path).await.to_string();
        assert!(said.contains(&path.display().to_string()), "{} is not named: {said}", path.display());
        assert!(said.contains(what), "{}: {said}", path.display());
    }
    assert_eq!(walk(dir.path()), before, "something was created");
}

/// A directory whose path is short enough for itself, and too long for the files of a spool. The
/// system takes such a path only in steps.
fn deep_directory(root: &Path) -> PathBuf {
    let mut path = root.to_owned();
    while path.as_os_str().len() < 4060 {
        path.push("d".repeat(200.min(4070 - path.as_os_str().len())));
    }
    fs::create_dir_all(&path).unwrap();
    path
}

/// Whatever leads to a directory leads to the same spool.
#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_a_directory_leads_to_its_spool() {
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
    // The parent of the link's target: other things are in it.
    let said = refusal(&ways[6]).await.to_string();
    assert!(said.contains("not a spool"), "{said}");
}

/// A new disk was refused because `mkfs` had made `lost+found` in it, an empty directory of a
/// repository because of its `.gitkeep`. What file systems and tools leave is no reason, and is
/// left alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_file_systems_and_tools_leave_is_left_alone() {
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
            // Each of its folders may be a file system of its own.
            leave(&path.join("journal"));
            leave(&path.join("sled"));
        }
    }
    let look = Inspector::open(&path).unwrap();
    assert_eq!(look.verify().unwrap().damage, []);
    drop(look);
    // What a repair that was killed has left there is no reason either.
    let unfinished = new.join(".tidespool-repair.partial");
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("unfinished-repair"), "").unwrap();
    fs::create_dir(new.join("journal")).unwrap();
    fs::write(new.join("ledger"), "half").unwrap();
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
    // With a person's file beside them the directory is refused.
    let other = dir.path().join("other");
    leave(&other);
    fs::write(other.join("thesis.txt"), "years of work").unwrap();
    let said = refusal(&other).await.to_string();
    assert!(said.contains("thesis.txt"), "{said}");
    let said = salvage(&path, &other).unwrap_err().to_string();
    assert!(said.contains("is not empty"), "{said}");
    check(&other);
}
