//! `memory`: checks that a spool keeps to its memory budget with several mixes of messages.
//!
//! Each mix runs in a process of its own, so that the peak is that of the mix. The process first
//! allocates what the bench itself needs (threads, payload bytes, buffers for the messages in
//! progress). The memory that is resident then is the *base*. Only then it opens the spool and
//! starts. Messages are numbered; id, size and bytes follow from the number, so no list is needed.
//!
//! # Layout
//!
//! * here: the command, which starts one child after the other, and its result;
//! * [`mix`]: the mixes by name, and their settings; [`mixes`]: the calls of each mix;
//! * [`callers`]: the tasks that store, load and remove;
//! * [`watch`]: the thread that samples resident memory and gauges;
//! * [`report`]: the figures, as a table and as JSON.

mod callers;
mod mix;
mod mixes;
mod report;
mod watch;

use std::io::Write;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;
use tidespool::Config;

pub(crate) use self::mix::Mix;
use self::mix::Setting;
use self::report::{MAX_RATIO, MemoryReport, MixReport};
use crate::interrupt::Interrupted;
use crate::output::json_line;
use crate::plan::Plan;
use crate::report::word;
use crate::{disk, progress};

/// The default budget of the spool.
const BUDGET: u64 = 256 << 20;
const QUICK_BUDGET: u64 = 64 << 20;

/// An upper bound of the disk space for each message that is live at a time.
const DISK_FOR_EACH: u64 = 4 << 10;

/// The number of SIGINT.
const INTERRUPT: i32 = 2;

/// The arguments besides the plan.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    /// Use a smaller budget, fewer messages and less time.
    pub(crate) quick: bool,
    /// Run only these mixes; all if it is empty.
    pub(crate) only: &'a [Mix],
    pub(crate) dir: Option<&'a Path>,
    pub(crate) json: bool,
    /// The argument that selects the benchmark in this program.
    pub(crate) subcommand: Option<&'a str>,
}

/// Runs the mixes one after the other and prints the figures.
///
/// # Errors
///
/// Those of a child process, and a mix that exceeds its limit.
pub(crate) fn run(plan: &Plan, asked: &Asked<'_>, out: &mut dyn Write) -> Result<()> {
    let setting = setting(plan, asked.quick);
    let parent = asked.dir.map_or_else(std::env::temp_dir, Path::to_owned);
    // Checked here too, so that there is one error, before the first child starts.
    Config::new(parent.clone())
        .memory_budget(setting.budget)
        .journal_capacity(setting.journal_capacity)
        .validate()
        .context("opening tidespool")?;
    let room =
        setting.messages.saturating_mul(DISK_FOR_EACH).saturating_add(setting.budget.saturating_mul(8));
    disk::require(&parent, room)?;
    let all = Mix::value_variants();
    let mixes = if asked.only.is_empty() { all } else { asked.only };
    let mut found = Vec::with_capacity(mixes.len());
    let bar = progress::bar("", mixes.len() as u64);
    let ran = mixes.iter().try_for_each(|mix| {
        bar.set_message(word(mix));
        let one = one(*mix, &setting, &parent, asked.subcommand);
        found.push(one.with_context(|| format!("running the mix {}", word(mix)))?);
        bar.inc(1);
        anyhow::Ok(())
    });
    bar.finish_and_clear();
    let report = MemoryReport::new(&setting, found);
    if !asked.json && !report.mixes.is_empty() {
        // Also after an error: the mixes before it are useful.
        report.table(out)?;
    }
    ran?;
    if asked.json {
        json_line(out, &report)?;
    } else {
        report.verdict(out)?;
    }
    let over: Vec<String> = report.mixes.iter().filter(|mix| !mix.pass).map(|mix| word(&mix.mix)).collect();
    if !over.is_empty() {
        out.flush()?;
        bail!("resident memory went over {MAX_RATIO} × the budget with: {}", over.join(", "));
    }
    Ok(())
}

/// Runs one mix in `dir`, an empty directory, and prints a line of JSON. Called in the child
/// process.
///
/// # Errors
///
/// Those of the spool.
pub(crate) async fn run_mix(
    mix: Mix,
    plan: &Plan,
    quick: bool,
    dir: &Path,
    out: &mut (dyn Write + Send),
) -> Result<()> {
    let report = mixes::run(mix, &setting(plan, quick), dir).await?;
    json_line(out, &report)
}

fn setting(plan: &Plan, quick: bool) -> Setting {
    Setting {
        budget: plan.memory_budget.unwrap_or(if quick { QUICK_BUDGET } else { BUDGET }),
        messages: plan.messages.unwrap_or(if quick { 100_000 } else { 1_000_000 }),
        journal_capacity: plan.journal_capacity,
        seconds: if quick { 2 } else { 12 },
        seed: plan.seed,
        quick,
    }
}

/// Runs one mix in a child process.
fn one(mix: Mix, setting: &Setting, parent: &Path, subcommand: Option<&str>) -> Result<MixReport> {
    let dir = tempfile::Builder::new().prefix("tidespool-bench-").tempdir_in(parent).with_context(|| {
        format!(
            "creating a directory in {}: give a directory that can be written to with --dir",
            parent.display()
        )
    })?;
    let program = std::env::current_exe().context("looking for this program's own file")?;
    let mut command = Command::new(program);
    command
        .args(subcommand)
        .args(["--workload", "memory", "--mix", &word(&mix), "--mix-dir"])
        .arg(dir.path());
    for (option, value) in [
        ("--memory-budget", setting.budget),
        ("--messages", setting.messages),
        ("--journal-capacity", setting.journal_capacity),
        ("--seed", setting.seed),
    ] {
        command.args([option, &value.to_string()]);
    }
    if setting.quick {
        command.arg("--quick");
    }
    let ended =
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("starting a process")?;
    let path: PathBuf = dir.path().to_owned();
    dir.close().with_context(|| format!("removing {}", path.display()))?;
    if ended.status.signal() == Some(INTERRUPT) {
        return Err(Interrupted.into());
    }
    if !ended.status.success() {
        bail!("its process ended with {}", ended.status);
    }
    serde_json::from_slice(&ended.stdout).context("reading the report of its process")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Workload;

    #[test]
    fn arguments_override_defaults_and_quick_is_smaller() {
        let plan = Plan::new(Workload::Memory);
        assert_eq!((setting(&plan, false).budget, setting(&plan, true).budget), (BUDGET, QUICK_BUDGET));
        assert!(setting(&plan, true).messages < setting(&plan, false).messages);
        let given = Plan { memory_budget: Some(7 << 20), messages: Some(9), ..plan };
        for quick in [false, true] {
            assert_eq!((setting(&given, quick).budget, setting(&given, quick).messages), (7 << 20, 9));
        }
    }
}
