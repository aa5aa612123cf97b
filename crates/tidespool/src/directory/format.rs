//! The format file: the layout version of a directory, the store's own random id, and the names of
//! its spools. Finds the id of a store whose format file is damaged.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use tidespool_core::{DamagedSpool, UnsupportedFormat};
use uuid::Uuid;

use super::names::SpoolNames;
use crate::journal::spool_of_segment;
use crate::storage::{is_no_file, open_regular};

/// The layout that this version writes, and the only one that it reads.
pub(crate) const FORMAT_VERSION: u32 = 2;

pub(crate) const FORMAT_FILE: &str = "FORMAT";
/// The format file of a spool that is being created.
pub(crate) const UNFINISHED_FORMAT: &str = "FORMAT.new";

/// The most bytes that are read of a format file: one with the most spools has less.
const MAX_LEN: u64 = 64 << 10;

/// Why the text of a format file is not valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FormatError {
    /// It has another version.
    Version(String),
    /// It is a damaged file of this version, or no version wrote it.
    Damaged(String),
}

/// The contents of a format file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Format {
    /// The store's own random id.
    pub(crate) id: [u8; 16],
    pub(crate) names: SpoolNames,
}

impl Format {
    /// A store without spools.
    pub(crate) fn new(id: [u8; 16]) -> Self {
        Self { id, names: SpoolNames::default() }
    }
}

/// Returns the text of a format file.
pub(crate) fn render(format: &Format) -> String {
    let id = Uuid::from_bytes(format.id).simple();
    let text = format!("tidespool {FORMAT_VERSION}\nid {id}\n{}", format.names.render());
    format!("{text}check {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

/// Parses the text of a format file.
pub(crate) fn parse(text: &str) -> Result<Format, FormatError> {
    let damaged = |what: &str| Err(FormatError::Damaged(what.to_owned()));
    let mut lines = text.lines();
    let version = lines.next().and_then(|line| line.strip_prefix("tidespool "));
    let Some(version) = version.and_then(|version| version.parse::<u32>().ok()) else {
        let begin: String = text.chars().take(40).collect();
        return damaged(&format!("it is not a spool's format file (it begins with {begin:?})"));
    };
    let id = lines.next().and_then(|line| line.strip_prefix("id ")).and_then(|id| Uuid::try_parse(id).ok());
    let format = id.map(|id| Format { id: id.into_bytes(), names: SpoolNames::parse(lines) });
    if version != FORMAT_VERSION {
        // A flipped bit in the version of a file of this version. The next version differs in two
        // bits, and has a checksum of its own.
        let one_bit_off = version < 10 && (version ^ FORMAT_VERSION).is_power_of_two();
        return match format {
            Some(format) if one_bit_off && text.ends_with(&check_line(&format)) => {
                damaged("its version is damaged")
            }
            _ => Err(FormatError::Version(format!("layout version {version}"))),
        };
    }
    let Some(format) = format else { return damaged("the spool's id is damaged") };
    if text != render(&format) {
        return damaged("its checksum is of other bytes");
    }
    Ok(format)
}

fn check_line(format: &Format) -> String {
    render(format).lines().last().map_or_else(String::new, |line| format!("\n{line}\n"))
}

/// Returns the format file. `None`: there is neither one nor a file of a complete spool.
///
/// # Errors
///
/// [`DamagedSpool`] if there is a spool and its format file is damaged, missing, or another
/// spool's. [`UnsupportedFormat`] for a newer layout, and for a directory of another program. I/O
/// errors.
pub(crate) fn read(dir: &Path) -> Result<Option<Format>> {
    let path = dir.join(FORMAT_FILE);
    let supported = format!("layout version {FORMAT_VERSION}");
    let refuse = |found| UnsupportedFormat { path: path.clone(), found, supported };
    let damaged = |what| DamagedSpool { dir: dir.to_owned(), path: path.clone(), what };
    let text = text_of(&path).with_context(|| format!("reading {}", path.display()))?;
    let format = match text.as_deref().map(parse) {
        Some(Ok(format)) => format,
        Some(Err(FormatError::Version(found))) => return Err(refuse(found).into()),
        Some(Err(FormatError::Damaged(what))) if holds_a_spool(dir) => return Err(damaged(what).into()),
        Some(Err(FormatError::Damaged(found))) => return Err(refuse(found).into()),
        // A spool that is being created has `FORMAT.new` instead.
        None if holds_a_spool(dir) && unfinished(dir)?.is_none() => {
            return Err(damaged("it is missing".to_owned()).into());
        }
        None => return Ok(None),
    };
    let of_segments = spools_of_segments(dir, Some(format.id));
    if !of_segments.is_empty() && !of_segments.contains_key(&format.id) {
        let what = format!("it names the spool {}, and no segment is of that one", shown(format.id));
        return Err(damaged(what).into());
    }
    Ok(Some(format))
}

/// Returns the format file of a spool whose creation was interrupted.
pub(crate) fn unfinished(dir: &Path) -> Result<Option<Format>> {
    let path = dir.join(UNFINISHED_FORMAT);
    let text = text_of(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.and_then(|text| parse(&text).ok()))
}

fn text_of(path: &Path) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let open = || open_regular(OpenOptions::new().read(true), path);
    match open().and_then(|file| file.take(MAX_LEN).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Not a regular file: treated as a file without a format.
        Err(error) if is_no_file(&error) => Ok(Some(String::new())),
        Err(error) => Err(error),
    }
}

/// Returns true if the directory holds a file that can only be a spool's.
pub(crate) fn holds_a_spool(dir: &Path) -> bool {
    dir.join("manifest").is_file() || !spools_of_segments(dir, None).is_empty()
}

/// Returns the spool ids in the segments, with the number of segments of each. With `until`, stops
/// at the first segment of that spool. Skips unreadable segments: a later read reports them.
fn spools_of_segments(dir: &Path, until: Option<[u8; 16]>) -> BTreeMap<[u8; 16], usize> {
    let mut spools = BTreeMap::new();
    let names = fs::read_dir(dir.join("journal")).into_iter().flatten().filter_map(Result::ok);
    for path in names.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "seg")) {
        let mut bytes = [0; 48];
        let open = || open_regular(OpenOptions::new().read(true), &path);
        let read = open().and_then(|mut file| file.read_exact(&mut bytes));
        if let Some(spool) = read.ok().and_then(|()| spool_of_segment(&bytes)) {
            *spools.entry(spool).or_default() += 1;
            if until == Some(spool) {
                break;
            }
        }
    }
    spools
}

