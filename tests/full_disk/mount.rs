use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::setup::{KIB, MIB};

/// The kind of file system of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tmpfs,
    /// ext4 on a loop device.
    Ext4,
    /// Without a size: `statvfs` reports zero blocks.
    Ramfs,
}

pub(crate) const KINDS: [Kind; 2] = [Kind::Tmpfs, Kind::Ext4];

/// A temporary file system, unmounted on drop.
#[derive(Debug)]
pub(crate) struct Mount {
    _place: Place,
    /// The directory for the files of a test, at or below the mount point.
    inside: PathBuf,
    /// The file system that holds the image file, if there is one.
    _below: Option<Place>,
}

#[derive(Debug)]
struct Place {
    dir: TempDir,
    mounted: bool,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("tidespool-full-").tempdir().unwrap();
        Self { dir, mounted: false }
    }

    fn mount(&mut self, args: &[&str]) -> Result<(), String> {
        run(Command::new("mount").args(args).arg(self.dir.path()))?;
        self.mounted = true;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Threads of a dropped spool may keep files open for a moment. A lazy unmount ends with
        // them.
        if self.mounted
            && let Err(why) = run(Command::new("umount").arg("--lazy").arg(self.dir.path()))
        {
            eprintln!("{} is still mounted: {why}", self.dir.path().display());
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|err| format!("{command:?}: {err}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Mount {
    /// A file system of `size` bytes. If none can be mounted, prints the reason to standard error
    /// and returns `None`.
    pub(crate) fn make(kind: Kind, size: u64) -> Option<Self> {
        or_skip(match kind {
            Kind::Tmpfs => Self::tmpfs(&format!("size={size}")),
            Kind::Ext4 => Self::ext4(size, &[], None),
            Kind::Ramfs => Self::ramfs(),
        })
    }

    /// A file system of `size` bytes with space for about `inodes` files.
    pub(crate) fn with_inodes(kind: Kind, size: u64, inodes: u64) -> Option<Self> {
        or_skip(match kind {
            Kind::Tmpfs => Self::tmpfs(&format!("size={size},nr_inodes={inodes}")),
            Kind::Ext4 => Self::ext4(size, &["-N", &inodes.to_string()], None),
            Kind::Ramfs => Err("ramfs has no number of inodes".to_owned()),
        })
    }

    /// An ext4 of `size` bytes in a file that has only `room` bytes of space. [`Mount::widen`] adds
    /// the rest.
    pub(crate) fn thin(size: u64, room: u64) -> Option<Self> {
        or_skip(Self::ext4(size, &[], Some(room)))
    }

    fn tmpfs(options: &str) -> Result<Self, String> {
        Self::in_memory(&["-t", "tmpfs", "-o", options, "tmpfs"])
    }

    fn ramfs() -> Result<Self, String> {
        Self::in_memory(&["-t", "ramfs", "ramfs"])
    }

    fn in_memory(args: &[&str]) -> Result<Self, String> {
        let mut place = Place::new();
        place.mount(args)?;
        let inside = place.dir.path().to_owned();
        Ok(Self { _place: place, inside, _below: None })
    }

    fn ext4(size: u64, options: &[&str], room: Option<u64>) -> Result<Self, String> {
        let mut below = Place::new();
        // In memory, so that the speed of the machine's disk does not matter.
        let room = room.unwrap_or(size + MIB);
        below.mount(&["-t", "tmpfs", "-o", &format!("size={room}"), "tmpfs"])?;
        let image = below.dir.path().join("image");
        File::create(&image).and_then(|file| file.set_len(size)).map_err(|err| err.to_string())?;
        // Reserves nothing for root, and allocates the file system's own parts at once.
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-b", "4096", "-m", "0", "-E", "nodiscard"]);
        if room < size {
            // A journal that cannot be written would make the file system read-only permanently.
            make.args(["-O", "^has_journal"]);
        }
        run(make.args(options).arg(&image))?;
        let mut place = Place::new();
        place.mount(&["-o", "loop,nodiscard,errors=continue", &image.display().to_string()])?;
        let inside = place.dir.path().to_owned();
        Ok(Self { _place: place, inside, _below: Some(below) })
    }

    /// A btrfs subvolume with a quota of `quota` bytes, on a much larger file system. `statvfs`
    /// does not show the quota.
    pub(crate) fn quota(quota: u64) -> Option<Self> {
        or_skip(Self::btrfs(quota))
    }

    /// A btrfs whose data has checksums and one copy. If a byte changes on the device, reads fail.
    pub(crate) fn with_checksums() -> Option<Self> {
        or_skip(Self::btrfs_in_memory(256 * MIB).map(|(below, place)| {
            let inside = place.dir.path().to_owned();
            Self { _place: place, inside, _below: Some(below) }
        }))
    }

    /// Flips a bit of each of these blocks of 4 KiB, wherever they are on the device. Returns the
    /// number of flipped blocks.
    pub(crate) fn flip(&self, blocks: &BTreeSet<Vec<u8>>) -> u64 {
        let image = self._below.as_ref().unwrap().dir.path().join("image");
        let image = File::options().read(true).write(true).open(image).unwrap();
        let mut block = vec![0; 4096];
        let (mut at, mut flipped) = (0, 0);
        while image.read_exact_at(&mut block, at).is_ok() {
            if blocks.contains(&block) {
                image.write_all_at(&[block[100] ^ 1], at + 100).unwrap();
                flipped += 1;
            }
            at += 4096;
        }
        flipped
    }

    fn btrfs(quota: u64) -> Result<Self, String> {
        let (below, place) = Self::btrfs_in_memory(512 * MIB)?;
        let inside = place.dir.path().join("limited");
        let btrfs = |args: &[&str], path: &Path| run(Command::new("btrfs").args(args).arg(path));
        btrfs(&["quota", "enable"], place.dir.path())?;
        btrfs(&["subvolume", "create"], &inside)?;
        btrfs(&["qgroup", "limit", &quota.to_string()], &inside)?;
        Ok(Self { _place: place, inside, _below: Some(below) })
    }

    /// The file system with the image, and the mounted image.
    fn btrfs_in_memory(size: u64) -> Result<(Place, Place), String> {
        let mut below = Place::new();
        below.mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])?;
        let image = below.dir.path().join("image");
        File::create(&image).and_then(|file| file.set_len(size)).map_err(|err| err.to_string())?;
        run(Command::new("mkfs.btrfs").args(["-q", "-m", "single", "--nodiscard"]).arg(&image))?;
        let mut place = Place::new();
        place.mount(&["-o", "loop,nodiscard", &image.display().to_string()])?;
        Ok((below, place))
    }

    /// The directory for the files of a test.
    pub(crate) fn path(&self) -> &Path {
        &self.inside
    }

    /// Free bytes and inodes, for root too.
    pub(crate) fn left(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        (stat.f_bavail * stat.f_frsize, stat.f_favail)
    }

    /// Sets the space below a [`Mount::thin`] file system to `room` bytes.
    pub(crate) fn widen(&self, room: u64) {
        let below = self._below.as_ref().unwrap();
        let size = format!("remount,size={room}");
        run(Command::new("mount").args(["-o", &size]).arg(below.dir.path())).unwrap();
    }
}

