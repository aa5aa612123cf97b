//! Summarises the rounds of a comparison.

use std::collections::BTreeMap;

use serde::Serialize;
use tidespool_bench::{Report, Workload};

use crate::engines::Peer;

/// The median of some figures, and their spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Returns `None` without figures. The median of an even number is the mean of the two in the
    /// middle.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let (min, max) = (*figures.first()?, *figures.last()?);
        let upper = figures.get(figures.len() / 2)?;
        let lower = figures.get((figures.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(*lower, *upper), min, max })
    }
}

/// A figure by which engines are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metric {
    /// A field of the report, or a name in its `extra`.
    pub(crate) key: &'static str,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
}

const fn more(key: &'static str) -> Metric {
    Metric { key, more_is_better: true }
}

const fn less(key: &'static str) -> Metric {
    Metric { key, more_is_better: false }
}

/// Returns the metrics of a workload, the main one first.
pub(crate) fn metrics(workload: Workload) -> &'static [Metric] {
    const CALLS: &[Metric] =
        &[more("ops_per_s"), less("p50_us"), less("p99_us"), less("p999_us"), less("written_per_op")];
    const LOADS: &[Metric] = &[more("ops_per_s"), less("p50_us"), less("p99_us"), less("p999_us")];
    const BACKLOG: &[Metric] = &[
        more("mb_per_s"),
        less("p50_us"),
        less("p99_us"),
        more("drain_per_s"),
        less("written_per_byte"),
        less("disk_peak_over_live"),
    ];
    const OPENINGS: &[Metric] = &[less("p50_us"), less("peak_rss_bytes")];
    const ENUMERATIONS: &[Metric] = &[more("ops_per_s"), less("peak_rss_bytes")];
    match workload {
        Workload::Load | Workload::LoadShared | Workload::LoadCold => LOADS,
        Workload::Backlog => BACKLOG,
        Workload::OpenClean | Workload::OpenKilled => OPENINGS,
        Workload::Enumerate => ENUMERATIONS,
        _ => CALLS,
    }
}

/// Returns a figure of a report by its key.
pub(crate) fn figure(report: &Report, key: &str) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "bytes and counts are far below 2^53")]
    let float = |value: u64| value as f64;
    Some(match key {
        "ops_per_s" => report.ops_per_s,
        "mb_per_s" => report.mb_per_s,
        "p50_us" => report.p50_us,
        "p99_us" => report.p99_us,
        "p999_us" => report.p999_us,
        "max_us" => report.max_us,
        "peak_rss_bytes" => float(report.peak_rss_bytes),
        "written_per_op" if report.ops > 0 => float(report.disk_write_bytes) / float(report.ops),
        "written_per_op" => return None,
        key => return report.extra.get(key).copied(),
    })
}

/// The figures that every report has, besides those in `extra`.
const FIELDS: [&str; 8] =
    ["ops_per_s", "mb_per_s", "p50_us", "p99_us", "p999_us", "max_us", "written_per_op", "peak_rss_bytes"];

/// The figures of one engine in one case, over all successful rounds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct EngineSummary {
    pub(crate) engine: Peer,
    /// Rounds with a report.
    pub(crate) rounds: usize,
    pub(crate) figures: BTreeMap<String, Spread>,
    /// `[quantile, µs]`, each the median over the rounds.
    pub(crate) curve: Vec<(f64, f64)>,
}

/// Summarises the reports of one engine in one case; `None` without reports.
pub(crate) fn summarise(engine: Peer, reports: &[&Report]) -> Option<EngineSummary> {
    let first = reports.first()?;
    let keys = FIELDS.iter().copied().chain(first.extra.keys().map(String::as_str));
    let figures = keys.filter_map(|key| {
        let spread = Spread::of(reports.iter().filter_map(|report| figure(report, key)))?;
        Some((key.to_owned(), spread))
    });
    let curve = first.percentiles.iter().enumerate().filter_map(|(n, (quantile, _))| {
        let latencies = reports.iter().filter_map(|report| report.percentiles.get(n)).map(|(_, us)| *us);
        Some((*quantile, Spread::of(latencies)?.median))
    });
    Some(EngineSummary { engine, rounds: reports.len(), figures: figures.collect(), curve: curve.collect() })
}

/// How the tiered spool compares with others. A ratio above 1 means that it is better, whether more
/// or less is better.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Ratio {
    pub(crate) metric: &'static str,
    /// Compared with the best peer, and its name.
    pub(crate) best_peer: Option<(Peer, f64)>,
    pub(crate) rocksdb: Option<f64>,
    /// Compared with the raw journal, the limit of the machine, which is 1.
    pub(crate) raw_journal: Option<f64>,
    /// Compared with the limit of the machine for one caller.
    pub(crate) bare: Option<f64>,
}

