//! `tidespool orphans`: bodies without an envelope, as a kill between the two stores leaves them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use tidespool::{Config, Tidespool};
use tidespool_core::{Spool, SpoolId};

use crate::on_a_spool::{code, out, said};
use crate::run::{assert_refused, path, tidespool};

/// Environment variable of the child: the directory of its store.
const CHILD_DIR: &str = "TIDESPOOL_ORPHANS_DIR";

const BODY: &[u8] = b"the body";

/// In the child: accepts one message whole, stores the body of another one, prints its id, and
/// waits to be killed.
async fn accept_in_part(dir: &Path) {
    let store = Tidespool::open(Config::new(dir)).await.unwrap();
    let (data, meta) = (store.spool("data").unwrap(), store.spool("meta").unwrap());
    let (whole, orphan) = (SpoolId::new(), SpoolId::new());
    data.store(whole, Arc::new(BODY.into()), true, None).await.unwrap();
    meta.store(whole, Arc::new(b"the envelope".as_slice().into()), true, None).await.unwrap();
    data.store(orphan, Arc::new(BODY.into()), true, None).await.unwrap();
    println!("orphan {orphan}");
    std::future::pending::<()>().await;
}

/// Returns a store that was killed between two stores, and the id of the body without an envelope.
fn killed_store(test: &str) -> (TempDir, String) {
    let dir = TempDir::new().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD_DIR, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let orphan = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("orphan ")?.1.to_owned()));
    child.kill().unwrap();
    child.wait().unwrap();
    (dir, orphan.expect("the child printed the id"))
}

fn json_lines(args: &[&str]) -> Vec<Value> {
    out(&tidespool(args)).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Regression: a server enumerates `meta` alone, so a body that a kill orphaned was never found.
#[tokio::test]
async fn what_a_kill_between_two_stores_orphaned_is_found_and_removed() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return accept_in_part(Path::new(&dir)).await;
    }
    let (dir, orphan) = killed_store("orphans::what_a_kill_between_two_stores_orphaned_is_found_and_removed");
    let dir = path(dir.path());
    let young = tidespool(&["orphans", dir]);
    assert_eq!((code(&young), said(&young).as_str()), (Some(0), ""));
    assert_eq!(out(&young), "in data: 0 messages, 0 bytes, without a message in meta\n");

    let listed = json_lines(&["orphans", dir, "--older-than", "0s", "--json"]);
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((&listed[0]["id"], &listed[0]["size"]), (&orphan.as_str().into(), &8.into()));
    assert_eq!(listed[0]["removed"], false);
    assert_eq!(tidespool(&["get", dir, &orphan]).stdout, BODY, "nothing was removed");

    let removed = tidespool(&["orphans", dir, "--older-than", "0s", "--rm"]);
    assert_eq!((code(&removed), said(&removed).as_str()), (Some(0), ""), "{}", out(&removed));
    let text = out(&removed);
    assert!(text.starts_with(&orphan), "{text}");
    assert!(text.ends_with("removed from data: 1 message, 8 bytes, without a message in meta\n"), "{text}");
    let left = json_lines(&["ls", dir, "--json"]);
    let mut spools: Vec<_> = left.iter().map(|line| line["spool"].as_str().unwrap()).collect();
    spools.sort_unstable();
    assert_eq!(spools, ["data", "meta"], "the whole message stays");
    assert_eq!(json_lines(&["orphans", dir, "--older-than", "0s", "--rm", "--json"]), Vec::<Value>::new());
}

/// Returns a store after a clean shutdown: the spools `bodies` and `envelopes` have the message
/// `both`, and `bodies` one more.
async fn store() -> (TempDir, SpoolId) {
    let dir = TempDir::new().unwrap();
    let store = Tidespool::open(Config::new(dir.path())).await.unwrap();
    let (data, meta) = (store.spool("bodies").unwrap(), store.spool("envelopes").unwrap());
    let both = SpoolId::new();
    data.store(both, Arc::new(BODY.into()), true, None).await.unwrap();
    data.store(SpoolId::new(), Arc::new(BODY.into()), true, None).await.unwrap();
    meta.store(both, Arc::new(b"an envelope that is lost".as_slice().into()), true, None).await.unwrap();
    store.shutdown().await.unwrap();
    (dir, both)
}

#[tokio::test]
async fn the_spools_are_chosen_by_name() {
    let (dir, _) = store().await;
    let dir = path(dir.path());
    let named = ["--data", "bodies", "--meta", "envelopes", "--older-than", "0s", "--json"];
    assert_eq!(json_lines(&[&["orphans", dir], named.as_slice()].concat()).len(), 1);
    assert_refused(&["orphans", dir], &[dir, "no spool \"data\"", "bodies, envelopes"]);
    assert_refused(&["orphans", dir, "--data", "bodies"], &["no spool \"meta\""]);
    assert_refused(&["orphans", dir, "--older-than", "soon"], &["soon", "--older-than"]);
}

/// The envelope is on a part of the disk that is lost: its body looks like an orphan.
#[tokio::test]
async fn nothing_is_removed_from_a_damaged_store() {
    let (dir, both) = store().await;
    std::fs::remove_file(dir.path().join("manifest")).unwrap();
    let dir = path(dir.path());
    let named = ["--data", "bodies", "--meta", "envelopes", "--older-than", "0s", "--rm"];
    let refused = tidespool(&[&["orphans", dir], named.as_slice()].concat());
    assert_eq!((code(&refused), said(&refused).as_str()), (Some(2), ""), "{}", out(&refused));
    assert!(out(&refused).contains("manifest: ") && out(&refused).contains("nothing was removed"));
    assert_eq!(json_lines(&["ls", dir, "--json"]).len(), 3);
    assert_eq!(tidespool(&["get", dir, &both.to_string(), "--spool", "bodies"]).stdout, BODY);
}
