//! Builds the library to preload.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The built library. Its crate is not a dependency of the tests: a linked `cdylib` would replace
/// the calls of this process.
pub(crate) fn library() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build)
}

fn build() -> PathBuf {
    // A separate directory, so that the build does not wait for the lock of another cargo.
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("iofault");
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--quiet", "--locked", "--package", "tidespool-iofault", "--target-dir"]);
    command.arg(&target).current_dir(env!("CARGO_MANIFEST_DIR"));
    // Instrumentation of the tests must not apply to the library, and another build target would
    // use another directory.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "LD_PRELOAD"] {
        command.env_remove(name);
    }
    let output = command.output().unwrap_or_else(|err| panic!("{command:?}: {err}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let library = target.join("debug/libiofault.so");
    assert!(library.exists(), "{} is missing", library.display());
    library
}
