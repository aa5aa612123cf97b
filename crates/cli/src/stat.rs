//! `tidespool stat`: counts what the directory of a spool holds.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tidespool::inspect::{CrashLogSummary, IndexState, Summary};

use crate::output::{Outcome, bytes, json_line, plural, two_columns};
use crate::spool_dir;

/// Count what the directory holds: messages and their bytes by spool, segments, bytes, and what the
/// next opening brings back from the crash log.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the spool. No process may have it open.
    dir: PathBuf,
    /// Print one JSON object on one line.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<Outcome> {
    let spool = spool_dir::open(&args.dir)?;
    let summary = spool.summary().with_context(|| format!("counting what is in {}", args.dir.display()))?;
    if args.json {
        json_line(out, &summary)?;
    } else {
        table(out, &args.dir, &summary)?;
    }
    Ok(Outcome::Fine)
}

fn table(out: &mut dyn Write, dir: &Path, summary: &Summary) -> io::Result<()> {
    let by_spool = summary.spools.iter().map(|(name, found)| {
        let count = plural(found.messages, "message");
        (format!("spool {name}"), format!("{count}, {}", bytes(found.message_bytes)))
    });
    let by_spool: Vec<(String, String)> = by_spool.collect();
    let mut rows = vec![
        ("directory", dir.display().to_string()),
        ("format version", summary.format_version.to_string()),
        ("last shutdown", if summary.clean_shutdown { "orderly" } else { "not orderly" }.to_owned()),
        ("messages", counted(summary.messages, &summary.messages_by_home)),
        ("message bytes", bytes(summary.message_bytes)),
    ];
    rows.extend(by_spool.iter().map(|(name, found)| (&**name, found.clone())));
    rows.extend([
        ("segments", counted(summary.segments_by_state.values().sum(), &summary.segments_by_state)),
        ("segment bytes", bytes(summary.segment_bytes)),
        ("indexed on disk", format!("{} (from the manifest)", summary.manifest_records)),
        ("index bytes", bytes(summary.index_bytes)),
        ("index", index(summary.index).to_owned()),
        ("crash log", crash_log(&summary.crash_log)),
        ("crash log bytes", bytes(summary.crash_log.file_bytes)),
    ]);
    two_columns(out, &rows)
}

/// What the next open does with the index.
fn index(state: IndexState) -> &'static str {
    match state {
        IndexState::Kept => "kept at next open",
        IndexState::RebuiltAtNextOpen => "rebuilt at next open",
    }
}

/// What the next open restores from the crash log.
fn crash_log(found: &CrashLogSummary) -> String {
    let (messages, removals) = (plural(found.messages, "message"), plural(found.removals, "removal"));
    format!("{messages} and {removals} brought back at next open, {}", bytes(found.message_bytes))
}

/// Formats a total and its parts: `5 (journal 3, segment 2)`.
fn counted(total: u64, parts: &BTreeMap<String, u64>) -> String {
    if parts.is_empty() {
        return total.to_string();
    }
    let parts: Vec<String> = parts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    format!("{total} ({})", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use tidespool::inspect::SpoolSummary;

    use super::*;

    #[test]
    fn the_table_reads_like_this() {
        let summary = Summary {
            format_version: 1,
            messages: 5,
            message_bytes: 2_048,
            spools: [
                ("data".into(), SpoolSummary { messages: 4, message_bytes: 1_024 }),
                ("meta".into(), SpoolSummary { messages: 1, message_bytes: 1_024 }),
            ]
            .into(),
            messages_by_home: [("journal".into(), 3), ("segment".into(), 2)].into(),
            segments_by_state: [("free".into(), 7), ("journal".into(), 1)].into(),
            segment_bytes: 8,
            index_bytes: 0,
            index: IndexState::Kept,
            manifest_records: 2,
            clean_shutdown: true,
            crash_log: CrashLogSummary { messages: 1, message_bytes: 1_000, removals: 2, file_bytes: 2_048 },
        };
        let mut out = Vec::new();
        table(&mut out, Path::new("/spool"), &summary).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "directory        /spool\n\
             format version   1\n\
             last shutdown    orderly\n\
             messages         5 (journal 3, segment 2)\n\
             message bytes    2.0 KiB (2048 bytes)\n\
             spool data       4 messages, 1.0 KiB (1024 bytes)\n\
             spool meta       1 message, 1.0 KiB (1024 bytes)\n\
             segments         8 (free 7, journal 1)\n\
             segment bytes    8 bytes\n\
             indexed on disk  2 (from the manifest)\n\
             index bytes      0 bytes\n\
             index            kept at next open\n\
             crash log        1 message and 2 removals brought back at next open, 1000 bytes\n\
             crash log bytes  2.0 KiB (2048 bytes)\n"
        );
    }

    #[test]
    fn an_empty_spool_has_no_parts() {
        assert_eq!(counted(0, &BTreeMap::new()), "0");
    }
}
