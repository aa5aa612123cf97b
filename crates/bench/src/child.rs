//! The child process of `open-killed`, which fills an engine and is killed.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::engine::{Needs, Opener};
use crate::interrupt::Stop;
use crate::payload::Pool;
use crate::plan::Plan;
use crate::run::{QUIET, Run};
use crate::set;

/// Begins the line that the child prints when it is done. The number of messages follows.
const FULL: &str = "full ";

/// Bytes of a journal record besides its payload.
const RECORD_OVERHEAD: u64 = 64;

/// Fills the engine of `opener` in `dir` with the messages of the plan, prints their number, and
/// waits with the engine open until it is killed or standard input is closed.
///
/// The process that [`Opener::filler`] starts only has to call this function.
///
/// # Errors
///
/// Those of the engine.
pub async fn fill(opener: &dyn Opener, plan: &Plan, dir: &Path) -> Result<()> {
    let run = Run {
        opener,
        pool: Pool::new(plan.size, plan.seed),
        plan: Arc::new(plan.clone()),
        dir: dir.to_owned(),
        engine_dir: dir.to_owned(),
        stop: Stop::default(),
        quiet: QUIET,
    };
    run.with(&Needs::of(plan), async |engine| {
        let stored = set::fill(&run, engine, count(plan)).await?;
        set::settle(&run, engine).await?;
        tokio::task::spawn_blocking(move || {
            // Bypasses the lock of standard output: a command that prints its result may hold it.
            let out = std::io::stdout().as_fd().try_clone_to_owned().context("opening standard output")?;
            let mut out = File::from(out);
            writeln!(out, "{FULL}{}", stored.len()).context("writing to standard output")?;
            // The parent kills this process here. If the parent dies, standard input ends.
            std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())
                .context("reading standard input")?;
            Ok(())
        })
        .await?
    })
    .await
}

/// Returns the number of messages: that of the plan, or as many as fill 70 % of the journal. A
/// spool writes a checkpoint at 75 %.
fn count(plan: &Plan) -> u64 {
    let each = plan.size.mean() as u64 + RECORD_OVERHEAD;
    plan.messages.unwrap_or_else(|| (plan.journal_capacity / 10 * 7 / each).max(1))
}

/// The child process. Dropping it kills and reaps it.
pub(crate) struct Filler {
    child: Child,
    /// Held open: the child ends when its standard input does.
    _stdin: Option<ChildStdin>,
}

impl Filler {
    pub(crate) fn start(opener: &dyn Opener, plan: &Plan, dir: &Path) -> Result<Self> {
        let mut command = opener.filler()?;
        command.arg(dir).arg(serde_json::to_string(plan)?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?;
        let stdin = child.stdin.take();
        Ok(Self { child, _stdin: stdin })
    }

    /// Waits until the child is full, kills it (`SIGKILL`) and returns how many messages it stored.
    /// Blocks. An interrupt reaches the child too and ends the wait.
    pub(crate) fn filled_and_killed(mut self, stop: &Stop) -> Result<u64> {
        let mut line = String::new();
        if let Some(stdout) = self.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).context("reading the output of the child process")?;
        }
        let stored = line.trim_end().strip_prefix(FULL).and_then(|count| count.parse().ok());
        match stored {
            Some(stored) => Ok(stored),
            None if stop.is_set() => Ok(0),
            None => bail!("the child process ended before it had stored its messages"),
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // An error means that the child has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Size, Workload};

    #[test]
    fn the_journal_is_filled_to_just_below_a_checkpoint() {
        let plan = Plan { size: Size::Bytes(960), ..Plan::new(Workload::OpenKilled) };
        assert_eq!(count(&plan), (1 << 30) / 10 * 7 / 1_024);
        assert_eq!(count(&Plan { messages: Some(7), ..plan }), 7);
    }
}
