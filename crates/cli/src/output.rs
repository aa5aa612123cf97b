//! Output that the subcommands on a directory share: their outcome, and lines about damage.

use std::io::{self, Write};
use std::process::ExitCode;

use tidespool::inspect::Damage;
pub(crate) use tidespool_bench::output::{bytes, is_broken_pipe, json_line, plural, two_columns};

/// The outcome of a subcommand without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Success.
    Fine,
    /// Success, and damage was found.
    Damaged,
}

impl Outcome {
    pub(crate) fn exit_code(self) -> ExitCode {
        match self {
            Self::Fine => ExitCode::SUCCESS,
            Self::Damaged => ExitCode::from(2),
        }
    }
}

/// Writes one damage on one line: the file, the message if it is known, and what is wrong.
pub(crate) fn damage_line(out: &mut dyn Write, damage: &Damage, verdict: &str) -> io::Result<()> {
    write!(out, "{}: ", damage.path)?;
    if let Some(id) = damage.id {
        write!(out, "message {id}")?;
        if let Some(spool) = &damage.spool {
            write!(out, " of spool {spool}")?;
        }
        out.write_all(b": ")?;
    }
    writeln!(out, "{verdict}{}", damage.what)
}

/// Writes a line for each known message in a torn end, and the number of records there.
pub(crate) fn torn_lines(out: &mut dyn Write, torn: &[Damage]) -> io::Result<()> {
    for record in torn.iter().filter(|record| record.id.is_some()) {
        damage_line(out, record, "")?;
    }
    if !torn.is_empty() {
        let count = plural(torn.len() as u64, "record");
        writeln!(
            out,
            "{count} of a torn end left out, as an opening does: never known to have been on stable storage"
        )?;
    }
    Ok(())
}
