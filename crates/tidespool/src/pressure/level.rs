use serde::Serialize;

/// How short memory is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// There is enough.
    #[default]
    Normal,
    /// Clean copies are given back.
    Low,
    /// Everything that can go goes at once.
    Critical,
}