/// Returns the spool's id for a repair, and the defect of the format file, if any. If the file is
/// defective, the id is that of most segments, or without segments the one in the file.
///
/// # Errors
///
/// [`UnsupportedFormat`] for a newer layout, or if there is no spool. I/O errors.
pub(crate) fn identify(dir: &Path) -> Result<(Option<Format>, Option<String>)> {
    let error = match read(dir) {
        Ok(Some(format)) => return Ok((Some(format), None)),
        Ok(None) => return Err(not_a_spool(dir, "there is no FORMAT file")),
        Err(error) => error,
    };
    let cause = error.root_cause();
    let what = match cause.downcast_ref::<DamagedSpool>() {
        Some(damaged) => damaged.what.clone(),
        // An unreadable format file is treated as a damaged one.
        None if cause.is::<io::Error>() && holds_a_spool(dir) => format!("it can't be read ({cause})"),
        None => return Err(error),
    };
    let most = spools_of_segments(dir, None).into_iter().max_by_key(|(_, segments)| *segments);
    let text = text_of(&dir.join(FORMAT_FILE)).ok().flatten().unwrap_or_default();
    // The names of a damaged file are better than none: they decide nothing but the names.
    let names = SpoolNames::parse_damaged(text.lines());
    let named = || parse(&text).ok();
    let of_segments = most.map(|(id, _)| Format { id, names });
    Ok((of_segments.or_else(named), Some(what)))
}

fn shown(spool: [u8; 16]) -> String {
    Uuid::from_bytes(spool).simple().to_string()
}

/// The error for a directory that is not a spool's.
pub(super) fn not_a_spool(path: &Path, found: &str) -> anyhow::Error {
    let supported = "spool directories, and makes new ones in empty directories".to_owned();
    UnsupportedFormat { path: path.to_owned(), found: format!("not a spool: {found}"), supported }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format() -> Format {
        let mut format = Format::new([0x1f; 16]);
        format.names.add("meta").unwrap();
        format.names.add("data").unwrap();
        format.names.remove("meta");
        format
    }

    #[test]
    fn a_valid_format_file_is_parsed_and_an_invalid_one_is_described() {
        assert_eq!(parse(&render(&format())), Ok(format()));
        assert_eq!(parse(&render(&Format::new([7; 16]))), Ok(Format::new([7; 16])));
        for (bad, named) in [
            ("", "not a spool's format file"),
            ("hello", "\"hello\""),
            ("tidespool 2\n", "id is damaged"),
            ("tidespool 2\nid 0123456789abcdef0123456789abcdef\n", "checksum"),
        ] {
            let Err(FormatError::Damaged(found)) = parse(bad) else { panic!("{bad:?}") };
            assert!(found.contains(named), "{bad:?}: {found}");
        }
        assert_eq!(parse("tidespool 3\nid x\n"), Err(FormatError::Version("layout version 3".to_owned())));
    }

    #[test]
    fn a_flipped_bit_is_reported_as_damage_and_never_as_another_spool_or_layout() {
        let good = render(&format()).into_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let text = String::from_utf8_lossy(&bad).into_owned();
            assert!(matches!(parse(&text), Err(FormatError::Damaged(_))), "bit {bit}: {text:?}");
        }
    }
}
