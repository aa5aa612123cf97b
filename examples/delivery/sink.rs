//! The sink: one file per message, complete or absent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tidespool_core::SpoolId;

/// A folder of the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shelf {
    Delivered,
    Bounced,
}

impl Shelf {
    pub(crate) const ALL: [Self; 2] = [Self::Delivered, Self::Bounced];

    fn folder(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Bounced => "bounced",
        }
    }
}

/// The sink. Its calls block: use them in `spawn_blocking`, or before and after the run.
#[derive(Debug, Clone)]
pub(crate) struct Sink {
    root: PathBuf,
}

impl Sink {
    /// Creates the folders if they are missing.
    pub(crate) fn new(root: &Path) -> io::Result<Self> {
        for shelf in Shelf::ALL {
            fs::create_dir_all(root.join(shelf.folder()))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Writes a message. Returns true if it replaced an earlier copy: the delivery is a duplicate.
    ///
    /// It writes a temporary file and renames it, so a reader, and a run after `kill -9`, finds all
    /// of the message or none. There is no fsync, since the sink stands for a remote server; a
    /// power cut may lose deliveries.
    pub(crate) fn put(&self, shelf: Shelf, id: SpoolId, bytes: &[u8]) -> io::Result<bool> {
        let path = self.path(shelf, id);
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, bytes)?;
        let replaces = path.try_exists()?;
        fs::rename(&temporary, &path)?;
        Ok(replaces)
    }

    /// The bytes that arrived, or `None`.
    pub(crate) fn read(&self, shelf: Shelf, id: SpoolId) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path(shelf, id)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Whether the message arrived, in either folder.
    pub(crate) fn has(&self, id: SpoolId) -> io::Result<bool> {
        for shelf in Shelf::ALL {
            if self.path(shelf, id).try_exists()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The ids of all messages that arrived.
    pub(crate) fn ids(&self, shelf: Shelf) -> io::Result<Vec<SpoolId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.root.join(shelf.folder()))? {
            ids.extend(id_of(&entry?.path(), "eml"));
        }
        Ok(ids)
    }

    /// Removes the files of earlier runs. Files with other names stay: they are foreign.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.remove(&["eml", "tmp"])
    }

    /// Removes deliveries that a kill interrupted.
    pub(crate) fn remove_unfinished(&self) -> io::Result<()> {
        self.remove(&["tmp"])
    }

    fn remove(&self, extensions: &[&str]) -> io::Result<()> {
        for shelf in Shelf::ALL {
            for entry in fs::read_dir(self.root.join(shelf.folder()))? {
                let path = entry?.path();
                if extensions.iter().any(|extension| id_of(&path, extension).is_some()) {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn path(&self, shelf: Shelf, id: SpoolId) -> PathBuf {
        self.root.join(shelf.folder()).join(format!("{id}.eml"))
    }
}

fn id_of(path: &Path, extension: &str) -> Option<SpoolId> {
    if path.extension()? != extension {
        return None;
    }
    path.file_stem()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_delivery_replaces_the_first_and_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let sink = Sink::new(dir.path()).unwrap();
        let id = SpoolId::new();
        assert!(!sink.has(id).unwrap());
        assert!(!sink.put(Shelf::Delivered, id, b"one").unwrap());
        assert!(sink.put(Shelf::Delivered, id, b"two").unwrap());
        assert!(sink.has(id).unwrap());
        assert_eq!(sink.read(Shelf::Delivered, id).unwrap().unwrap(), b"two");
        assert_eq!(sink.read(Shelf::Bounced, id).unwrap(), None);
        assert_eq!(sink.ids(Shelf::Delivered).unwrap(), [id]);
    }

    #[test]
    fn only_own_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let sink = Sink::new(dir.path()).unwrap();
        let (whole, partial) = (SpoolId::new(), SpoolId::new());
        sink.put(Shelf::Bounced, whole, b"x").unwrap();
        let temporary = sink.path(Shelf::Delivered, partial).with_extension("tmp");
        let foreign = dir.path().join("delivered/letter.eml");
        fs::write(&temporary, "x").unwrap();
        fs::write(&foreign, "x").unwrap();
        sink.remove_unfinished().unwrap();
        assert!(!temporary.exists() && sink.has(whole).unwrap());
        sink.clear().unwrap();
        assert!(!sink.has(whole).unwrap() && foreign.exists());
    }
}
