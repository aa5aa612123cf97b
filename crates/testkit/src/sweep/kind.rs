use clap::ValueEnum;
use serde::Serialize;

use super::Point;
use crate::faults::{Call, Fault};

/// What breaks, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The call fails with EIO.
    EioOnce,
    /// It and the two after it fail with EIO: what is done about an error fails, too.
    EioThrice,
    /// It and all after it fail with EIO, until the work of that life is done.
    EioSticky,
    /// The same, and the power goes before the disk works again.
    EioCut,
    /// The call fails with ENOSPC.
    EnospcOnce,
    /// It and all after it fail with ENOSPC, until the work of that life is done.
    EnospcSticky,
    /// The call fails with EDQUOT, as a used-up quota makes it fail.
    EdquotOnce,
    /// It and all after it fail with EDQUOT, until the work of that life is done.
    EdquotSticky,
    /// The call fails with EFBIG, as a limit on the size of files makes it fail.
    EfbigOnce,
    /// A write writes a part, and says so.
    Short,
    /// A write writes a part, and fails with EIO.
    Torn,
    /// A read gives a wrong byte, once, and says nothing.
    Misread,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::EioOnce,
        Self::EioThrice,
        Self::EioSticky,
        Self::EioCut,
        Self::EnospcOnce,
        Self::EnospcSticky,
        Self::EdquotOnce,
        Self::EdquotSticky,
        Self::EfbigOnce,
        Self::Short,
        Self::Torn,
        Self::Misread,
    ];

    /// As it is written on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EioOnce => "eio-once",
            Self::EioThrice => "eio-thrice",
            Self::EioSticky => "eio-sticky",
            Self::EioCut => "eio-cut",
            Self::EnospcOnce => "enospc-once",
            Self::EnospcSticky => "enospc-sticky",
            Self::EdquotOnce => "edquot-once",
            Self::EdquotSticky => "edquot-sticky",
            Self::EfbigOnce => "efbig-once",
            Self::Short => "short",
            Self::Torn => "torn",
            Self::Misread => "misread",
        }
    }

    /// The calls that are its points: all, where it is none of one sort.
    #[must_use]
    pub fn only(self) -> Option<Call> {
        match self {
            Self::Short | Self::Torn => Some(Call::Write),
            Self::Misread => Some(Call::Read),
            _ => None,
        }
    }

    /// It lasts until the disk is healed.
    pub(super) fn is_sticky(self) -> bool {
        matches!(self, Self::EioSticky | Self::EioCut | Self::EnospcSticky | Self::EdquotSticky)
    }

    /// The error is one of those for no room.
    pub(super) fn is_no_room(self) -> bool {
        matches!(
            self,
            Self::EnospcOnce | Self::EnospcSticky | Self::EdquotOnce | Self::EdquotSticky | Self::EfbigOnce
        )
    }

    /// What is struck is told by an error.
    pub(super) fn is_error(self) -> bool {
        !matches!(self, Self::Short | Self::Misread)
    }
}

impl Point {
    pub(super) fn fault(self) -> Fault {
        let Self { number, kind } = self;
        // Within a header, at its end, within a payload.
        let part = [7, 56, 300, 4096, 5000][usize::try_from(number % 5).unwrap_or(0)];
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_str(kind.name(), false), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