/// Returns the ratios of a case, one for each metric that the tiered spool has.
pub(crate) fn ratios(workload: Workload, engines: &[EngineSummary]) -> Vec<Ratio> {
    let median = |peer: Peer, key: &str| {
        let engine = engines.iter().find(|engine| engine.engine == peer)?;
        engine.figures.get(key).map(|spread| spread.median)
    };
    let mut ratios = Vec::new();
    for &Metric { key, more_is_better } in metrics(workload) {
        let Some(ours) = median(Peer::Tidespool, key) else { continue };
        let against = |peer: Peer| advantage(ours, median(peer, key)?, more_is_better);
        let peers = engines.iter().map(|engine| engine.engine);
        let peers = peers.filter(|peer| !matches!(peer, Peer::Tidespool | Peer::RawJournal | Peer::Bare));
        let best_peer = peers
            .filter_map(|peer| Some((peer, against(peer)?)))
            .min_by(|(_, one), (_, other)| one.total_cmp(other));
        ratios.push(Ratio {
            metric: key,
            best_peer,
            rocksdb: against(Peer::RocksDb),
            raw_journal: against(Peer::RawJournal),
            bare: against(Peer::Bare),
        });
    }
    ratios
}

/// Returns `None` if one of the figures is zero, so that there is no ratio.
fn advantage(ours: f64, theirs: f64, more_is_better: bool) -> Option<f64> {
    let (above, below) = if more_is_better { (ours, theirs) } else { (theirs, ours) };
    (below > 0.0 && above > 0.0).then(|| above / below)
}

#[cfg(test)]
pub(super) mod tests {
    use tidespool_bench::Size;

    use super::*;

    pub(crate) fn report(ops_per_s: f64, p50_us: f64) -> Report {
        Report {
            engine: "any".to_owned(),
            workload: Workload::Store,
            size: Size::Bytes(1_024),
            concurrency: 64,
            force_sync: true,
            neighbour: false,
            seconds: 1.0,
            ops: 100,
            ops_per_s,
            mb_per_s: 1.0,
            p50_us,
            p99_us: 2.0 * p50_us,
            p999_us: 3.0 * p50_us,
            max_us: 4.0 * p50_us,
            disk_write_bytes: 400,
            peak_rss_bytes: 1 << 20,
            percentiles: vec![
                (0.0, p50_us / 2.0),
                (0.5, p50_us),
                (0.99, 2.0 * p50_us),
                (0.999, 3.0 * p50_us),
            ],
            series: None,
            extra: BTreeMap::from([("syncs".to_owned(), ops_per_s)]),
            moments: Vec::new(),
        }
    }

    fn summary(engine: Peer, ops_per_s: f64, p50_us: f64) -> EngineSummary {
        summarise(engine, &[&report(ops_per_s, p50_us)]).unwrap()
    }

    #[test]
    fn medians_and_spread() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn a_summary_is_the_middle_of_its_rounds() {
        let (one, two, three) = (report(100.0, 5.0), report(300.0, 1.0), report(200.0, 9.0));
        let summary = summarise(Peer::Fjall, &[&one, &two, &three]).unwrap();
        assert_eq!(summary.rounds, 3);
        assert_eq!(summary.figures["ops_per_s"], Spread { median: 200.0, min: 100.0, max: 300.0 });
        assert_eq!(summary.figures["syncs"].median, 200.0);
        assert_eq!(summary.figures["written_per_op"].median, 4.0);
        assert_eq!(summary.curve, [(0.0, 2.5), (0.5, 5.0), (0.99, 10.0), (0.999, 15.0)]);
        assert!(summarise(Peer::Fjall, &[]).is_none());
    }

    #[test]
    fn a_ratio_above_one_is_better_in_both_directions() {
        let engines = [
            summary(Peer::Tidespool, 800.0, 2.0),
            summary(Peer::RocksDb, 100.0, 8.0),
            summary(Peer::Fjall, 400.0, 1.0),
            summary(Peer::RawJournal, 1_000.0, 1.6),
            summary(Peer::Bare, 1_600.0, 1.0),
        ];
        let ratios = ratios(Workload::Store, &engines);
        assert_eq!(ratios[0].metric, "ops_per_s");
        assert_eq!(ratios[0].best_peer, Some((Peer::Fjall, 2.0)));
        assert_eq!(ratios[0].rocksdb, Some(8.0));
        assert_eq!((ratios[0].raw_journal, ratios[0].bare), (Some(0.8), Some(0.5)));
        assert_eq!(ratios[1].metric, "p50_us");
        assert_eq!(ratios[1].best_peer, Some((Peer::Fjall, 0.5)));
        assert_eq!(ratios[1].rocksdb, Some(4.0));
        assert_eq!(ratios[1].raw_journal, Some(0.8));
    }

    #[test]
    fn without_a_comparison_there_is_no_ratio() {
        assert_eq!(ratios(Workload::Store, &[summary(Peer::Fjall, 1.0, 1.0)]), []);
        let alone = ratios(Workload::Store, &[summary(Peer::Tidespool, 1.0, 1.0)]);
        assert!(alone.iter().all(|ratio| ratio.best_peer.is_none() && ratio.rocksdb.is_none()));
        assert_eq!(advantage(1.0, 0.0, true), None);
        assert_eq!(advantage(0.0, 1.0, false), None);
    }
}
