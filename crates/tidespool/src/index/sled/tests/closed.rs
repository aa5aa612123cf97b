use std::fs;

use super::*;
use crate::index::IndexEngine;
use crate::index::sled::store::open_with_retry;
use crate::index::tests::handle::{
    assert_unavailable, close_whole, closed_index, handle, make_whole, reopen, soon,
};

#[test]
fn an_index_with_changed_files_is_not_opened() {
    let dir = dir();
    let engine: Arc<dyn IndexEngine> = Arc::new(sled_engine());
    let durable = handle(&engine, &dir);
    make_whole(&durable);
    let closed = close_whole(&durable);
    let root = dir.path().join("index");
    let index = root.join("1");
    let is_opened = || handle(&engine, &dir).open_closed(closed);

    let mut files = 0;
    for path in fs::read_dir(&index).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
    {
        let (good, name) = (fs::read(&path).unwrap(), path.display());
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [&flipped[..], &good[..good.len() - 1], &[], &[&good[..], &[0]].concat()] {
            fs::write(&path, bad).unwrap();
            assert!(!is_opened(), "{name} with {} of {} bytes", bad.len(), good.len());
        }
        fs::remove_file(&path).unwrap();
        assert!(!is_opened(), "{name} missing");
        fs::write(&path, good).unwrap();
        files += 1;
    }
    assert!(files >= 2, "db, conf");
    fs::write(index.join("more"), "").unwrap();
    assert!(!is_opened(), "one file more");
    fs::remove_file(index.join("more")).unwrap();
    fs::rename(&index, root.join("2")).unwrap();
    assert!(!is_opened(), "under another number");
    fs::rename(root.join("2"), &index).unwrap();
    assert!(is_opened());
}

#[test]
fn an_unreadable_block_discards_the_index() {
    let dir = dir();
    let engine: Arc<dyn IndexEngine> = Arc::new(sled_engine());
    let durable = handle(&engine, &dir);
    make_whole(&durable);
    assert_eq!(durable.close(soon()), Ok(true));
    let data_dir = dir.path().join("index/1");
    let db = open_with_retry(&sled::Config::new().path(data_dir).flush_every_ms(None)).unwrap();
    db.open_tree("places").unwrap().insert(key(2).as_bytes(), b"something else").unwrap();
    drop(db);
    // Simulates damage from before the close.
    let closed = closed_index(&durable);

    let durable = reopen(&engine, &dir, closed);
    durable.finish();
    assert_eq!(durable.get(&key(1)), Ok(Some(place(1, 10))));
    let error = durable.get(&key(2)).unwrap_err();
    assert!(error.poisons(), "{error}");
    assert_unavailable(&durable, &error.to_string());
    assert_eq!(durable.close(soon()), Ok(false));
}
