use clap::ValueEnum;
use serde::Serialize;

use super::Point;
use crate::faults::{Call, Fault};

/// What fails, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The call fails with EIO.
    EioOnce,
    /// The call and the next two fail with EIO, so that the error handling fails, too.
    EioThrice,
    /// The call and all later ones fail with EIO, until the steps of the session are done.
    EioSticky,
    /// Like `EioSticky`, but the power fails before the disk works again.
    EioCut,
    /// The call fails with ENOSPC.
    EnospcOnce,
    /// The call and all later ones fail with ENOSPC, until the steps of the session are done.
    EnospcSticky,
    /// The call fails with EDQUOT, as with an exhausted quota.
    EdquotOnce,
    /// The call and all later ones fail with EDQUOT, until the steps of the session are done.
    EdquotSticky,
    /// The call fails with EFBIG, as with a limit on the size of files.
    EfbigOnce,
    /// A write is short, and returns the short count.
    Short,
    /// A write is short, and fails with EIO.
    Torn,
    /// A read returns a wrong first byte, without an error.
    Misread,
    /// A read returns one wrong byte after the first, without an error.
    MisreadLater,
}

impl Kind {
    /// Returns all kinds.
    #[must_use]
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// Returns the name on the command line.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The kind of calls that this fault applies to. `None`: every kind.
    #[must_use]
    pub fn only(self) -> Option<Call> {
        match self {
            Self::Short | Self::Torn => Some(Call::Write),
            Self::Misread | Self::MisreadLater => Some(Call::Read),
            _ => None,
        }
    }

    /// Returns whether the fault lasts until the disk is healed.
    pub(super) fn is_sticky(self) -> bool {
        matches!(self, Self::EioSticky | Self::EioCut | Self::EnospcSticky | Self::EdquotSticky)
    }

    /// Returns whether the error means that there is no space.
    pub(super) fn is_no_room(self) -> bool {
        matches!(
            self,
            Self::EnospcOnce | Self::EnospcSticky | Self::EdquotOnce | Self::EdquotSticky | Self::EfbigOnce
        )
    }

    /// Returns whether the affected call returns an error.
    pub(super) fn is_error(self) -> bool {
        !matches!(self, Self::Short | Self::Misread | Self::MisreadLater)
    }
}

impl Point {
    pub(super) fn fault(self) -> Fault {
        let Self { number, kind } = self;
        // The end of the short write: in a header, at its end, or in a payload.
        let part = [7, 56, 300, 4096, 5000][usize::try_from(number % 5).unwrap_or(0)];
        // The place of the wrong byte.
        let later = [1, 37, 90, 128, 171, 230, 255][usize::try_from(number % 7).unwrap_or(0)];
        match kind {
            Kind::EioOnce => Fault::on_any().nth(number),
            Kind::EioThrice => Fault::on_any().nth(number).times(3),
            Kind::EioSticky | Kind::EioCut => Fault::on_any().from(number),
            Kind::EnospcOnce => Fault::on_any().full_disk().nth(number),
            Kind::EnospcSticky => Fault::on_any().full_disk().from(number),
            Kind::EdquotOnce => Fault::on_any().over_quota().nth(number),
            Kind::EdquotSticky => Fault::on_any().over_quota().from(number),
            Kind::EfbigOnce => Fault::on_any().file_too_large().nth(number),
            Kind::Short => Fault::on(Call::Write).short(part).nth(number),
            Kind::Torn => Fault::on(Call::Write).torn(part).nth(number),
            Kind::Misread => Fault::on(Call::Read).corrupt().nth(number),
            Kind::MisreadLater => Fault::on(Call::Read).corrupt_after(later).nth(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for &kind in Kind::all() {
            assert_eq!(Kind::from_str(&kind.name(), false), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
