//! `tidespool repair`, and the other subcommands on a spool that cannot be opened.

use serde_json::Value;
use tempfile::TempDir;

use crate::on_a_spool::{code, files_below, out, said, spool_of, three_messages};
use crate::run::{assert_refused, names, path, tidespool};

#[tokio::test]
async fn a_whole_spool_is_copied_with_code_0() {
    let (dir, ids) = spool_of(&three_messages()).await;
    let place = TempDir::new().unwrap();
    let new = place.path().join("new");
    let repaired = tidespool(&["repair", path(dir.path()), path(&new)]);
    assert_eq!((code(&repaired), said(&repaired).as_str()), (Some(0), ""), "{}", out(&repaired));
    assert!(
        out(&repaired).contains("3 messages saved, 19.5 KiB (20009 bytes): everything"),
        "{}",
        out(&repaired)
    );
    assert_eq!(names(place.path()), ["new"]);
    assert_eq!(code(&tidespool(&["verify", path(&new)])), Some(0));
    for (id, message) in ids.iter().zip(three_messages()) {
        assert_eq!(tidespool(&["get", path(&new), &id.to_string()]).stdout, message);
    }
    // An existing spool is not overwritten.
    assert_refused(&["repair", path(dir.path()), path(&new)], &[path(&new), "not empty"]);
    let inside = dir.path().join("inside");
    assert_refused(
        &["repair", path(dir.path()), path(&inside)],
        &[path(&inside), "inside the damaged spool"],
    );
}

#[tokio::test]
async fn what_could_not_be_saved_is_named_with_code_2() {
    let (dir, ids) = spool_of(&three_messages()).await;
    let payload = [b'x'; 20_000];
    for file in files_below(dir.path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        if let Some(at) = bytes.windows(payload.len()).position(|window| window == payload) {
            bytes[at + 10_000] ^= 1;
            std::fs::write(&file, bytes).unwrap();
        }
    }
    let place = TempDir::new().unwrap();
    let new = place.path().join("new");
    let repaired = tidespool(&["repair", path(dir.path()), path(&new), "--json"]);
    assert_eq!((code(&repaired), said(&repaired).as_str()), (Some(2), ""), "{}", out(&repaired));
    let json: Value = serde_json::from_str(&out(&repaired)).unwrap();
    assert_eq!((&json["complete"], &json["saved"], &json["lost"]), (&false.into(), &2.into(), &0.into()));
    assert_eq!(json["unsaved"][0]["id"], ids[1].to_string());
    assert_eq!(code(&tidespool(&["verify", path(&new)])), Some(0), "what is in the new one is whole");
}

#[tokio::test]
async fn a_lost_format_file_is_code_2_and_names_the_command_to_run() {
    let (dir, _) = spool_of(&three_messages()).await;
    std::fs::remove_file(dir.path().join("FORMAT")).unwrap();
    let format = dir.path().join("FORMAT");
    let verified = tidespool(&["verify", path(dir.path())]);
    assert_eq!((code(&verified), said(&verified).as_str()), (Some(2), ""), "{}", out(&verified));
    for part in [path(&format), "it is missing", "tidespool repair"] {
        assert!(out(&verified).contains(part), "no {part:?} in {}", out(&verified));
    }
    let json: Value =
        serde_json::from_str(&out(&tidespool(&["verify", path(dir.path()), "--json"]))).unwrap();
    assert_eq!((&json["whole"], &json["damage"][0]["path"]), (&false.into(), &path(&format).into()));
    let listed = tidespool(&["ls", path(dir.path())]);
    assert_eq!((code(&listed), said(&listed).lines().count()), (Some(2), 1), "{}", said(&listed));
    assert!(said(&listed).contains("tidespool repair"), "{}", said(&listed));

    let place = TempDir::new().unwrap();
    let new = place.path().join("new");
    let repaired = tidespool(&["repair", path(dir.path()), path(&new)]);
    assert_eq!(code(&repaired), Some(0), "{}{}", out(&repaired), said(&repaired));
    assert!(out(&repaired).contains(path(&format)), "{}", out(&repaired));
    assert_eq!(out(&tidespool(&["ls", path(&new), "--json"])).lines().count(), 3);
}
