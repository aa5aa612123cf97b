//! Runs the real `tidespool` binary on the directory of a real spool.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tidespool::{Config, Durability, TieredSpool};
use tidespool_core::{Spool, SpoolId};

use crate::run::{path, tidespool};

pub(crate) fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

pub(crate) fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Returns a directory with a spool of these messages after a clean shutdown, and their ids.
pub(crate) async fn spool_of(messages: &[Vec<u8>]) -> (TempDir, Vec<SpoolId>) {
    let dir = TempDir::new().unwrap();
    let spool = TieredSpool::open(Config::new(dir.path())).await.unwrap();
    let mut ids = Vec::new();
    for message in messages {
        let id = SpoolId::new();
        spool.store(id, Arc::new(message.as_slice().into()), false, None).await.unwrap();
        ids.push(id);
    }
    spool.shutdown().await.unwrap();
    (dir, ids)
}

pub(crate) fn three_messages() -> Vec<Vec<u8>> {
    vec![b"small\r\n\0\xff".to_vec(), vec![b'x'; 20_000], Vec::new()]
}

pub(crate) fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn ls_lists_in_time_order() {
    let (dir, ids) = spool_of(&three_messages()).await;
    let table = tidespool(&["ls", path(dir.path())]);
    assert_eq!(code(&table), Some(0), "{}", said(&table));
    let table = out(&table);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 5, "{table}");
    for (line, id) in lines[1..].iter().zip(&ids) {
        assert!(line.starts_with(&id.to_string()), "{table}");
    }
    assert!(lines[4].starts_with("3 messages"), "{table}");

    let json = out(&tidespool(&["ls", path(dir.path()), "--json", "--limit", "2"]));
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{json}");
    assert_eq!(lines[0]["id"], ids[0].to_string());
    assert_eq!(lines[1]["size"], 20_000);
    assert!(lines[1]["created"].is_string() && lines[1]["home"].is_string(), "{json}");
}

#[tokio::test]
async fn get_writes_the_bytes_as_they_were_stored() {
    let messages = three_messages();
    let (dir, ids) = spool_of(&messages).await;
    for (id, message) in ids.iter().zip(&messages) {
        let got = tidespool(&["get", path(dir.path()), &id.to_string()]);
        assert_eq!((code(&got), &got.stdout), (Some(0), message), "{}", said(&got));
    }
    let target = TempDir::new().unwrap();
    let file = target.path().join("message");
    let id = ids[1].to_string();
    let got = tidespool(&["get", path(dir.path()), &id, "--output", path(&file)]);
    assert_eq!((code(&got), out(&got).as_str()), (Some(0), ""), "{}", said(&got));
    assert_eq!(std::fs::read(&file).unwrap(), messages[1]);

    let refused =
        tidespool(&["get", path(dir.path()), &id, "--output", path(&target.path().join("no/file"))]);
    assert_eq!(code(&refused), Some(1));
    assert!(said(&refused).contains("no/file"), "{}", said(&refused));
}

#[tokio::test]
async fn an_id_that_is_not_there_is_named_and_no_file_is_made() {
    let (dir, _) = spool_of(&three_messages()).await;
    let id = SpoolId::new().to_string();
    let target = TempDir::new().unwrap();
    let file = target.path().join("message");
    let got = tidespool(&["get", path(dir.path()), &id, "--output", path(&file)]);
    assert_eq!(code(&got), Some(1));
    let said = said(&got);
    assert!(said.contains(&id) && said.contains("tidespool ls") && said.lines().count() == 1, "{said}");
    assert!(!file.exists());
}

#[tokio::test]
async fn stat_counts_and_verify_finds_it_whole() {
    let (dir, _) = spool_of(&three_messages()).await;
    let json: Value = serde_json::from_str(&out(&tidespool(&["stat", path(dir.path()), "--json"]))).unwrap();
    assert_eq!(json["messages"], 3);
    assert_eq!(json["message_bytes"], 20_009);
    let table = out(&tidespool(&["stat", path(dir.path())]));
    assert!(table.contains("messages         3"), "{table}");

    let whole = tidespool(&["verify", path(dir.path())]);
    assert_eq!(code(&whole), Some(0), "{}{}", out(&whole), said(&whole));
    assert!(out(&whole).contains("is whole: 3 messages read"), "{}", out(&whole));
    let json: Value =
        serde_json::from_str(&out(&tidespool(&["verify", path(dir.path()), "--json"]))).unwrap();
    assert_eq!(json["whole"], true);
    assert_eq!(json["bytes"], 20_009);
}

