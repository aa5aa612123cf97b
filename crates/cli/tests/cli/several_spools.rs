//! Every subcommand on a store with several spools.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use tidespool::{Config, Tidespool};
use tidespool_core::{Spool, SpoolId};

use crate::on_a_spool::{code, files_below, out, said};
use crate::run::{assert_refused, path, tidespool};

/// The body and the envelope of a message, and an id that only `data` has.
struct Mail {
    dir: TempDir,
    both: SpoolId,
    body_only: SpoolId,
    /// `FORMAT` of the time when the store had only `data`.
    format_of_data: Vec<u8>,
}

const BODY: [u8; 9_000] = [b'b'; 9_000];
const ENVELOPE: &[u8] = b"the envelope";

/// Returns a store with two spools after a clean shutdown.
async fn mail() -> Mail {
    let dir = TempDir::new().unwrap();
    let store = Tidespool::open(Config::new(dir.path())).await.unwrap();
    let data = store.spool("data").unwrap();
    let format_of_data = std::fs::read(dir.path().join("FORMAT")).unwrap();
    let meta = store.spool("meta").unwrap();
    let (both, body_only) = (SpoolId::new(), SpoolId::new());
    data.store(both, Arc::new(BODY.as_slice().into()), true, None).await.unwrap();
    meta.store(both, Arc::new(ENVELOPE.into()), true, None).await.unwrap();
    data.store(body_only, Arc::new(b"alone".as_slice().into()), true, None).await.unwrap();
    store.shutdown().await.unwrap();
    Mail { dir, both, body_only, format_of_data }
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&out(&tidespool(args))).unwrap()
}

/// The spool, id and size of each message.
fn listed(dir: &Path, more: &[&str]) -> Vec<(String, String, u64)> {
    let text = out(&tidespool(&[&["ls", path(dir), "--json"], more].concat()));
    let entry = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        (text("spool"), text("id"), line["size"].as_u64().unwrap())
    };
    let mut all: Vec<_> = text.lines().map(entry).collect();
    all.sort();
    all
}

/// What [`mail`] stored, if the spools have these names.
fn stored(mail: &Mail, data: &str, meta: &str) -> Vec<(String, String, u64)> {
    let (both, body_only) = (mail.both.to_string(), mail.body_only.to_string());
    let mut all = vec![
        (data.to_owned(), both.clone(), 9_000),
        (data.to_owned(), body_only, 5),
        (meta.to_owned(), both, 12),
    ];
    all.sort();
    all
}

#[tokio::test]
async fn each_message_is_shown_with_its_spool() {
    let mail = mail().await;
    let dir = path(mail.dir.path());
    assert_eq!(listed(mail.dir.path(), &[]), stored(&mail, "data", "meta"));
    let meta = [("meta".to_owned(), mail.both.to_string(), 12)];
    assert_eq!(listed(mail.dir.path(), &["--spool", "meta", "--limit", "1"]), meta);
    let table = out(&tidespool(&["ls", dir]));
    assert!(table.lines().next().unwrap().ends_with("  SPOOL"), "{table}");
    assert_eq!(table.lines().filter(|line| line.ends_with("  data")).count(), 2, "{table}");
    assert_refused(&["ls", dir, "--spool", "mate"], &[dir, "no spool \"mate\"", "it has data, meta"]);

    let found = json(&["stat", dir, "--json"]);
    assert_eq!(found["messages"], 3);
    assert_eq!(found["spools"]["data"], serde_json::json!({"messages": 2, "message_bytes": 9_005}));
    assert_eq!(found["spools"]["meta"], serde_json::json!({"messages": 1, "message_bytes": 12}));
    let table = out(&tidespool(&["stat", dir]));
    assert!(table.contains("spool meta       1 message, 12 bytes\n"), "{table}");
}

#[tokio::test]
async fn get_asks_for_the_spool_only_if_several_have_the_id() {
    let mail = mail().await;
    let (dir, both, body_only) = (path(mail.dir.path()), mail.both.to_string(), mail.body_only.to_string());
    assert_eq!(tidespool(&["get", dir, &body_only]).stdout, b"alone");
    assert_refused(&["get", dir, &both], &[&both, "--spool", "data, meta"]);
    assert_eq!(tidespool(&["get", dir, &both, "--spool", "meta"]).stdout, ENVELOPE);
    assert_eq!(tidespool(&["get", dir, &both, "--spool", "data"]).stdout, BODY);
    assert_refused(&["get", dir, &body_only, "--spool", "meta"], &[&body_only, "tidespool ls"]);
    assert_refused(&["get", dir, &both, "--spool", "mate"], &["no spool \"mate\"", "data, meta"]);
}

