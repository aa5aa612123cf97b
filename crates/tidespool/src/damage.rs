use std::path::Path;

use serde::Serialize;
use tidespool_core::SpoolId;

/// A damaged file or message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The file.
    pub path: String,
    /// The message, if its id is known.
    pub id: Option<SpoolId>,
    /// What is wrong, and where in the file.
    pub what: String,
}

impl Damage {
    pub(crate) fn new(path: &Path, id: Option<SpoolId>, what: String) -> Self {
        Self { path: path.display().to_string(), id, what }
    }
}
