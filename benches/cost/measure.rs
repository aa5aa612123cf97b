//! Runs this program for each operation: once directly, and once under valgrind.

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::callgrind;
use super::counts::Counts;
use super::figure::{Figure, per_operation};
use super::operations::Operation;

/// The figures of one operation.
pub(crate) type Figures = BTreeMap<Figure, f64>;

/// The version of valgrind, or `None` if it is not installed.
pub(crate) fn valgrind_version() -> Result<Option<String>> {
    match Command::new("valgrind").arg("--version").output() {
        Ok(output) => Ok(Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("reading the version of valgrind"),
    }
}

/// Measures all `operations` on all cores. Returns the figures in the order of `operations`.
pub(crate) fn measure(operations: &[&Operation], with_instructions: bool) -> Result<Vec<Figures>> {
    let next = Mutex::new(operations.iter().enumerate());
    let measured = Mutex::new(BTreeMap::new());
    let work = || -> Result<()> {
        loop {
            let Some((place, operation)) = next.lock().next() else { return Ok(()) };
            let figures = figures(operation, with_instructions)
                .with_context(|| format!("measuring \"{}\"", operation.name))?;
            measured.lock().insert(place, figures);
        }
    };
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let done =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")));
        done.collect::<Result<()>>()
    })?;
    Ok(measured.into_inner().into_values().collect())
}

/// Raises each figure to the higher one of both.
pub(crate) fn raise(highest: &mut Figures, figures: &Figures) {
    for (figure, value) in figures {
        let highest = highest.entry(*figure).or_insert(*value);
        *highest = highest.max(*value);
    }
}

fn figures(operation: &Operation, with_instructions: bool) -> Result<Figures> {
    let dir = TempDir::new()?;
    let program = env::current_exe()?;
    let output = succeed(perform(Command::new(&program), operation, &dir.path().join("spool")))?;
    let counts: Counts = toml::from_str(&String::from_utf8(output.stdout)?).context("reading the counts")?;
    let counted = operation.figures().iter();
    let mut figures: Figures =
        counted.filter_map(|figure| Some((*figure, figure.of(&counts, operation.count)?))).collect();
    if with_instructions {
        succeed(perform(callgrind::command(&program, dir.path()), operation, &dir.path().join("again")))?;
        // Fractions of an instruction do not matter.
        let cost = per_operation(callgrind::section(dir.path())?, operation.count).round();
        figures.insert(Figure::Instructions, cost);
    }
    Ok(figures)
}

fn perform(mut command: Command, operation: &Operation, spool: &Path) -> Command {
    command.args(["--perform", operation.name, "--dir"]).arg(spool);
    command
}

fn succeed(mut command: Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{complaint}", output.status);
    Ok(output)
}