#[tokio::test]
async fn a_damaged_message_is_named_with_its_spool() {
    let mail = mail().await;
    let mut flipped = 0;
    for file in files_below(mail.dir.path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        if let Some(at) = bytes.windows(BODY.len()).position(|window| window == BODY) {
            bytes[at + 4_000] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 0, "the body is in no file");
    let dir = path(mail.dir.path());
    let place = TempDir::new().unwrap();
    let new = place.path().join("new");
    let named = format!("message {} of spool data: ", mail.both);
    let verified = tidespool(&["verify", dir]);
    assert!(code(&verified) == Some(2) && out(&verified).contains(&named), "{}", out(&verified));
    assert_eq!(json(&["verify", dir, "--json"])["damage"][0]["spool"], "data");
    let repaired = tidespool(&["repair", dir, path(&new)]);
    assert!(
        code(&repaired) == Some(2) && out(&repaired).contains(&format!("{named}not saved: ")),
        "{}{}",
        out(&repaired),
        said(&repaired)
    );
    assert_eq!(tidespool(&["get", path(&new), &mail.both.to_string()]).stdout, ENVELOPE);
}

/// Repairs the store, and returns the new one.
fn repaired(mail: &Mail) -> (TempDir, std::path::PathBuf) {
    let place = TempDir::new().unwrap();
    let new = place.path().join("new");
    let repaired = tidespool(&["repair", path(mail.dir.path()), path(&new)]);
    assert_eq!(code(&repaired), Some(0), "{}{}", out(&repaired), said(&repaired));
    (place, new)
}

#[tokio::test]
async fn a_repair_keeps_every_spool_with_its_name() {
    let mail = mail().await;
    let store = Tidespool::open(Config::new(mail.dir.path())).await.unwrap();
    store.spool("empty").unwrap();
    store.shutdown().await.unwrap();
    let (_place, new) = repaired(&mail);
    assert_eq!(listed(&new, &[]), stored(&mail, "data", "meta"));
    let store = Tidespool::open(Config::new(&new)).await.unwrap();
    assert_eq!(store.spools(), ["data", "empty", "meta"]);
    assert_eq!(store.spool("meta").unwrap().load(mail.both).await.unwrap(), ENVELOPE);
    assert_eq!(store.spool("data").unwrap().load(mail.both).await.unwrap(), BODY);
    store.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_repair_without_the_format_file_keeps_the_spools_apart() {
    let mail = mail().await;
    std::fs::write(mail.dir.path().join("FORMAT"), [0; 64]).unwrap();
    let (_place, new) = repaired(&mail);
    assert_eq!(listed(&new, &[]), stored(&mail, "unnamed-1", "unnamed-2"));
    let store = Tidespool::open(Config::new(&new)).await.unwrap();
    assert_eq!(store.spool("unnamed-1").unwrap().load(mail.both).await.unwrap(), BODY);
    // A new spool has none of their messages.
    assert!(store.spool("meta").unwrap().load(mail.both).await.is_err());
    store.shutdown().await.unwrap();
}

/// `FORMAT` was restored from a copy that is older than a spool.
#[tokio::test]
async fn messages_of_a_spool_without_a_name_are_shown_and_saved() {
    let mail = mail().await;
    std::fs::write(mail.dir.path().join("FORMAT"), &mail.format_of_data).unwrap();
    let both = mail.both.to_string();
    assert_eq!(listed(mail.dir.path(), &[]), stored(&mail, "data", "unnamed-2"));
    assert_eq!(listed(mail.dir.path(), &["--spool", "unnamed-2"]).len(), 1);
    let got = tidespool(&["get", path(mail.dir.path()), &both, "--spool", "unnamed-2"]);
    assert_eq!(got.stdout, ENVELOPE);
    assert_eq!(json(&["stat", path(mail.dir.path()), "--json"])["spools"]["unnamed-2"]["messages"], 1);
    let (_place, new) = repaired(&mail);
    assert_eq!(listed(&new, &[]), stored(&mail, "data", "unnamed-2"));
}