fn or_skip(made: Result<Mount, String>) -> Option<Mount> {
    made.inspect_err(|why| eprintln!("skipped: nothing can be mounted here: {why}")).ok()
}

/// Another user of the same file system.
#[derive(Debug)]
pub(crate) struct Neighbour {
    dir: PathBuf,
    file: File,
    len: u64,
    files: u64,
}

impl Neighbour {
    pub(crate) fn of(mount: &Mount) -> Self {
        let dir = mount.path().join("neighbour");
        fs::create_dir(&dir).unwrap();
        let file = File::create(dir.join("grows")).unwrap();
        Self { dir, file, len: 0, files: 0 }
    }

    /// Takes `bytes` more. Returns false if there is no space for all; it then takes what is free.
    pub(crate) fn grow(&mut self, bytes: u64) -> bool {
        let until = self.len + bytes;
        // Smaller and smaller pieces, to use the last page.
        let mut piece = usize::try_from(bytes.clamp(4 * KIB, MIB)).unwrap();
        while self.len < until {
            match self.file.write_at(&vec![1; piece], self.len) {
                Ok(written) => self.len += written as u64,
                Err(_) if piece > 4096 => piece = (piece / 4).max(4096),
                Err(_) => return false,
            }
        }
        true
    }

    /// Takes everything that is free now.
    pub(crate) fn fill(&mut self) {
        while self.grow(64 * MIB) {}
        // With delayed allocation, only a sync shows whether blocks were free.
        let _ = self.file.sync_all();
        self.grow(64 * MIB);
    }

    pub(crate) fn sync(&self) {
        // The neighbour's data does not matter.
        let _ = self.file.sync_all();
    }

    /// Creates files until no more can be created.
    pub(crate) fn take_inodes(&mut self) {
        while File::create(self.dir.join(self.files.to_string())).is_ok() {
            self.files += 1;
        }
    }

    /// Removes `count` of the files.
    pub(crate) fn give_inodes(&mut self, count: u64) {
        for _ in 0..count.min(self.files) {
            self.files -= 1;
            fs::remove_file(self.dir.join(self.files.to_string())).unwrap();
        }
    }

    /// Truncates its data to `bytes`.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        self.file.set_len(bytes).unwrap();
        self.file.flush().unwrap();
        self.len = bytes;
    }
}
