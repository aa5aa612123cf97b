use std::fmt;

use tidespool_core::SpoolId;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// I1: a durable message is absent, or only an earlier version is present.
    DurableLost(SpoolId, String),
    /// I2: a message was acknowledged without a sync, but so long ago that it had to be durable.
    OldLost(SpoolId, String),
    /// I2: the first message is lost, but the second, stored after the first was acknowledged, is
    /// present.
    Hole(SpoolId, SpoolId),
    /// I3: a durable removal was undone, or a message is present that was never stored.
    Resurrected(SpoolId, String),
    /// I4: wrong bytes.
    WrongBytes(SpoolId, String),
    /// A store that returned an error left something behind.
    LeftBehind(SpoolId, String),
    /// The child detected it.
    SeenByTheChild(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DurableLost(id, how) => write!(f, "I1: durable message {id} is lost: {how}"),
            Self::OldLost(id, how) => write!(f, "I2: message {id} is lost, but was not young: {how}"),
            Self::Hole(lost, kept) => write!(f, "I2: {lost} is lost while the newer {kept} is kept"),
            Self::Resurrected(id, how) => write!(f, "I3: message {id} reappeared: {how}"),
            Self::WrongBytes(id, how) => write!(f, "I4: message {id}: {how}"),
            Self::LeftBehind(id, how) => write!(f, "a failed store of {id} left something behind: {how}"),
            Self::SeenByTheChild(what) => write!(f, "detected by the child: {what}"),
        }
    }
}
