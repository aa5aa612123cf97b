//! `tidespool repair`: copies what is whole in a damaged spool into a new one.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use tidespool::inspect::{Salvage, salvage};

use crate::output::{Outcome, bytes, damage_line, is_broken_pipe, json_line, plural, torn_lines};
use crate::spool_dir;

/// Copy every whole message of a damaged spool into a new one, and list what could not be saved.
/// Exit code 0: everything was saved, 2: something was not, 1: an error, and there is no new spool.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the damaged spool. No process may have it open. It is not changed.
    dir: PathBuf,
    /// The directory of the new spool, which must not exist or be empty. Until the copy is complete
    /// it is named `NEW_DIR.partial`; the next repair deletes what an interrupted one left there. A
    /// mount point, or a directory that holds `lost+found` or the like, is kept: there the
    /// unfinished spool is in `NEW_DIR/.tidespool-repair.partial`.
    #[arg(value_name = "NEW_DIR")]
    new_dir: PathBuf,
    /// Print one JSON object on one line: complete, saved, bytes, saved_from_crash_log,
    /// removed_by_crash_log, lost; unsaved, doubtful, damage and torn (lists of path, spool, id,
    /// what).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<Outcome> {
    spool_dir::look_at(&args.dir)?;
    let (dir, new_dir) = (args.dir.display(), args.new_dir.display());
    let found =
        salvage(&args.dir, &args.new_dir).with_context(|| format!("repairing {dir} into {new_dir}"))?;
    match print(out, args, &found) {
        // The new spool is complete even if the reader closes the pipe.
        Err(err) if !is_broken_pipe(&err) => return Err(err),
        _ => {}
    }
    Ok(if found.is_complete() { Outcome::Fine } else { Outcome::Damaged })
}

#[derive(Serialize)]
struct Line<'a> {
    complete: bool,
    #[serde(flatten)]
    found: &'a Salvage,
}

fn print(out: &mut dyn Write, args: &Args, found: &Salvage) -> Result<()> {
    if args.json {
        json_line(out, &Line { complete: found.is_complete(), found })?;
    } else {
        text(out, args, found)?;
    }
    out.flush()?;
    Ok(())
}

fn text(out: &mut dyn Write, args: &Args, found: &Salvage) -> Result<()> {
    for damage in &found.damage {
        damage_line(out, damage, "")?;
    }
    torn_lines(out, &found.torn)?;
    for damage in &found.doubtful {
        damage_line(out, damage, "saved, but ")?;
    }
    for damage in &found.unsaved {
        damage_line(out, damage, "not saved: ")?;
    }
    if found.lost > 0 {
        writeln!(out, "{} gone, of which not even the id is left", plural(found.lost, "message"))?;
    }
    if found.saved_from_crash_log > 0 || found.removed_by_crash_log > 0 {
        let saved = plural(found.saved_from_crash_log, "message");
        let left_out = found.removed_by_crash_log;
        writeln!(out, "from the crash log: {saved} saved, {left_out} left out as removed")?;
    }
    let saved = format!("{} saved, {}", plural(found.saved, "message"), bytes(found.bytes));
    let verdict = match found.is_complete() {
        true => "everything".to_owned(),
        false => "not everything".to_owned(),
    };
    writeln!(out, "{}: {saved}: {verdict} that {} held", args.new_dir.display(), args.dir.display())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidespool::inspect::Damage;
    use tidespool_core::SpoolId;

    use super::*;

    fn found() -> Salvage {
        let id = "1EC9414C-232A-6B00-B3C8-9F6BDECED846".parse().ok();
        let one = |path: &str, id: Option<SpoolId>, what: &str| {
            vec![Damage { path: path.into(), spool: id.map(|_| "data".into()), id, what: what.into() }]
        };
        Salvage {
            saved: 9,
            bytes: 900,
            saved_from_crash_log: 2,
            removed_by_crash_log: 1,
            unsaved: one("/s/journal/00000001.seg", id, "the payload fails its checksum"),
            lost: 1,
            doubtful: one("/s/sled", id, "it may have been removed before"),
            damage: one("/s/manifest", None, "it is missing"),
            torn: one("/s/journal/00000002.seg", id, "at byte 4096, after a torn write: a whole message"),
        }
    }

    fn printed(json: bool, found: &Salvage) -> String {
        let mut out = Vec::new();
        print(&mut out, &Args { dir: "/s".into(), new_dir: "/new".into(), json }, found).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn damage_and_its_consequence_are_one_line_each() {
        assert_eq!(
            printed(false, &found()),
            "/s/manifest: it is missing\n\
             /s/journal/00000002.seg: message 1ec9414c232a6b00b3c89f6bdeced846 of spool data: at byte 4096, after a torn write: a whole message\n\
             1 record of a torn end left out, as an opening does: never known to have been on stable storage\n\
             /s/sled: message 1ec9414c232a6b00b3c89f6bdeced846 of spool data: saved, but it may have been removed before\n\
             /s/journal/00000001.seg: message 1ec9414c232a6b00b3c89f6bdeced846 of spool data: not saved: the payload fails its checksum\n\
             1 message gone, of which not even the id is left\n\
             from the crash log: 2 messages saved, 1 left out as removed\n\
             /new: 9 messages saved, 900 bytes: not everything that /s held\n"
        );
        let whole = Salvage { saved: 1, bytes: 1, ..Salvage::default() };
        assert_eq!(printed(false, &whole), "/new: 1 message saved, 1 byte: everything that /s held\n");
    }

    #[test]
    fn json_says_whether_it_is_complete() {
        let json: serde_json::Value = serde_json::from_str(&printed(true, &found())).unwrap();
        assert_eq!(json["complete"], false);
        assert_eq!((&json["saved"], &json["lost"]), (&9.into(), &1.into()));
        assert_eq!(json["unsaved"][0]["what"], "the payload fails its checksum");
        assert_eq!(json["damage"][0]["id"], serde_json::Value::Null);
    }
}
