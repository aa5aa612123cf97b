//! Selects the message files of a Maildir or of a folder of `.eml` files.

use std::io;
use std::path::{Path, PathBuf};

use crate::bad_input::BadInput;

/// The files in `cur` and `new`, sorted by name. In a Maildir this is roughly the order of arrival.
pub(crate) fn maildir_files(dir: &Path) -> Result<Vec<PathBuf>, BadInput> {
    require_folder(dir, "--maildir")?;
    let parts: Vec<PathBuf> =
        ["cur", "new"].iter().map(|part| dir.join(part)).filter(|p| p.is_dir()).collect();
    if parts.is_empty() {
        return Err(BadInput::new(format!(
            "{} is not a Maildir: it has no folder cur or new; a folder of .eml files is given with --eml",
            dir.display()
        )));
    }
    let mut files = Vec::new();
    for part in &parts {
        files.extend(files_of(part, |name| !name.starts_with('.'))?);
    }
    not_empty(files, dir, "no message in its folders cur and new")
}

/// The `.eml` files in `dir` itself, sorted by name.
pub(crate) fn eml_files(dir: &Path) -> Result<Vec<PathBuf>, BadInput> {
    require_folder(dir, "--eml")?;
    let is_eml = |name: &str| name.to_ascii_lowercase().ends_with(".eml") && !name.starts_with('.');
    not_empty(files_of(dir, is_eml)?, dir, "no .eml file")
}

fn require_folder(dir: &Path, option: &str) -> Result<(), BadInput> {
    let found = std::fs::metadata(dir)
        .map_err(|err| BadInput::io("read", dir, &err, &format!("give {option} a folder that exists")))?;
    if found.is_dir() {
        return Ok(());
    }
    Err(BadInput::new(format!(
        "{} is a file, and {option} takes a folder; an mbox file is given with --mbox",
        dir.display()
    )))
}

fn not_empty(files: Vec<PathBuf>, dir: &Path, what: &str) -> Result<Vec<PathBuf>, BadInput> {
    if files.is_empty() {
        return Err(BadInput::new(format!(
            "{} has {what}; give a folder with messages (a Maildir with --maildir, other folders with --eml), or no input option for the built-in messages",
            dir.display()
        )));
    }
    Ok(files)
}

fn files_of(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, BadInput> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_file() && path.file_name().is_some_and(|name| wanted(&name.to_string_lossy())) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    };
    list().map_err(|err| BadInput::io("list", dir, &err, "allow reading it, or give another folder"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[PathBuf]) -> Vec<String> {
        files.iter().filter_map(|f| f.file_name()).map(|name| name.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_maildir_gives_cur_and_new() {
        let dir = tempfile::tempdir().unwrap();
        for part in ["cur", "new", "tmp"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
        }
        for file in ["cur/1.a:2,S", "new/2.b", "tmp/3.c", "cur/.hidden"] {
            std::fs::write(dir.path().join(file), "x").unwrap();
        }
        assert_eq!(names(&maildir_files(dir.path()).unwrap()), ["1.a:2,S", "2.b"]);
    }

    #[test]
    fn eml_files_by_their_ending() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["b.eml", "a.EML", "notes.txt", ".c.eml"] {
            std::fs::write(dir.path().join(file), "x").unwrap();
        }
        std::fs::create_dir(dir.path().join("d.eml")).unwrap();
        assert_eq!(names(&eml_files(dir.path()).unwrap()), ["a.EML", "b.eml"]);
    }

    #[test]
    fn errors_name_the_problem() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let missing = dir.path().join("missing");
        let shown = |result: Result<Vec<PathBuf>, BadInput>| result.unwrap_err().to_string();
        assert!(shown(eml_files(&missing)).contains("missing"));
        assert!(shown(maildir_files(&file)).contains("is a file"));
        assert!(shown(maildir_files(dir.path())).contains("not a Maildir"));
        assert!(shown(eml_files(dir.path())).contains("no .eml file"));
        std::fs::create_dir(dir.path().join("cur")).unwrap();
        assert!(shown(maildir_files(dir.path())).contains("no message"));
    }
}
