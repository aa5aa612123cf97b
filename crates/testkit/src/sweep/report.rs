use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{Kind, Outcome, Plan, Point, Points, Ran};
use crate::faults::Strike;

/// The results of a sweep.
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

/// The number of runs by outcome.
#[derive(Debug, Default)]
struct Row {
    outcomes: BTreeMap<Outcome, usize>,
    violations: usize,
}

/// A broken promise, and the run in which it occurred.
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

    /// Adds one run.
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

    /// Records a run that ended with a panic.
    pub(super) fn broken(&mut self, what: &str) {
        self.violations.push(Violation {
            point: None,
            struck: None,
            what: format!("the sweep itself: {what}"),
        });
    }

    /// The number of runs so far.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// Broken promises, each with the arguments that repeat the run.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.violations.iter().map(Violation::describe).collect()
    }

    /// The number of runs in which the fault struck.
    #[must_use]
    pub fn struck(&self) -> usize {
        let not_struck = |row: &Row| row.outcomes.get(&Outcome::NotStruck).copied().unwrap_or(0);
        self.runs - self.by_kind.values().map(not_struck).sum::<usize>()
    }

    /// The report as text.
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
        let kinds = self.by_kind.iter().map(|(kind, row)| (kind.name(), row));
        let _ = writeln!(text, "{}\n", table("fault", kinds));
        let places = self.by_place.iter().map(|(place, row)| (place.clone(), row));
        let _ = writeln!(text, "{}\n", table("first struck call", places));
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

    /// The report as one JSON object.
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
            "kinds": rows(self.by_kind.iter().map(|(kind, row)| (kind.name(), row)).collect()),
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
        let struck = struck.as_ref().map_or_else(|| "no call was struck".to_owned(), ToString::to_string);
        match point {
            Some(Point { number, kind }) => {
                format!("--point {number} --kind {}: {what} ({struck})", kind.name())
            }
            None => format!("without a fault: {what}"),
        }
    }
}

/// The kind of file, the call and the thread, without the numbers that differ from run to run.
fn place(strike: &Strike) -> String {
    let Strike { call, name, thread, .. } = strike;
    let of = match name.as_str() {
        name if name.ends_with(".seg") => "a segment",
        name if name.starts_with("manifest") => "the manifest",
        "db" | "conf" | "blobs" | "sled" => "sled's files",
        "ballast" => "the ballast",
        _ => "directories",
    };
    let by = thread.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
    let by = by.strip_prefix("tide-").filter(|by| *by != "runtime").unwrap_or("caller");
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
