//! sled's files: who may read them, and when they are on stable storage.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

/// How files become durable: a seam, so that tests can break it.
pub(crate) trait FileSync: Send + Sync {
    /// Returns when the bytes of `file` and its length are on stable storage. `path` is what it was opened as.
    fn sync(&self, file: &File, path: &Path) -> io::Result<()>;
}

/// The real thing: `fdatasync`; for a directory, `fsync`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fdatasync;

impl FileSync for Fdatasync {
    fn sync(&self, file: &File, _path: &Path) -> io::Result<()> {
        if file.metadata()?.is_dir() { file.sync_all() } else { file.sync_data() }
    }
}

/// sled's data file, through a descriptor that is older than sled's own and is kept: the kernel tells each descriptor
/// about write-back errors that happen while it is open, and one opened afterwards may never hear of them.
#[derive(Debug)]
pub(super) struct DataFile {
    file: File,
    path: PathBuf,
}

impl DataFile {
    /// Makes the directory and its files, where there are none, so that nobody else can read them at any moment
    /// (sled would leave that to the umask), and opens the data file.
    pub(super) fn prepare(dir: &Path) -> io::Result<Self> {
        for path in [dir, &dir.join("blobs")] {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o700))?;
        }
        let path = dir.join("db");
        // Not made empty: what is there is sled's.
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        Ok(Self { file, path })
    }

    /// Makes what sled flushed durable: sled itself only starts the writing.
    pub(super) fn sync(&self, sync: &dyn FileSync) -> io::Result<()> {
        sync.sync(&self.file, &self.path)
    }

    /// Lets the kernel forget the clean pages of the file. After a failed write-back they are what should be on disk,
    /// not what is: reading them would show data as there which the next power cut takes away.
    pub(super) fn forget_cached_pages(&self) -> io::Result<()> {
        Ok(fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }
}

/// Closes what sled made to others, and makes the files durable which it makes once and never syncs.
pub(super) fn settle(dir: &Path, sync: &dyn FileSync) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::set_permissions(entry.path(), Permissions::from_mode(0o600))?;
        }
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for path in [&dir.join("conf"), &dir.join("blobs"), dir, parent] {
        match File::open(path) {
            Ok(file) => sync.sync(&file, path)?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// Bytes of all files in `dir` and in the folders in it.
pub(super) fn size_of(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += size_of(&entry.path())?,
            Ok(metadata) => bytes += metadata.len(),
            // sled removes snapshots and blobs beside us.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
    }
    Ok(bytes)
}

/// Those of sled's files that hold no message: snapshots, which spare it reading all of its data file, and its settings, which are always the same. It
/// makes them anew where they are missing, and does not open where they are damaged.
pub(crate) fn sled_helpers(dir: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let entries = match fs::read_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "conf" || name.starts_with("snap.") {
            found.push((entry.path(), name));
        }
    }
    Ok(found)
}

/// Removes the snapshots that a kill left half written. sled would take an empty one for the newest, and not open: everything in it was lost so once.
pub(super) fn remove_unfinished_snapshots(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
