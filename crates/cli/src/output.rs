//! What the subcommands share when they print: exit codes, the line an error gets, aligned tables.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Result;
use bytesize::ByteSize;
use tidespool::inspect::Damage;
use tidespool_core::{Corrupt, DamagedSpool};

use crate::bench::Interrupted;

/// How a subcommand that met no error ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done.
    Fine,
    /// Done, and damage was found.
    Damaged,
}

/// Prints the error, if there is one, and tells the exit code.
pub(crate) fn exit_code(result: Result<Outcome>, flushed: io::Result<()>) -> ExitCode {
    let result = match (result, flushed) {
        // The reader of the pipe may have gone after it had seen enough: the outcome stands.
        (Ok(_), Err(err)) if err.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(err).context("writing to standard output"))
        }
        (result, _) => result,
    };
    match result {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Damaged) => ExitCode::from(2),
        Err(err) if is_broken_pipe(&err) => ExitCode::SUCCESS,
        Err(err) => {
            complain(&whole_text(&err));
            let root = err.root_cause();
            ExitCode::from(if root.is::<Corrupt>() || root.is::<DamagedSpool>() {
                2
            } else if root.is::<Interrupted>() {
                130
            } else {
                1
            })
        }
    }
}

/// What a command line that cannot be understood gets, or the help that was asked for.
pub(crate) fn usage(err: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind as Kind;
    if matches!(
        err.kind(),
        Kind::DisplayHelp | Kind::DisplayVersion | Kind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        // A closed pipe is no error here either.
        drop(err.print());
        return ExitCode::from(u8::from(err.use_stderr()));
    }
    complain(&usage_line(&err.render().to_string()));
    ExitCode::from(1)
}

/// clap's several paragraphs as one line, without the usage, which `--help` shows.
fn usage_line(rendered: &str) -> String {
    let what: Vec<&str> = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let what = what.join(" ");
    format!("{}; see --help", what.strip_prefix("error: ").unwrap_or(&what))
}

/// One line on standard error, whatever is in `text`.
pub(crate) fn complain(text: &str) {
    let line = text.split(['\n', '\r']).map(str::trim).collect::<Vec<_>>().join(" ");
    // Where standard error is closed there is nobody to tell.
    drop(writeln!(io::stderr(), "tidespool: {line}"));
}

/// The texts of the error and of its causes, each once: the spool's own errors have their causes in
/// their text.
fn whole_text(err: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in err.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The reader of our output has gone.
pub(crate) fn is_broken_pipe(err: &anyhow::Error) -> bool {
    err.chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == ErrorKind::BrokenPipe))
}

/// Writes names and values below one another, the values aligned.
pub(crate) fn two_columns(out: &mut dyn Write, rows: &[(&str, String)]) -> io::Result<()> {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in rows {
        writeln!(out, "{name:width$}  {value}")?;
    }
    Ok(())
}

/// One object on one line.
pub(crate) fn json_line(out: &mut dyn Write, value: &impl serde::Serialize) -> Result<()> {
    let line = serde_json::to_string(value)?;
    writeln!(out, "{line}")?;
    Ok(())
}

/// Bytes for people: `1.5 MiB (1572864 bytes)`.
pub(crate) fn bytes(count: u64) -> String {
    if count < 1024 { plural(count, "byte") } else { format!("{} ({count} bytes)", ByteSize(count)) }
}

/// One thing that is wrong, on one line: the file, the message where one can be named, and what is wrong.
pub(crate) fn damage_line(out: &mut dyn Write, damage: &Damage, verdict: &str) -> io::Result<()> {
    write!(out, "{}: ", damage.path)?;
    if let Some(id) = damage.id {
        write!(out, "message {id}: ")?;
    }
    writeln!(out, "{verdict}{}", damage.what)
}

/// The records of a torn end: those that can be named, and how many there are.
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

/// `1 message`, `2 messages`.
pub(crate) fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use tidespool_core::SpoolId;

    use super::*;

    #[test]
    fn what_clap_says_becomes_one_line() {
        let rendered = "error: the following required arguments were not provided:\n  <DIR>\n\n\
                        Usage: tidespool ls <DIR>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            usage_line(rendered),
            "the following required arguments were not provided: <DIR>; see --help"
        );
    }

    #[test]
    fn a_cause_is_told_once() {
        let err = anyhow::anyhow!("no such key").context("reading: no such key").context("getting");
        assert_eq!(whole_text(&err), "getting: reading: no such key");
    }

    #[test]
    fn a_broken_pipe_is_seen_under_context() {
        let broken = Err::<(), _>(io::Error::from(ErrorKind::BrokenPipe)).context("printing").unwrap_err();
        assert!(is_broken_pipe(&broken));
        let other = anyhow::Error::from(io::Error::from(ErrorKind::StorageFull));
        assert!(!is_broken_pipe(&other));
    }

    #[test]
    fn each_end_has_its_code() {
        let code = |result, flushed| format!("{:?}", exit_code(result, flushed));
        let exit = |code: u8| format!("{:?}", ExitCode::from(code));
        let id = SpoolId::new();
        assert_eq!(code(Ok(Outcome::Fine), Ok(())), exit(0));
        assert_eq!(code(Ok(Outcome::Damaged), Ok(())), exit(2));
        assert_eq!(code(Err(anyhow::anyhow!("no")), Ok(())), exit(1));
        assert_eq!(code(Err(Corrupt { id, reason: "bits".into() }.into()), Ok(())), exit(2));
        let damaged =
            DamagedSpool { dir: "/s".into(), path: "/s/FORMAT".into(), what: "it is missing".into() };
        assert_eq!(code(Err(damaged.into()), Ok(())), exit(2));
        assert_eq!(code(Err(Interrupted.into()), Ok(())), exit(130));
        // A reader that has gone changes nothing; a full disk does.
        assert_eq!(code(Ok(Outcome::Damaged), Err(ErrorKind::BrokenPipe.into())), exit(2));
        assert_eq!(code(Ok(Outcome::Fine), Err(ErrorKind::StorageFull.into())), exit(1));
        assert_eq!(code(Err(io::Error::from(ErrorKind::BrokenPipe).into()), Ok(())), exit(0));
    }

    #[test]
    fn columns_are_aligned() {
        let mut out = Vec::new();
        two_columns(&mut out, &[("a", "1".into()), ("long", "2".into())]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a     1\nlong  2\n");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(1), "1 byte");
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(1_572_864), "1.5 MiB (1572864 bytes)");
        assert_eq!(plural(1, "message"), "1 message");
        assert_eq!(plural(2, "message"), "2 messages");
    }
}
