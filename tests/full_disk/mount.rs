use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::setup::{KIB, MIB};

/// What kind of file system a test is made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tmpfs,
    /// ext4 on a loop device.
    Ext4,
    /// Without a size: `statvfs` reports zero blocks.
    Ramfs,
}

pub(crate) const KINDS: [Kind; 2] = [Kind::Tmpfs, Kind::Ext4];

/// A file system of its own, unmounted when it is dropped.
#[derive(Debug)]
pub(crate) struct Mount {
    _place: Place,
    /// Below the mount point, where the files of a test lie.
    inside: PathBuf,
    /// Below it, for what is mounted from a file: what the file is on.
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
        // Threads of a spool that was dropped, not shut down, may hold files for a moment longer: it goes when they do.
        if self.mounted
            && let Err(why) = run(Command::new("umount").arg("--lazy").arg(self.dir.path()))
        {
            eprintln!("{} is left behind: {why}", self.dir.path().display());
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
    /// One of `size` bytes; `None`, told on standard error, where none can be made.
    pub(crate) fn make(kind: Kind, size: u64) -> Option<Self> {
        left_out(match kind {
            Kind::Tmpfs => Self::tmpfs(&format!("size={size}")),
            Kind::Ext4 => Self::ext4(size, &[], None),
            Kind::Ramfs => Self::ramfs(),
        })
    }

    /// One of `size` bytes with room for about `inodes` files.
    pub(crate) fn with_inodes(kind: Kind, size: u64, inodes: u64) -> Option<Self> {
        left_out(match kind {
            Kind::Tmpfs => Self::tmpfs(&format!("size={size},nr_inodes={inodes}")),
            Kind::Ext4 => Self::ext4(size, &["-N", &inodes.to_string()], None),
            Kind::Ramfs => Err("ramfs has no number of inodes".to_owned()),
        })
    }

    /// An ext4 of `size` bytes in a file that has room for only `room` of them: [`Mount::widen`] gives it the rest.
    pub(crate) fn thin(size: u64, room: u64) -> Option<Self> {
        left_out(Self::ext4(size, &[], Some(room)))
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
        // In memory: how fast the disk of the machine is shall not matter.
        let room = room.unwrap_or(size + MIB);
        below.mount(&["-t", "tmpfs", "-o", &format!("size={room}"), "tmpfs"])?;
        let image = below.dir.path().join("image");
        File::create(&image).and_then(|file| file.set_len(size)).map_err(|err| err.to_string())?;
        // Nothing is kept back for root, and the file system's own parts have their room from the start.
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-b", "4096", "-m", "0", "-E", "nodiscard"]);
        if room < size {
            // A journal that cannot be written makes the file system read-only for good.
            make.args(["-O", "^has_journal"]);
        }
        run(make.args(options).arg(&image))?;
        let mut place = Place::new();
        place.mount(&["-o", "loop,nodiscard,errors=continue", &image.display().to_string()])?;
        let inside = place.dir.path().to_owned();
        Ok(Self { _place: place, inside, _below: Some(below) })
    }

    /// A btrfs subvolume with a quota of `quota` bytes, on a file system that is much larger:
    /// `statvfs` does not show the quota.
    pub(crate) fn quota(quota: u64) -> Option<Self> {
        left_out(Self::btrfs(quota))
    }

    /// A btrfs whose data has checksums and one copy: a byte that changes below it makes reads
    /// fail.
    pub(crate) fn with_checksums() -> Option<Self> {
        left_out(Self::btrfs_in_memory(256 * MIB).map(|(below, place)| {
            let inside = place.dir.path().to_owned();
            Self { _place: place, inside, _below: Some(below) }
        }))
    }

    /// Flips a bit of each of these blocks of 4 KiB, wherever they lie on the device. Returns how
    /// many places it found.
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

    /// What the image lies on, and where it is mounted.
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

    /// Bytes and inodes that are left, to root as well.
    pub(crate) fn left(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        (stat.f_bavail * stat.f_frsize, stat.f_favail)
    }

    /// What is below a [`Mount::thin`] one has room for `room` bytes from now on.
    pub(crate) fn widen(&self, room: u64) {
        let below = self._below.as_ref().unwrap();
        let size = format!("remount,size={room}");
        run(Command::new("mount").args(["-o", &size]).arg(below.dir.path())).unwrap();
    }
}

fn left_out(made: Result<Mount, String>) -> Option<Mount> {
    made.inspect_err(|why| eprintln!("skipped: nothing can be mounted here: {why}")).ok()
}

/// Somebody else on the same file system.
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

    /// Takes so many bytes more. False where there is no room for all of them: it takes what there is.
    pub(crate) fn grow(&mut self, bytes: u64) -> bool {
        let until = self.len + bytes;
        // Smaller and smaller pieces: the last page counts.
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

    /// Takes everything that is left, now.
    pub(crate) fn fill(&mut self) {
        while self.grow(64 * MIB) {}
        // Where blocks are handed out late, only a sync tells whether there were any.
        let _ = self.file.sync_all();
        self.grow(64 * MIB);
    }

    pub(crate) fn sync(&self) {
        // What becomes of its bytes is no matter.
        let _ = self.file.sync_all();
    }

    /// Makes files until no more can be made.
    pub(crate) fn take_inodes(&mut self) {
        while File::create(self.dir.join(self.files.to_string())).is_ok() {
            self.files += 1;
        }
    }

    /// Gives up so many of the files.
    pub(crate) fn give_inodes(&mut self, count: u64) {
        for _ in 0..count.min(self.files) {
            self.files -= 1;
            fs::remove_file(self.dir.join(self.files.to_string())).unwrap();
        }
    }

    /// Keeps only so many of its bytes.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        self.file.set_len(bytes).unwrap();
        self.file.flush().unwrap();
        self.len = bytes;
    }
}
