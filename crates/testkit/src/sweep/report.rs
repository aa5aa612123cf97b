use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{Kind, Outcome, Plan, Point, Points, Ran};
use crate::faults::Strike;

/// What came of a sweep.
#[derive(Debug)]
pub struct Report {
    of: Points,
    seed: Option<u64>,
    runs: usize,
    by_kind: BTreeMap<Kind, Row>,
    by_place: BTreeMap<String, Row>,
    violations: Vec<Violation>,
    slowest: Duration,
}

/// How many runs ended how.
#[derive(Debug, Default)]
struct Row {
    outcomes: BTreeMap<Outcome, usize>,
    violations: usize,
}

/// A broken promise, and in which run.
#[derive(Debug)]
struct Violation {
    point: Option<Point>,
    struck: Option<Strike>,
    what: String,
}

impl Report {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            of: plan.of,
            seed: plan.seed,
            runs: 0,
            by_kind: BTreeMap::new(),
            by_place: BTreeMap::new(),
            violations: Vec::new(),
            slowest: Duration::ZERO,
        }
    }

    /// Counts one run.
    pub fn add(&mut self, ran: Ran) {
        let Ran { point, struck, outcome, violations, took, .. } = ran;
        self.runs += 1;
        self.slowest = self.slowest.max(took);
        let mut rows = Vec::new();
        if let Some(point) = point {
            rows.push(self.by_kind.entry(point.kind).or_default());
        }
        if let Some(struck) = &struck {
            rows.push(self.by_place.entry(place(struck)).or_default());
        }
        for row in rows {
            *row.outcomes.entry(outcome).or_default() += 1;
            row.violations += usize::from(!violations.is_empty());
        }
        self.violations.extend(violations.into_iter().map(|what| Violation {
            point,
            struck: struck.clone(),
            what,
        }));
    }

    /// A run that did not come back.
    pub(super) fn broken(&mut self, what: &str) {
        self.violations.push(Violation {
            point: None,
            struck: None,
            what: format!("the sweep itself: {what}"),
        });
    }

    /// Runs so far.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// Broken promises, each with how to see it again.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.violations.iter().map(Violation::describe).collect()
    }

    /// Runs in which the fault struck.
    #[must_use]
    pub fn struck(&self) -> usize {
        let not_struck = |row: &Row| row.outcomes.get(&Outcome::NotStruck).copied().unwrap_or(0);
        self.runs - self.by_kind.values().map(not_struck).sum::<usize>()
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let Points { calls, writes, reads } = self.of;
        let seed = self.seed.map_or_else(String::new, |seed| format!(", --seed {seed}"));
        let _ = writeln!(
            text,
            "{} runs; a run without a fault makes {calls} calls, {writes} of them writes and {reads} reads{seed}",
            self.runs
        );
        let kinds = self.by_kind.iter().map(|(kind, row)| (kind.name().to_owned(), row));
        let _ = writeln!(text, "{}\n", table("fault", kinds));
        let places = self.by_place.iter().map(|(place, row)| (place.clone(), row));
        let _ = writeln!(text, "{}\n", table("first call that was struck", places));
        let _ = writeln!(
            text,
            "slowest run: {:.1} s; violations: {}",
            self.slowest.as_secs_f64(),
            self.violations.len()
        );
        for violation in &self.violations {
            let _ = writeln!(text, "  {}", violation.describe());
        }
        text
    }

    /// For machines: one object.
    #[must_use]
    pub fn json(&self) -> Value {
        let rows = |rows: Vec<(String, &Row)>| -> Value {
            rows.into_iter().map(|(name, row)| (name, row.json())).collect::<serde_json::Map<_, _>>().into()
        };
        json!({
            "calls": self.of.calls,
            "writes": self.of.writes,
            "reads": self.of.reads,
            "seed": self.seed,
            "runs": self.runs,
            "slowest_run_ms": u64::try_from(self.slowest.as_millis()).unwrap_or(u64::MAX),
            "kinds": rows(self.by_kind.iter().map(|(kind, row)| (kind.name().to_owned(), row)).collect()),
            "places": rows(self.by_place.iter().map(|(place, row)| (place.clone(), row)).collect()),
            "violations": self.violations.iter().map(|violation| json!({
                "point": violation.point.map(|point| point.number),
                "kind": violation.point.map(|point| point.kind),
                "struck": violation.struck.as_ref().map(ToString::to_string),
                "what": violation.what,
            })).collect::<Vec<_>>(),
        })
    }
}

impl Row {
    fn count(&self, outcome: Outcome) -> usize {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }

    fn json(&self) -> Value {
        let outcomes =
            Outcome::ALL.map(|outcome| (outcome.name().replace(' ', "_"), self.count(outcome).into()));
        let mut object: serde_json::Map<String, Value> = outcomes.into_iter().collect();
        object.insert("violated".to_owned(), self.violations.into());
        object.into()
    }
}

impl Violation {
    fn describe(&self) -> String {
        let Self { point, struck, what } = self;
        let struck = struck.as_ref().map_or_else(|| "nothing was struck".to_owned(), ToString::to_string);
        match point {
            Some(Point { number, kind }) => {
                format!("--point {number} --kind {}: {what} ({struck})", kind.name())
            }
            None => format!("without a fault: {what}"),
        }
    }
}

/// Where a call went, without what differs from run to run.
fn place(strike: &Strike) -> String {
    let Strike { call, name, thread, .. } = strike;
    let of = match name.as_str() {
        name if name.ends_with(".seg") => "a segment",
        name if name.starts_with("ledger") => "the ledger",
        "db" | "conf" | "blobs" | "sled" => "sled's files",
        "ballast" => "the ballast",
        _ => "directories",
    };
    let by = thread.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
    let by = by.strip_prefix("tidespool-").filter(|by| *by != "runtime").unwrap_or("caller");
    format!("{of}: {call:?} ({by})")
}

fn table<'a>(title: &str, rows: impl Iterator<Item = (String, &'a Row)>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let outcomes = Outcome::ALL.map(|outcome| outcome.name().to_owned());
    let header = [title.to_owned(), "runs".to_owned()].into_iter().chain(outcomes);
    table.set_header(header.chain(["violated".to_owned()]));
    for (name, row) in rows {
        let counts = Outcome::ALL.map(|outcome| row.count(outcome));
        let cells = [name, counts.iter().sum::<usize>().to_string()].into_iter();
        let cells = cells.chain(counts.map(|count| count.to_string()));
        table.add_row(cells.chain([row.violations.to_string()]));
    }
    table
}
