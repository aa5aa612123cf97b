//! `tidespool verify`: compares every byte of a spool with its checksums.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use tidespool::inspect::{Damage, IndexState, Verification};
use tidespool_core::DamagedSpool;

use crate::output::{Outcome, bytes, damage_line, is_broken_pipe, json_line, plural, torn_lines};
use crate::spool_dir;

/// Read every byte of every message and compare it with its checksum, and say whether the next
/// opening rebuilds the index. Exit code 0: whole, 2: damaged, 1: an error.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the spool. No process may have it open. It is not changed.
    dir: PathBuf,
    /// Print one JSON object on one line: whole, messages, bytes; damage and torn (lists of path,
    /// spool, id, what).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<Outcome> {
    let found = verify(&args.dir)?;
    match print(out, args, &found) {
        // The exit code is valid even if the reader closes the pipe.
        Err(err) if !is_broken_pipe(&err) => return Err(err),
        _ => {}
    }
    Ok(if found.damage.is_empty() { Outcome::Fine } else { Outcome::Damaged })
}

fn verify(dir: &Path) -> Result<Verification> {
    match spool_dir::open(dir) {
        Ok(spool) => spool.verify().with_context(|| format!("verifying {}", dir.display())),
        // Nothing more can be read, but this damage is a result of the verification.
        Err(err) => match err.root_cause().downcast_ref::<DamagedSpool>() {
            Some(DamagedSpool { path, what, .. }) => {
                let damage =
                    Damage { path: path.display().to_string(), spool: None, id: None, what: what.clone() };
                Ok(Verification { damage: vec![damage], ..Verification::default() })
            }
            None => Err(err),
        },
    }
}

#[derive(Serialize)]
struct Line<'a> {
    whole: bool,
    #[serde(flatten)]
    found: &'a Verification,
}

fn print(out: &mut dyn Write, args: &Args, found: &Verification) -> Result<()> {
    if args.json {
        json_line(out, &Line { whole: found.damage.is_empty(), found })?;
    } else {
        text(out, &args.dir, found)?;
    }
    out.flush()?;
    Ok(())
}

fn text(out: &mut dyn Write, dir: &Path, found: &Verification) -> Result<()> {
    for damage in &found.damage {
        damage_line(out, damage, "")?;
    }
    torn_lines(out, &found.torn)?;
    let read = format!("{} read, {}", plural(found.messages, "message"), bytes(found.bytes));
    match found.damage.len() as u64 {
        0 => {
            let index = match found.index {
                IndexState::Kept => "",
                IndexState::RebuiltAtNextOpen => "; the index is rebuilt at the next opening",
            };
            writeln!(out, "{} is whole: {read}{index}", dir.display())?;
        }
        count => {
            writeln!(out, "{} is damaged in {}: {read}", dir.display(), plural(count, "place"))?;
            writeln!(
                out,
                "`tidespool repair {} NEW_DIR` copies what can be saved into a new directory",
                dir.display()
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged() -> Verification {
        let id = "1EC9414C-232A-6B00-B3C8-9F6BDECED846".parse().ok();
        Verification {
            messages: 9,
            bytes: 900,
            damage: vec![
                Damage {
                    path: "journal/00000001.seg".into(),
                    spool: Some("meta".into()),
                    id,
                    what: "payload at 4152".into(),
                },
                Damage { path: "manifest".into(), spool: None, id: None, what: "bad checksum".into() },
            ],
            ..Verification::default()
        }
    }

    fn printed(json: bool, found: &Verification) -> String {
        let mut out = Vec::new();
        print(&mut out, &Args { dir: "/spool".into(), json }, found).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn damage_is_named_one_a_line() {
        assert_eq!(
            printed(false, &damaged()),
            "journal/00000001.seg: message 1ec9414c232a6b00b3c89f6bdeced846 of spool meta: payload at 4152\n\
             manifest: bad checksum\n\
             /spool is damaged in 2 places: 9 messages read, 900 bytes\n\
             `tidespool repair /spool NEW_DIR` copies what can be saved into a new directory\n"
        );
        let whole = Verification { messages: 1, bytes: 1, ..Verification::default() };
        assert_eq!(printed(false, &whole), "/spool is whole: 1 message read, 1 byte\n");
        let rebuilt = Verification { index: IndexState::RebuiltAtNextOpen, ..whole };
        let text = printed(false, &rebuilt);
        assert!(text.ends_with("1 byte; the index is rebuilt at the next opening\n"), "{text}");
    }

    #[test]
    fn json_says_whether_it_is_whole() {
        let json: serde_json::Value = serde_json::from_str(&printed(true, &damaged())).unwrap();
        assert_eq!(json["whole"], false);
        assert_eq!(json["messages"], 9);
        assert_eq!(json["damage"][0]["spool"], "meta");
        assert_eq!(json["damage"][0]["id"], "1ec9414c232a6b00b3c89f6bdeced846");
        assert_eq!(json["damage"][1]["id"], serde_json::Value::Null);
    }
}
