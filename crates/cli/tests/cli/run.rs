//! Runs the real binary.

use std::path::Path;
use std::process::{Command, Output};

pub(crate) fn tidespool(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidespool")).args(args).output().unwrap()
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Asserts exit code 1, an empty standard output, and one line on standard error with all of
/// `parts`.
pub(crate) fn assert_refused(args: &[&str], parts: &[&str]) {
    let output = tidespool(args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{args:?}");
    assert!(said.starts_with("tidespool: ") && said.ends_with('\n'), "{args:?}: {said:?}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said:?}");
    for part in parts {
        assert!(said.contains(part), "{args:?}: no {part:?} in {said:?}");
    }
}
