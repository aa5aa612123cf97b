//! The full result of a comparison, as it is written to JSON.

use std::collections::BTreeMap;

use serde::Serialize;
use tidespool_bench::{Plan, Report, Second};

use super::child::Failed;
use super::machine::Machine;
use super::matrix::{Case, Turn};
use super::summary::{EngineSummary, Ratio, ratios, summarise};
use super::wording::title;
use crate::engines::Peer;

/// A comparison. The fields are the keys of the JSON.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Comparison {
    /// The version of this program.
    pub(crate) version: &'static str,
    /// When the comparison finished, RFC 3339.
    pub(crate) finished: String,
    pub(crate) machine: Machine,
    /// Version and settings of each engine that ran.
    pub(crate) settings: BTreeMap<Peer, String>,
    pub(crate) cases: Vec<CaseSummary>,
    /// All runs, in order.
    pub(crate) runs: Vec<RunRecord>,
}

/// One case with all its rounds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CaseSummary {
    pub(crate) title: String,
    pub(crate) plan: Plan,
    /// In the order of the matrix, without engines whose runs all failed.
    pub(crate) engines: Vec<EngineSummary>,
    pub(crate) ratios: Vec<Ratio>,
    /// The p99.9 over time of each engine, from the last round that has it: `[second, µs]`.
    pub(crate) over_time: Vec<(Peer, Vec<(f64, f64)>)>,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RunRecord {
    #[serde(skip)]
    pub(crate) case: usize,
    /// The title of its case.
    pub(crate) title: String,
    pub(crate) engine: Peer,
    pub(crate) round: u32,
    /// `null` if the run failed.
    pub(crate) report: Option<Report>,
    /// Why it failed.
    pub(crate) error: Option<String>,
}

impl RunRecord {
    pub(crate) fn new(turn: Turn, case: &Case, run: Result<Report, Failed>) -> Self {
        let Turn { case: number, engine, round } = turn;
        let (report, error) = match run {
            Ok(report) => (Some(report), None),
            Err(err) => (None, Some(err.to_string())),
        };
        Self { case: number, title: title(&case.plan), engine, round, report, error }
    }
}

impl Comparison {
    pub(crate) fn new(machine: Machine, cases: &[Case], runs: Vec<RunRecord>) -> Self {
        let summaries = cases.iter().enumerate().map(|(number, case)| {
            let of_case: Vec<&RunRecord> = runs.iter().filter(|run| run.case == number).collect();
            CaseSummary::new(case, &of_case)
        });
        let cases = summaries.filter(|case| !case.engines.is_empty()).collect();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            finished: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            machine,
            settings: runs.iter().map(|run| (run.engine, run.engine.settings())).collect(),
            cases,
            runs,
        }
    }
}

impl CaseSummary {
    fn new(case: &Case, runs: &[&RunRecord]) -> Self {
        let reports = |engine: Peer| {
            runs.iter().filter(move |run| run.engine == engine).filter_map(|run| run.report.as_ref())
        };
        let summary = |&engine: &Peer| summarise(engine, &reports(engine).collect::<Vec<_>>());
        let engines: Vec<EngineSummary> = case.engines.iter().filter_map(summary).collect();
        let over_time = case.engines.iter().filter_map(|&engine| {
            let series = reports(engine).filter_map(|report| report.series.as_deref()).next_back()?;
            Some((engine, series.iter().map(point).collect()))
        });
        Self {
            title: title(&case.plan),
            plan: case.plan.clone(),
            ratios: ratios(case.plan.workload, &engines),
            over_time: over_time.collect(),
            engines,
        }
    }
}

fn point(at: &Second) -> (f64, f64) {
    #[expect(clippy::cast_precision_loss, reason = "seconds of a run")]
    let second = at.second as f64;
    (second, at.p999_us)
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use tidespool_bench::Workload;

    use super::super::summary::tests::report;
    use super::*;
    use crate::compare::machine;

    /// A comparison of two engines, one of which failed once.
    pub(crate) fn comparison() -> Comparison {
        let case = Case {
            plan: Plan { force_sync: true, ..Plan::new(Workload::Store) },
            engines: vec![Peer::Tidespool, Peer::Fjall, Peer::Sled],
        };
        let run = |engine, round, run| RunRecord::new(Turn { case: 0, engine, round }, &case, run);
        let failed = || Err(Failed::Said("no <space> left".to_owned()));
        let series = vec![Second { second: 0, p50_us: 1.0, p99_us: 2.0, p999_us: 3.0, ops: 9 }];
        let timed = Report { series: Some(series), ..report(300.0, 2.0) };
        let runs = vec![
            run(Peer::Tidespool, 0, Ok(timed)),
            run(Peer::Fjall, 0, Ok(report(100.0, 8.0))),
            run(Peer::Sled, 0, failed()),
            run(Peer::Tidespool, 1, Ok(report(500.0, 4.0))),
            run(Peer::Fjall, 1, failed()),
        ];
        Comparison::new(machine::describe(Path::new("/")), &[case], runs)
    }

    #[test]
    fn failed_and_successful_runs_are_both_kept() {
        let comparison = comparison();
        let case = &comparison.cases[0];
        let rounds: Vec<_> = case.engines.iter().map(|engine| (engine.engine, engine.rounds)).collect();
        assert_eq!(rounds, [(Peer::Tidespool, 2), (Peer::Fjall, 1)]);
        assert_eq!(case.ratios[0].best_peer, Some((Peer::Fjall, 4.0)));
        assert_eq!(case.over_time, [(Peer::Tidespool, vec![(0.0, 3.0)])]);
        let json = serde_json::to_value(&comparison).unwrap();
        assert_eq!(json["runs"][2]["error"], "no <space> left");
        assert_eq!(json["runs"][2]["engine"], "sled");
        assert_eq!(json["runs"].as_array().unwrap().len(), 5);
        assert!(json["settings"]["fjall"].as_str().unwrap().contains("KV separation"));
        assert_eq!(json["cases"][0]["engines"][0]["figures"]["ops_per_s"]["max"], 500.0);
    }
}
