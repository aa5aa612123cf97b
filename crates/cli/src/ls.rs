//! `tidespool ls`: lists the live messages of a store, each spool in time order.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use tidespool::inspect::{Entry, Home};

use crate::output::{Outcome, bytes, json_line, plural};
use crate::spool_dir;

/// List the live messages of each spool in time order: id, creation time (UTC), payload bytes,
/// location, and spool.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the spool. No process may have it open.
    dir: PathBuf,
    /// Print one JSON object per line: id, created (null if the id has no time), size, home, spool.
    #[arg(long)]
    json: bool,
    /// List the messages of this spool only.
    #[arg(long, value_name = "NAME")]
    spool: Option<String>,
    /// Stop after N messages.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<Outcome> {
    let spool = spool_dir::open(&args.dir)?;
    if let Some(name) = &args.spool {
        spool_dir::check_name(&spool, &args.dir, name)?;
    }
    let is_listed = |entry: &Entry| args.spool.as_ref().is_none_or(|name| *name == entry.spool);
    let mut list = List::new(args.json, args.limit);
    let mut written = list.begin(out).map_err(Into::into);
    if written.is_ok() {
        spool
            .entries(&mut |entry| match is_listed(&entry).then(|| list.add(out, &entry)).transpose() {
                Ok(go_on) => go_on.unwrap_or(true),
                Err(err) => {
                    written = Err(err);
                    false
                }
            })
            .with_context(|| format!("listing {}", args.dir.display()))?;
    }
    written?;
    list.end(out)?;
    Ok(Outcome::Fine)
}

/// A line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a tidespool_core::SpoolId,
    created: Option<String>,
    size: u64,
    home: Home,
    spool: &'a str,
}

/// Prints entries as they arrive, so that memory does not grow with the spool.
struct List {
    json: bool,
    limit: Option<u64>,
    messages: u64,
    bytes: u64,
    cut: bool,
}

impl List {
    fn new(json: bool, limit: Option<u64>) -> Self {
        Self { json, limit, messages: 0, bytes: 0, cut: false }
    }

    fn begin(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(out, "{:32}  {:23}  {:>12}  {:9}  SPOOL", "ID", "CREATED (UTC)", "BYTES", "HOME")
    }

    /// Prints one entry. Returns `false` if the limit is reached.
    fn add(&mut self, out: &mut dyn Write, entry: &Entry) -> Result<bool> {
        if self.limit.is_some_and(|limit| self.messages >= limit) {
            self.cut = true;
            return Ok(false);
        }
        self.messages += 1;
        self.bytes += entry.size;
        let created = entry.id.created();
        if self.json {
            let created = created.map(|time| time.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true));
            let Entry { spool, id, size, home } = entry;
            json_line(out, &Line { id, created, size: *size, home: *home, spool })?;
        } else {
            let created = created
                .map_or_else(|| "-".to_owned(), |time| time.format("%Y-%m-%d %H:%M:%S%.3f").to_string());
            let (id, size, home) = (entry.id, entry.size, home(entry.home));
            writeln!(out, "{id}  {created:23}  {size:>12}  {home:9}  {}", entry.spool)?;
        }
        Ok(true)
    }

    fn end(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let more = if self.cut { ", and more: the limit is reached" } else { "" };
        writeln!(out, "{}, {}{more}", plural(self.messages, "message"), bytes(self.bytes))
    }
}

fn home(home: Home) -> &'static str {
    match home {
        Home::Journal => "journal",
        Home::Segment => "segment",
        Home::CrashLog => "crash-log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        [
            ("meta", "1EC9414C-232A-6B00-B3C8-9F6BDECED846", 5, Home::Segment),
            ("data", "919108f7-52d1-4320-9bac-f847db4148a8", 70_000, Home::CrashLog),
        ]
        .map(|(spool, id, size, home)| Entry { spool: spool.into(), id: id.parse().unwrap(), size, home })
        .into()
    }

    fn print(json: bool, limit: Option<u64>) -> String {
        let mut out = Vec::new();
        let mut list = List::new(json, limit);
        list.begin(&mut out).unwrap();
        for entry in entries() {
            if !list.add(&mut out, &entry).unwrap() {
                break;
            }
        }
        list.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_is_aligned_and_summed_up() {
        assert_eq!(
            print(false, None),
            "ID                                CREATED (UTC)                   BYTES  HOME       SPOOL\n\
             1ec9414c232a6b00b3c89f6bdeced846  2022-02-22 19:22:22.000             5  segment    meta\n\
             919108f752d143209bacf847db4148a8  -                               70000  crash-log  data\n\
             2 messages, 68.4 KiB (70005 bytes)\n"
        );
    }

    #[test]
    fn json_is_one_object_a_line() {
        assert_eq!(
            print(true, None),
            "{\"id\":\"1ec9414c232a6b00b3c89f6bdeced846\",\"created\":\"2022-02-22T19:22:22.000000000Z\",\
             \"size\":5,\"home\":\"segment\",\"spool\":\"meta\"}\n\
             {\"id\":\"919108f752d143209bacf847db4148a8\",\"created\":null,\"size\":70000,\"home\":\"crash-log\",\
             \"spool\":\"data\"}\n"
        );
    }

    #[test]
    fn a_reached_limit_is_reported() {
        let one = print(false, Some(1));
        assert!(one.ends_with("1 message, 5 bytes, and more: the limit is reached\n"), "{one}");
        assert!(print(false, Some(2)).ends_with("(70005 bytes)\n"));
        assert_eq!(print(true, Some(0)), "");
    }
}
