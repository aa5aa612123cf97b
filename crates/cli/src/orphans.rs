//! `tidespool orphans`: lists and removes the messages of one spool that another spool does not
//! have.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use futures_lite::future;
use serde::Serialize;
use tidespool::inspect::{Entry, Inspector};
use tidespool::{Config, Tidespool};
use tidespool_core::SpoolId;

use crate::output::{Outcome, bytes, damage_line, json_line, plural};
use crate::spool_dir;

/// Removals that share a commit.
const AT_ONCE: usize = 256;

/// List the messages of one spool that have no message of the same id in another one: bodies whose
/// envelope was never stored, because the server died between the two. Exit code 0: done, also if
/// there are none, 2: the store is damaged, so that envelopes may be missing, and nothing is
/// removed, 1: an error.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the store. No process may have it open. Only `--rm` changes it.
    dir: PathBuf,
    /// The spool whose messages are listed.
    #[arg(long, value_name = "NAME", default_value = "data")]
    data: String,
    /// The spool that should have a message of the same id.
    #[arg(long, value_name = "NAME", default_value = "meta")]
    meta: String,
    /// List only messages whose id is older, as in `90s`, `1h` or `2days`. Messages whose id has no
    /// time are never listed.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    older_than: Duration,
    /// Remove the messages that are listed. Opens the store for this, and shuts it down.
    #[arg(long)]
    rm: bool,
    /// Print one JSON object per line: id, created, size, removed; for damage: path, spool, id,
    /// what.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<Outcome> {
    let inspector = spool_dir::open(&args.dir)?;
    for name in [&args.data, &args.meta] {
        spool_dir::check_name(&inspector, &args.dir, name)?;
    }
    let before = before(args.older_than);
    let found = find(&inspector, args, before)?;
    let damage = inspector.damage();
    for damage in &damage {
        if args.json { json_line(out, damage)? } else { damage_line(out, damage, "")? }
    }
    let removes = args.rm && damage.is_empty();
    // Releases the directory.
    drop(inspector);
    let mut list = List { args, messages: 0, bytes: 0, removed: removes };
    if removes && !found.is_empty() {
        future::block_on(remove(args, before, &found, &mut |id, size| list.add(out, id, size)))
            .with_context(|| format!("removing orphans from {}", args.dir.display()))?;
    } else {
        found.iter().try_for_each(|(id, size)| list.add(out, *id, *size))?;
    }
    list.end(out)?;
    if damage.is_empty() {
        return Ok(Outcome::Fine);
    }
    if args.rm && !args.json {
        writeln!(out, "nothing was removed: the store is damaged, and envelopes may be missing")?;
    }
    Ok(Outcome::Damaged)
}

/// The time that is `age` ago, or the earliest time.
fn before(age: Duration) -> DateTime<Utc> {
    let age = TimeDelta::from_std(age).ok();
    age.and_then(|age| Utc::now().checked_sub_signed(age)).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// Returns the orphans that were created before this time, and their sizes.
fn find(inspector: &Inspector, args: &Args, before: DateTime<Utc>) -> Result<BTreeMap<SpoolId, u64>> {
    let mut found = BTreeMap::new();
    let mut visit = |Entry { spool, id, size, .. }: Entry| {
        let is_old = id.created().is_some_and(|created| created < before);
        if spool == args.data && is_old && !inspector.spools_with(id).contains(&args.meta) {
            found.insert(id, size);
        }
        true
    };
    inspector.entries(&mut visit).with_context(|| format!("listing {}", args.dir.display()))?;
    Ok(found)
}

/// Opens the store, removes those of `found` that are still orphans, and calls `removed` for each
/// when its removal is on stable storage.
async fn remove(
    args: &Args,
    before: DateTime<Utc>,
    found: &BTreeMap<SpoolId, u64>,
    removed: &mut dyn FnMut(SpoolId, u64) -> Result<()>,
) -> Result<()> {
    let store = Tidespool::open(Config::new(&args.dir)).await?;
    let done = remove_from(&store, args, before, found, removed).await;
    // What was removed is on stable storage, whatever the shutdown returns.
    done.and(store.shutdown().await)
}

async fn remove_from(
    store: &Tidespool,
    args: &Args,
    before: DateTime<Utc>,
    found: &BTreeMap<SpoolId, u64>,
    removed: &mut dyn FnMut(SpoolId, u64) -> Result<()>,
) -> Result<()> {
    let data = store.spool(&args.data)?;
    let mut orphans = store.unpaired(&args.data, &args.meta, before)?;
    loop {
        let mut some = Vec::with_capacity(AT_ONCE);
        while some.len() < AT_ONCE
            && let Some(id) = orphans.next().await
        {
            let id = id?;
            some.extend(found.contains_key(&id).then_some(id));
        }
        if some.is_empty() {
            return Ok(());
        }
        data.remove_all(&some, None).await?;
        for id in some {
            removed(id, found.get(&id).copied().unwrap_or_default())?;
        }
    }
}

/// A line of `--json`.
#[derive(Serialize)]
struct Line {
    id: SpoolId,
    created: Option<String>,
    size: u64,
    removed: bool,
}

/// Prints orphans, and counts them.
struct List<'a> {
    args: &'a Args,
    messages: u64,
    bytes: u64,
    removed: bool,
}

impl List<'_> {
    fn add(&mut self, out: &mut dyn Write, id: SpoolId, size: u64) -> Result<()> {
        self.messages += 1;
        self.bytes += size;
        let created = id.created();
        if self.args.json {
            let created = created.map(|time| time.to_rfc3339_opts(SecondsFormat::Nanos, true));
            json_line(out, &Line { id, created, size, removed: self.removed })?;
        } else {
            let created =
                created.map_or_else(String::new, |time| time.format("%Y-%m-%d %H:%M:%S%.3f").to_string());
            writeln!(out, "{id}  {created:23}  {size:>12}")?;
        }
        Ok(())
    }

    fn end(&self, out: &mut dyn Write) -> Result<()> {
        if self.args.json {
            return Ok(());
        }
        let (data, meta) = (&self.args.data, &self.args.meta);
        let count = format!("{}, {}", plural(self.messages, "message"), bytes(self.bytes));
        match self.removed && self.messages > 0 {
            true => writeln!(out, "removed from {data}: {count}, without a message in {meta}")?,
            false => writeln!(out, "in {data}: {count}, without a message in {meta}")?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_before_the_first_time_lists_nothing() {
        assert_eq!(before(Duration::MAX), DateTime::<Utc>::MIN_UTC);
        assert!(before(Duration::from_secs(60)) < Utc::now());
    }
}
