//! The names of a store's spools, and their numbers. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::message_id::SpoolNumber;

/// The most characters of a name.
pub(crate) const MAX_NAME: usize = 32;

/// The most spools of a store at a time.
pub(crate) const MAX_SPOOLS: usize = 256;

/// The spools of a store. A number is used for one name only, also after that spool was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpoolNames {
    by_name: BTreeMap<String, SpoolNumber>,
    /// The number of the next spool. `None`: all numbers are used up.
    next: Option<SpoolNumber>,
}

/// Why a spool can't be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSpool {
    /// There are [`MAX_SPOOLS`] spools.
    TooMany,
    /// Each number was used once.
    NumbersUsedUp,
}

/// True if a spool can have this name.
pub(crate) fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_allowed)
}

impl Default for SpoolNames {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), next: Some(SpoolNumber::FIRST) }
    }
}

impl SpoolNames {
    pub(crate) fn get(&self, name: &str) -> Option<SpoolNumber> {
        self.by_name.get(name).copied()
    }

    /// The names and numbers, in the order of the names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, SpoolNumber)> {
        self.by_name.iter().map(|(name, number)| (&**name, *number))
    }

    /// Returns the name of a spool's number. A repair finds messages whose spool has no name any
    /// more.
    pub(crate) fn name_of(&self, number: SpoolNumber) -> String {
        let named = self.iter().find(|(_, of_name)| *of_name == number);
        named.map_or_else(|| format!("unnamed-{number}"), |(name, _)| name.to_owned())
    }

    /// Adds a spool. The caller has checked its name, and that there is no spool of this name.
    pub(crate) fn add(&mut self, name: &str) -> Result<SpoolNumber, NoSpool> {
        if self.by_name.len() >= MAX_SPOOLS {
            return Err(NoSpool::TooMany);
        }
        let number = self.next.ok_or(NoSpool::NumbersUsedUp)?;
        self.next = SpoolNumber::new(number.get() + 1);
        self.by_name.insert(name.to_owned(), number);
        Ok(number)
    }

    /// Adds a name for a spool of which only a message was found.
    pub(crate) fn add_found(&mut self, number: SpoolNumber) {
        if self.by_name.values().all(|of_name| *of_name != number) {
            let first = self.name_of(number);
            let others = (2_u32..).map(|nth| format!("{first}-{nth}"));
            // Another spool may have the first name.
            let mut names = std::iter::once(first.clone()).chain(others);
            let free = names.find(|name| !self.by_name.contains_key(name));
            self.by_name.insert(free.unwrap_or(first), number);
        }
        if self.next.is_some_and(|next| next <= number) {
            self.next = SpoolNumber::new(number.get() + 1);
        }
    }

    /// Removes a spool. Its number is not used again.
    pub(crate) fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    /// The lines of the format file.
    pub(super) fn render(&self) -> String {
        let mut lines: String =
            self.iter().map(|(name, number)| format!("spool {number} {name}\n")).collect();
        let next = self.next.map_or_else(|| "none".to_owned(), |next| next.to_string());
        lines.push_str(&format!("next {next}\n"));
        lines
    }

    /// Parses the lines that [`render`](Self::render) returned. Other lines are ignored: the
    /// checksum of the file shows whether there are any.
    pub(super) fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut names = Self::default();
        let number = |text: &str| {
            let number = text.parse().ok().and_then(SpoolNumber::new);
            number.filter(|number| *number != SpoolNumber::NONE)
        };
        for line in lines {
            if let Some((of_name, name)) = line.strip_prefix("spool ").and_then(|rest| rest.split_once(' '))
                && let Some(of_name) = number(of_name).filter(|_| is_name(name))
            {
                names.by_name.insert(name.to_owned(), of_name);
            } else if let Some(next) = line.strip_prefix("next ") {
                names.next = number(next);
            }
        }
        names
    }

    /// Parses the lines of a damaged file. Each number has at most one name, and the next number is
    /// above all of them. A name may be wrong, and some may be missing.
    pub(super) fn parse_damaged<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut names = Self::parse(lines);
        let mut numbers = BTreeSet::new();
        names.by_name.retain(|_, number| numbers.insert(*number));
        let next = numbers.last().map_or(1, |last| last.get() + 1);
        names.next = SpoolNumber::new(next);
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_lower_case_words() {
        for good in ["a", "meta", "data-2", "under_score", &"x".repeat(32)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "Meta", "a b", "ä", "a/b", "..", "a.b", "a\n", &"x".repeat(33)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_number_is_used_once() {
        let mut names = SpoolNames::default();
        let first = names.add("meta").unwrap();
        assert_eq!((first, names.get("meta")), (SpoolNumber::FIRST, Some(first)));
        names.remove("meta");
        assert_eq!(names.get("meta"), None);
        assert_ne!(names.add("meta").unwrap(), first);
        let again = SpoolNames::parse(names.render().lines());
        assert_eq!(again, names);
        assert_eq!(
            (&*names.name_of(first), &*names.name_of(again.get("meta").unwrap())),
            ("unnamed-1", "meta")
        );
    }

    #[test]
    fn a_found_spool_does_not_take_the_name_of_another() {
        let mut names = SpoolNames::default();
        let [meta, found] = [1, 5].map(|number| SpoolNumber::new(number).unwrap());
        names.add("unnamed-5").unwrap();
        names.add_found(found);
        names.add_found(found);
        let all: Vec<_> = names.iter().collect();
        assert_eq!(all, [("unnamed-5", meta), ("unnamed-5-2", found)]);
        assert_eq!(names.add("more").unwrap().get(), 6);
    }

    #[test]
    fn names_of_a_damaged_file_never_share_a_number() {
        let mut names = SpoolNames::default();
        let numbers = ["meta", "data"].map(|name| names.add(name).unwrap());
        let text = names.render();
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let damaged = String::from_utf8_lossy(&bytes).into_owned();
            let mut names = SpoolNames::parse_damaged(damaged.lines());
            numbers.iter().for_each(|number| names.add_found(*number));
            names.add("more").unwrap();
            let of_names: Vec<_> = names.iter().map(|(_, number)| number).collect();
            let distinct: BTreeSet<_> = of_names.iter().copied().collect();
            assert_eq!(of_names.len(), distinct.len(), "bit {bit}: {names:?}");
            assert!(numbers.iter().all(|number| distinct.contains(number)), "bit {bit}: {names:?}");
            assert!(!distinct.contains(&SpoolNumber::NONE), "bit {bit}: {names:?}");
        }
    }

    #[test]
    fn numbers_and_spools_are_bounded() {
        let mut names = SpoolNames::default();
        for number in 0..MAX_SPOOLS {
            names.add(&format!("spool-{number}")).unwrap();
        }
        assert_eq!(names.add("more"), Err(NoSpool::TooMany));
        for _ in MAX_SPOOLS..usize::from(SpoolNumber::LAST.get()) {
            names.remove("spool-0");
            names.add("spool-0").unwrap();
        }
        names.remove("spool-0");
        assert_eq!(names.add("spool-0"), Err(NoSpool::NumbersUsedUp));
        assert_eq!(SpoolNames::parse(names.render().lines()), names);
    }
}
