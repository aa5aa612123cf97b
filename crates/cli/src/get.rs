//! `tidespool get`: the bytes of one message.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tidespool_core::{NotFound, SpoolId};

use crate::output::Outcome;
use crate::spool_dir;

/// Write the bytes of one message, as they were stored, to standard output or a file.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the spool. No process may have it open.
    dir: PathBuf,
    /// The id of the message: 32 hexadecimal digits, as `tidespool ls` shows them.
    id: SpoolId,
    /// Write to FILE, replacing it, instead of standard output.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<Outcome> {
    let spool = spool_dir::open(&args.dir)?;
    // All of it before the first byte is written: damage leaves no half of a message behind.
    let data = spool.load(args.id).map_err(|err| {
        let absent = err.root_cause().is::<NotFound>();
        let err = err.context(format!("reading from {}", args.dir.display()));
        if absent { err.context("not found, `tidespool ls` shows what is there") } else { err }
    })?;
    match &args.output {
        Some(file) => {
            std::fs::write(file, &data).with_context(|| format!("writing {}", file.display()))?;
        }
        None => out.write_all(&data).context("writing to standard output")?,
    }
    Ok(Outcome::Fine)
}
