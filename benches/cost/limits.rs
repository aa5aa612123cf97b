//! The file of limits, and the verdict on a figure. All verdicts are made here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::figure::Figure;
use super::measure::Figures;
use super::operations::{OPERATIONS, Operation};

const HEADER: &str = "\
# The cost of operations, checked by every run of .ci/run: `cargo bench --bench cost -- --check`.
#
# A figure may exceed its limit by `tolerance` percent. Instructions are those of all threads, under
# valgrind. Bytes and syncs are those of journal and manifest. All figures are per operation, which
# is one message, even if 64 callers or a checkpoint share the work.
#
# `cargo bench --bench cost -- --bless` writes this file. It measures three times, takes the highest
# values, and keeps the tolerances. A commit that raises a limit must explain why.
";

/// If a figure is better than its limit by more than this share, the limit should be lowered.
const MUCH_BETTER: f64 = 0.25;

/// The contents of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    /// The tools with which the limits were measured.
    pub(crate) measured_with: Tools,
    operations: BTreeMap<String, BTreeMap<Figure, Limit>>,
}

/// The tools that instruction counts depend on, besides our code.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tools {
    pub(crate) arch: String,
    pub(crate) rustc: String,
    pub(crate) valgrind: String,
}

/// The limit of one figure.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limit {
    pub(crate) limit: f64,
    /// In percent of `limit`.
    pub(crate) tolerance: f64,
}

/// The comparison of a figure with its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Kept,
    /// Far below the limit: the limit should be lowered.
    MuchBetter,
    /// Above limit and tolerance.
    Breach,
    /// There is no limit yet.
    NoLimit,
}

impl Limit {
    fn verdict(&self, measured: f64, grain: f64) -> Verdict {
        if measured > self.limit * (1.0 + self.tolerance / 100.0) + grain {
            Verdict::Breach
        } else if measured + grain < self.limit * (1.0 - MUCH_BETTER) {
            Verdict::MuchBetter
        } else {
            Verdict::Kept
        }
    }
}

impl Limits {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    pub(crate) fn get(&self, operation: &Operation, figure: Figure) -> Option<Limit> {
        self.operations.get(operation.name)?.get(&figure).copied()
    }

    pub(crate) fn verdict(&self, operation: &Operation, figure: Figure, measured: f64) -> Verdict {
        self.get(operation, figure).map_or(Verdict::NoLimit, |limit| limit.verdict(measured, figure.grain()))
    }

    /// Limits of operations or figures that do not exist.
    pub(crate) fn orphans(&self) -> Vec<String> {
        let mut orphans = Vec::new();
        for (name, figures) in &self.operations {
            let known = Operation::named(name).map_or(&[] as &[Figure], Operation::figures);
            let unknown = figures.keys().filter(|figure| !known.contains(figure));
            orphans.extend(unknown.map(|figure| format!("{name}: {}", figure.name())));
        }
        orphans
    }

    /// Sets the measured values as the new limits. Keeps the tolerances.
    pub(crate) fn bless(&mut self, operation: &Operation, measured: &Figures) {
        let limits = self.operations.entry(operation.name.to_owned()).or_default();
        for (figure, measured) in measured {
            let usual = figure.usual_tolerance(operation.kind);
            let tolerance = limits.get(figure).map_or(usual, |limit| limit.tolerance);
            limits.insert(*figure, Limit { limit: *measured, tolerance });
        }
    }

    /// Replaces the file.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut text = HEADER.to_owned();
        let Tools { arch, rustc, valgrind } = &self.measured_with;
        let _ =
            write!(text, "\n[measured_with]\narch = {arch:?}\nrustc = {rustc:?}\nvalgrind = {valgrind:?}\n");
        for operation in OPERATIONS {
            let _ = write!(text, "\n[operations.{:?}]\n", operation.name);
            for figure in operation.figures() {
                if let Some(Limit { limit, tolerance }) = self.get(operation, *figure) {
                    let name = figure.name();
                    let _ = writeln!(text, "{name} = {{ limit = {limit:?}, tolerance = {tolerance:?} }}");
                }
            }
        }
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}
