use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::setup::copy_dir;

/// A kind of damage to a file (a *strike*). `InPlace` writes into the file that sled has open. The
/// others replace or truncate it, or change its access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Delete,
    /// Truncates it to zero bytes.
    Empty,
    /// Truncates it to a part.
    CutShort,
    /// Zeroes all bytes.
    Zero,
    /// Zeroes some bytes.
    ZeroPart,
    /// Overwrites all bytes with garbage.
    Garbage,
    /// Overwrites some bytes with garbage.
    GarbagePart,
    /// Replaces it with an older file of the same spool.
    Older,
    OlderInPlace,
    /// Replaces it with a file of another spool.
    Foreign,
    ForeignInPlace,
    /// Sets a mode that forbids all access, for every user but root.
    Forbid,
    /// Replaces it with a directory, which root can't read either.
    Directory,
}

impl Way {
    pub(super) const ALL: [Self; 13] = [
        Self::Delete,
        Self::Empty,
        Self::CutShort,
        Self::Zero,
        Self::ZeroPart,
        Self::Garbage,
        Self::GarbagePart,
        Self::Older,
        Self::OlderInPlace,
        Self::Foreign,
        Self::ForeignInPlace,
        Self::Forbid,
        Self::Directory,
    ];

    pub(super) fn any(rng: &mut SmallRng) -> Self {
        Self::ALL[rng.random_range(0..Self::ALL.len())]
    }
}

/// The files to damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    All,
    One(PathBuf),
}

impl Target {
    /// All files together, then each one. Paths are relative to the spool's directory.
    pub(super) fn each(spool: &Path) -> Vec<Self> {
        let files = files(&spool.join("sled"));
        assert!(!files.is_empty(), "sled has no files");
        let one = |path: PathBuf| Self::One(path.strip_prefix(spool).unwrap().to_owned());
        std::iter::once(Self::All).chain(files.into_iter().map(one)).collect()
    }

    pub(super) fn any(spool: &Path, rng: &mut SmallRng) -> Self {
        let files = files(&spool.join("sled"));
        let one = files.choose(rng).filter(|_| rng.random_bool(0.5));
        one.map_or(Self::All, |file| Self::One(file.strip_prefix(spool).unwrap().to_owned()))
    }
}

/// Copies of `sled/`: an older one of the same spool, and one of another spool.
#[derive(Debug, Clone)]
pub(super) struct Donors {
    pub(super) older: PathBuf,
    pub(super) foreign: PathBuf,
}

/// Damages the files of a spool. Files that a running sled removes meanwhile are skipped.
pub(super) fn strike(spool: &Path, way: Way, target: &Target, donors: &Donors, rng: &mut SmallRng) {
    let sled = spool.join("sled");
    let result = match (target, way) {
        (Target::One(path), _) => strike_file(&spool.join(path), way, donors, rng),
        (Target::All, Way::Delete) => fs::remove_dir_all(&sled),
        (Target::All, Way::Older) => exchange(&sled, &donors.older),
        (Target::All, Way::Foreign) => exchange(&sled, &donors.foreign),
        (Target::All, _) => files(&sled).iter().try_for_each(|path| {
            strike_file(path, way, donors, rng).or_else(|error| unless_gone(path, &error))
        }),
    };
    if let Err(error) = result {
        unless_gone(&sled, &error).unwrap();
    }
}

/// Deletes, empties or garbles all files, depending on `how`. For tests without copies of sled's
/// files.
pub(crate) fn lose_all(spool: &Path, how: u8) {
    let way = [Way::Delete, Way::Empty, Way::Garbage][usize::from(how) % 3];
    let donors = Donors { older: PathBuf::new(), foreign: PathBuf::new() };
    strike(spool, way, &Target::All, &donors, &mut SmallRng::seed_from_u64(how.into()));
}

