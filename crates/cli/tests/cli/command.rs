//! Runs the real `tidespool` binary: help, errors in the arguments, and their exit codes.

use tempfile::TempDir;

use crate::run::{assert_refused, names, path, tidespool};

const AN_ID: &str = "1ec9414c232a6b00b3c89f6bdeced846";

#[test]
fn a_directory_that_is_no_spool_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("missing");
    let file = dir.path().join("file");
    let other = dir.path().join("other");
    std::fs::write(&file, "x").unwrap();
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("mail.txt"), "x").unwrap();

    let new = dir.path().join("new");
    for command in ["ls", "get", "orphans", "stat", "verify", "repair"] {
        for (place, what) in
            [(&missing, "does not exist"), (&file, "is not a directory"), (&other, "is not a spool")]
        {
            let mut args = vec![command, path(place)];
            if command == "get" {
                args.push(AN_ID);
            }
            if command == "repair" {
                args.push(path(&new));
            }
            assert_refused(&args, &[path(place), what, "give the directory of a spool"]);
        }
    }
    assert_eq!(names(&other), ["mail.txt"]);
    assert!(!missing.exists() && !new.exists());
}

#[test]
fn bad_arguments_are_one_line_and_code_1() {
    assert_refused(&["sweep"], &["sweep", "--help"]);
    for command in ["ls", "get", "orphans", "stat", "verify"] {
        assert_refused(&[command], &["<DIR>", "--help"]);
    }
    assert_refused(&["repair", "/tmp"], &["<NEW_DIR>", "--help"]);
    assert_refused(&["ls", "/tmp", "--limit", "many"], &["many", "--limit"]);
    assert_refused(&["get", "/tmp"], &["<ID>"]);
    assert_refused(&["get", "/tmp", "zz"], &["\"zz\" is not a spool id", "32 hexadecimal digits"]);
    assert_refused(&["verify", "/tmp", "--fast"], &["--fast"]);
}

#[test]
fn help_is_no_error_and_names_every_subcommand() {
    let output = tidespool(&["--help"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for command in ["ls", "get", "orphans", "stat", "verify", "repair", "bench"] {
        assert!(said.contains(command), "{said}");
        assert_eq!(tidespool(&[command, "--help"]).status.code(), Some(0));
    }
    assert_eq!(tidespool(&["--version"]).status.code(), Some(0));
    // Without arguments: the help, as an error.
    let output = tidespool(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Usage:"));
}
