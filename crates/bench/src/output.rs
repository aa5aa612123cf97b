//! What the commands of `tidespool` and `tidespool-bench` share: exit codes, the line of an error,
//! tables and JSON lines.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Result;
use bytesize::ByteSize;
use comfy_table::{Table, presets};
use tidespool_core::{Corrupt, DamagedSpool};

use crate::interrupt::Interrupted;

/// Returns the exit code of a command, and prints its error as one line that begins with `program`.
///
/// `flushed` is the result of flushing standard output after the command. A closed pipe is not an
/// error. The code of an error is 2 if its cause is [`Corrupt`] or [`DamagedSpool`], 130 if it is
/// [`Interrupted`], otherwise 1.
pub fn exit_code(program: &str, result: Result<ExitCode>, flushed: io::Result<()>) -> ExitCode {
    let result = match (result, flushed) {
        // A reader such as `head` may close the pipe early. That is not an error.
        (Ok(_), Err(err)) if err.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(err).context("writing to standard output"))
        }
        (result, _) => result,
    };
    match result {
        Ok(code) => code,
        Err(err) if is_broken_pipe(&err) => ExitCode::SUCCESS,
        Err(err) => {
            complain(program, &whole_text(&err));
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

/// Prints the help or the version if the command line asks for it, otherwise one line with the
/// error in the arguments. Returns the exit code.
pub fn usage(program: &str, err: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind as Kind;
    if matches!(
        err.kind(),
        Kind::DisplayHelp | Kind::DisplayVersion | Kind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        // A closed pipe is not an error here either.
        drop(err.print());
        return ExitCode::from(u8::from(err.use_stderr()));
    }
    complain(program, &usage_line(&err.render().to_string()));
    ExitCode::from(1)
}

/// Joins the paragraphs of clap into one line, without the usage, which `--help` shows.
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

/// Prints `program: text` as one line on standard error. Line breaks in `text` become spaces.
pub(crate) fn complain(program: &str, text: &str) {
    let line = text.split(['\n', '\r']).map(str::trim).collect::<Vec<_>>().join(" ");
    // Standard error may be closed.
    drop(writeln!(io::stderr(), "{program}: {line}"));
}

/// Joins the texts of the error and of its causes. A cause that the text above already contains is
/// left out: the errors of the spool include their causes.
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

/// Returns whether a cause of `err` is a closed pipe: the reader of the output has ended.
pub fn is_broken_pipe(err: &anyhow::Error) -> bool {
    err.chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == ErrorKind::BrokenPipe))
}

/// Writes one line for each name and value. The values are aligned.
///
/// # Errors
///
/// Those of `out`.
pub fn two_columns(out: &mut dyn Write, rows: &[(&str, String)]) -> io::Result<()> {
    let mut table = Table::new();
    table.add_rows(rows.iter().map(|(name, value)| [name, value.as_str()]));
    write_plain(out, table)
}

/// Writes a table without lines.
pub(crate) fn write_plain(out: &mut dyn Write, mut table: Table) -> io::Result<()> {
    table.load_style(presets::NOTHING);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    writeln!(out, "{}", table.trim_fmt())
}

/// Writes `value` as JSON on one line.
///
/// # Errors
///
/// Those of `out`, and a value that JSON cannot represent.
pub fn json_line(out: &mut dyn Write, value: &impl serde::Serialize) -> Result<()> {
    let line = serde_json::to_string(value)?;
    writeln!(out, "{line}")?;
    Ok(())
}

/// Formats a number of bytes: `1.5 MiB (1572864 bytes)`.
#[must_use]
pub fn bytes(count: u64) -> String {
    if count < 1024 { plural(count, "byte") } else { format!("{} ({count} bytes)", ByteSize(count)) }
}

/// Formats a count: `1 message`, `2 messages`.
#[must_use]
pub fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use tidespool_core::SpoolId;

    use super::*;

    #[test]
    fn a_usage_error_is_one_line() {
        let rendered = "error: the following required arguments were not provided:\n  <DIR>\n\n\
                        Usage: tidespool ls <DIR>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            usage_line(rendered),
            "the following required arguments were not provided: <DIR>; see --help"
        );
    }

    #[test]
    fn a_cause_is_printed_once() {
        let err = anyhow::anyhow!("no such key").context("reading: no such key").context("getting");
        assert_eq!(whole_text(&err), "getting: reading: no such key");
    }

    #[test]
    fn a_broken_pipe_is_found_below_context() {
        let broken = Err::<(), _>(io::Error::from(ErrorKind::BrokenPipe)).context("printing").unwrap_err();
        assert!(is_broken_pipe(&broken));
        let other = anyhow::Error::from(io::Error::from(ErrorKind::StorageFull));
        assert!(!is_broken_pipe(&other));
    }

    #[test]
    fn each_outcome_has_its_exit_code() {
        let code = |result, flushed| format!("{:?}", exit_code("test", result, flushed));
        let exit = |code: u8| format!("{:?}", ExitCode::from(code));
        let id = SpoolId::new();
        assert_eq!(code(Ok(ExitCode::SUCCESS), Ok(())), exit(0));
        assert_eq!(code(Ok(ExitCode::from(2)), Ok(())), exit(2));
        assert_eq!(code(Err(anyhow::anyhow!("no")), Ok(())), exit(1));
        assert_eq!(code(Err(Corrupt { id, reason: "bits".into() }.into()), Ok(())), exit(2));
        let damaged =
            DamagedSpool { dir: "/s".into(), path: "/s/FORMAT".into(), what: "it is missing".into() };
        assert_eq!(code(Err(damaged.into()), Ok(())), exit(2));
        assert_eq!(code(Err(Interrupted.into()), Ok(())), exit(130));
        // A closed pipe does not change the exit code, a full disk does.
        assert_eq!(code(Ok(ExitCode::from(2)), Err(ErrorKind::BrokenPipe.into())), exit(2));
        assert_eq!(code(Ok(ExitCode::SUCCESS), Err(ErrorKind::StorageFull.into())), exit(1));
        assert_eq!(code(Err(io::Error::from(ErrorKind::BrokenPipe).into()), Ok(())), exit(0));
    }

    #[test]
    fn columns_are_aligned() {
        let mut out = Vec::new();
        two_columns(&mut out, &[("a", "1".into()), ("long", "2".into())]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a     1\nlong  2\n");
    }

    #[test]
    fn bytes_and_counts_are_readable() {
        assert_eq!(bytes(1), "1 byte");
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(1_572_864), "1.5 MiB (1572864 bytes)");
        assert_eq!(plural(1, "message"), "1 message");
        assert_eq!(plural(2, "message"), "2 messages");
    }
}