fn unless_gone(path: &Path, error: &io::Error) -> io::Result<()> {
    match error.kind() {
        // A directory that is deleted while sled creates files in it is not empty at the end.
        ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty => Ok(()),
        _ => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

fn strike_file(path: &Path, way: Way, donors: &Donors, rng: &mut SmallRng) -> io::Result<()> {
    let len = fs::metadata(path)?.len();
    // Starts in the first half, the part of its files that sled uses.
    let (from, some) = (rng.random_range(0..(len / 2).max(1)), rng.random_range(1..=len.clamp(1, 64 * 1024)));
    let some = some.min(len - from);
    match way {
        Way::Delete => fs::remove_file(path),
        Way::Empty => existing(path)?.set_len(0),
        Way::CutShort => existing(path)?.set_len(from),
        Way::Zero => existing(path)?.write_all_at(&vec![0; bytes(len)], 0),
        Way::ZeroPart => existing(path)?.write_all_at(&vec![0; bytes(some)], from),
        Way::Garbage => existing(path)?.write_all_at(&garbage(len, rng), 0),
        Way::GarbagePart => existing(path)?.write_all_at(&garbage(some, rng), from),
        Way::Older => put_in_place_of(path, &fs::read(donor(&donors.older, path))?),
        Way::Foreign => put_in_place_of(path, &fs::read(donor(&donors.foreign, path))?),
        Way::OlderInPlace => overwrite(path, &fs::read(donor(&donors.older, path))?),
        Way::ForeignInPlace => overwrite(path, &fs::read(donor(&donors.foreign, path))?),
        Way::Forbid => fs::set_permissions(path, Permissions::from_mode(0o000)),
        Way::Directory => {
            fs::remove_file(path)?;
            fs::create_dir(path)
        }
    }
}

fn existing(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

fn bytes(len: u64) -> usize {
    usize::try_from(len).unwrap()
}

fn garbage(len: u64, rng: &mut SmallRng) -> Vec<u8> {
    let mut garbage = vec![0; bytes(len)];
    rng.fill(&mut garbage[..]);
    garbage
}

/// Replaces the file by another one with the same name.
fn put_in_place_of(path: &Path, data: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let spool = path.ancestors().find(|dir| dir.ends_with("sled")).unwrap().parent().unwrap();
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let beside = spool.with_file_name(format!("other-{number}"));
    fs::write(&beside, data)?;
    fs::rename(&beside, path)
}

/// Overwrites the same file.
fn overwrite(path: &Path, data: &[u8]) -> io::Result<()> {
    let file = existing(path)?;
    file.set_len(data.len() as u64)?;
    file.write_all_at(data, 0)
}

/// The file of the same name; else one of the same kind, or any.
fn donor(donor: &Path, path: &Path) -> PathBuf {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let kind = |path: &Path| name(path).split('.').next().unwrap().to_owned();
    let files = files(donor);
    let same_name = files.iter().rfind(|file| name(file) == name(path));
    let same_kind = files.iter().rfind(|file| kind(file) == kind(path));
    same_name.or(same_kind).or(files.last()).expect("a donor has files").clone()
}

/// Replaces sled's files. Whatever the directories are called, the content of the copy replaces the
/// directory of each instance.
fn exchange(sled: &Path, donor: &Path) -> io::Result<()> {
    let home = homes(donor).pop().expect("a donor has a directory with files");
    for replaced in homes(sled) {
        fs::remove_dir_all(&replaced).or_else(|error| unless_gone(&replaced, &error))?;
        copy_dir(&home, &replaced);
    }
    Ok(())
}

/// Copies the files of `donor` into the newest directory below `sled`, which may be empty.
pub(super) fn put_into_the_newest(sled: &Path, donor: &Path) {
    let number = |dir: &PathBuf| dir.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
    let dirs = fs::read_dir(sled).unwrap().map(|entry| entry.unwrap().path());
    let newest = dirs.max_by_key(number).expect("there is a directory");
    copy_dir(&homes(donor).pop().expect("a donor has a directory with files"), &newest);
}

/// The topmost directories that contain files.
fn homes(sled: &Path) -> Vec<PathBuf> {
    let holding: Vec<_> = files(sled).into_iter().map(|file| file.parent().unwrap().to_owned()).collect();
    let is_top = |dir: &&PathBuf| !holding.iter().any(|other| dir.starts_with(other) && other != *dir);
    let mut tops: Vec<_> = holding.iter().filter(is_top).cloned().collect();
    tops.dedup();
    tops
}

/// The files below `dir`, sorted. A running sled may change them.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        // A directory that was removed has no files.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => left.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                Err(_) => {}
            }
        }
    }
    found.sort();
    found
}
