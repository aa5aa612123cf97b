use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Environment variable of the child: the directory that it works in.
const CHILD_DIR: &str = "TIDESPOOL_PROCESS_DIR";

/// A user without other processes: a limit on its threads applies to the child only.
const UNUSED_USER: u32 = 61_234;

/// Runs `body` in a child process with an empty directory. `test` is the path of the calling test.
pub(crate) fn run(test: &str, body: impl FnOnce(&Path)) {
    match child_dir() {
        Some(dir) => finish(&dir, body),
        None => parent(test, None),
    }
}

/// Runs `body` as an ordinary user, to whom modes and limits apply. A parent that is not root keeps
/// its own user.
pub(crate) fn run_unprivileged(test: &str, body: impl FnOnce(&Path)) {
    let user = rustix::process::geteuid().is_root().then_some(UNUSED_USER);
    match child_dir() {
        Some(dir) => finish(&dir, body),
        None => parent(test, user),
    }
}

fn child_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD_DIR).map(PathBuf::from)
}

fn finish(dir: &Path, body: impl FnOnce(&Path)) {
    body(&dir.join("work"));
    std::fs::write(dir.join("done"), "").unwrap();
}

fn parent(test: &str, user: Option<u32>) {
    let dir = TempDir::with_prefix("tidespool-process-").unwrap();
    let work = dir.path().join("work");
    std::fs::create_dir(&work).unwrap();
    // The build directory may be inaccessible to other users.
    let binary = match user {
        Some(_) => dir.path().join("test"),
        None => std::env::current_exe().unwrap(),
    };
    if user.is_some() {
        std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
        for open in [dir.path(), &work, &binary] {
            std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o777)).unwrap();
        }
    }
    let mut command = Command::new(binary);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(CHILD_DIR, dir.path()).current_dir(&work);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let output = command.output().unwrap();
    let output_text =
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the child ended with {}:\n{output_text}", output.status);
    assert!(dir.path().join("done").exists(), "there is no test named {test}:\n{output_text}");
}