#[tokio::test]
async fn damage_is_code_2_and_named() {
    let (dir, ids) = spool_of(&three_messages()).await;
    let payload = [b'x'; 20_000];
    let mut flipped = 0;
    for file in files_below(dir.path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        if let Some(at) = bytes.windows(payload.len()).position(|window| window == payload) {
            bytes[at + 10_000] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 0, "the message is in no file");

    let id = ids[1].to_string();
    let found = tidespool(&["verify", path(dir.path())]);
    assert_eq!(code(&found), Some(2), "{}{}", out(&found), said(&found));
    assert!(out(&found).contains(&id) && out(&found).contains("is damaged"), "{}", out(&found));
    let json = tidespool(&["verify", path(dir.path()), "--json"]);
    assert_eq!(code(&json), Some(2));
    let json: Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!(json["damage"][0]["id"], id);

    let got = tidespool(&["get", path(dir.path()), &id]);
    assert_eq!((code(&got), out(&got).as_str()), (Some(2), ""), "{}", said(&got));
    assert!(said(&got).contains(&id), "{}", said(&got));
}

#[tokio::test]
async fn a_spool_in_use_is_refused() {
    let dir = TempDir::new().unwrap();
    let spool = TieredSpool::open(Config::new(dir.path())).await.unwrap();
    let refused = tidespool(&["ls", path(dir.path())]);
    assert_eq!(code(&refused), Some(1));
    let said = said(&refused);
    assert!(said.contains("is in use by process") && said.contains(path(dir.path())), "{said}");
    spool.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error() {
    // More lines than a pipe and the output buffer hold, so that a write meets the closed end.
    let (dir, _) = spool_of(&vec![Vec::new(); 3_000]).await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidespool"))
        .args(["ls", path(dir.path())])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), said(&output).as_str()), (Some(0), ""));
}

#[tokio::test]
async fn a_full_disk_is_an_error() {
    let (dir, _) = spool_of(&three_messages()).await;
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tidespool"))
        .args(["ls", path(dir.path())])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(code(&output), Some(1));
    assert!(said(&output).contains("standard output"), "{}", said(&output));
}

/// Returns a spool that acknowledged a message whose bytes are only in the crash log.
async fn spool_that_died(message: &[u8]) -> (TempDir, SpoolId) {
    let dir = TempDir::new().unwrap();
    let config = Config::new(dir.path().join("spool"))
        .durability(Durability::Process)
        .memory_budget(64 << 20)
        .dirty_expire(Duration::from_secs(3600));
    let spool = TieredSpool::open(config).await.unwrap();
    let id = SpoolId::new();
    spool.store(id, Arc::new(message.into()), false, None).await.unwrap();
    drop(spool);
    (dir, id)
}

#[tokio::test]
async fn what_only_the_crash_log_has_is_shown_and_saved() {
    let message = b"acknowledged and not on stable storage".as_slice();
    let (dir, id) = spool_that_died(message).await;
    let spool = dir.path().join("spool");
    let ls = || tidespool(&["ls", path(&spool), "--json"]);
    // The threads of the spool hold the directory a little longer.
    let listed = std::iter::repeat_with(ls).take(60).find(|ls| code(ls) == Some(0)).unwrap();
    let json: Value = serde_json::from_str(&out(&listed)).unwrap();
    assert_eq!((&json["id"], &json["home"]), (&id.to_string().into(), &"crash-log".into()));
    assert_eq!(tidespool(&["get", path(&spool), &id.to_string()]).stdout, message);
    let json: Value = serde_json::from_str(&out(&tidespool(&["stat", path(&spool), "--json"]))).unwrap();
    assert_eq!(
        (&json["crash_log"]["messages"], &json["messages_by_home"]["crash-log"]),
        (&1.into(), &1.into())
    );
    let table = out(&tidespool(&["stat", path(&spool)]));
    assert!(table.contains("1 message and 0 removals brought back at next open, 38 bytes"), "{table}");
    let verified = tidespool(&["verify", path(&spool)]);
    assert_eq!(code(&verified), Some(0), "{}", out(&verified));
    assert!(out(&verified).contains("is whole: 1 message read, 38 bytes"), "{}", out(&verified));
    let new = dir.path().join("new");
    let repaired = tidespool(&["repair", path(&spool), path(&new)]);
    assert_eq!(code(&repaired), Some(0), "{}", said(&repaired));
    assert!(
        out(&repaired).contains("from the crash log: 1 message saved, 0 left out as removed"),
        "{}",
        out(&repaired)
    );
    assert_eq!(tidespool(&["get", path(&new), &id.to_string()]).stdout, message);

    let log = spool.join("crash-log");
    let mut bytes = std::fs::read(&log).unwrap();
    let at = bytes.windows(message.len()).position(|window| window == message).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let what = format!("{}: the crash log is not as the last process left it", log.display());
    let verified = tidespool(&["verify", path(&spool)]);
    assert_eq!(code(&verified), Some(2), "{}", out(&verified));
    assert!(out(&verified).contains(&what), "{}", out(&verified));
    let repaired = tidespool(&["repair", path(&spool), path(&dir.path().join("again"))]);
    assert_eq!(code(&repaired), Some(2), "{}", said(&repaired));
    assert!(out(&repaired).contains("crash-log: not saved: the crash log is not as"), "{}", out(&repaired));
}
