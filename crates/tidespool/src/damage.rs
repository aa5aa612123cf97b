use std::path::Path;

use serde::Serialize;
use tidespool_core::SpoolId;

use crate::directory::SpoolNames;
use crate::message_id::MessageId;

/// A damaged file or message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The file.
    pub path: String,
    /// The name of the message's spool, if the message is known.
    pub spool: Option<String>,
    /// The message, if its id is known.
    pub id: Option<SpoolId>,
    /// What is wrong, and where in the file.
    pub what: String,
}

impl Damage {
    /// Damage of a file.
    pub(crate) fn new(path: &Path, what: String) -> Self {
        Self { path: path.display().to_string(), spool: None, id: None, what }
    }

    /// Damage of a message in a file.
    pub(crate) fn of_message(path: &Path, message: MessageId, names: &SpoolNames, what: String) -> Self {
        let spool = Some(names.name_of(message.spool()));
        Self { spool, id: Some(message.id()), ..Self::new(path, what) }
    }
}
