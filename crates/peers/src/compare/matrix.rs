//! The runs of a comparison, and their order.

use std::time::Duration;

use tidespool_bench::{Drain, Lifetime, Plan, Size, Workload};

use crate::engines::Peer;

const SIZES: &[Size] = &[
    Size::Bytes(512),
    Size::Bytes(4 << 10),
    Size::Bytes(16 << 10),
    Size::Bytes(64 << 10),
    Size::Bytes(256 << 10),
    Size::Mix,
];
const CALLERS: &[usize] = &[1, 16, 64, 256, 1_024];

/// The engines that keep messages.
const KEEPERS: &[Peer] = &[
    Peer::Tidespool,
    Peer::RocksDb,
    Peer::RocksDbTuned,
    Peer::Fjall,
    Peer::Sled,
    Peer::Redb,
    Peer::LocalDisk,
];
const DURABLE: &[Peer] = &[
    Peer::Tidespool,
    Peer::RocksDb,
    Peer::RocksDbTuned,
    Peer::Fjall,
    Peer::Sled,
    Peer::Redb,
    Peer::LocalDisk,
    Peer::RawJournal,
    Peer::Bare,
];
const IN_MEMORY: &[Peer] = &[
    Peer::Tidespool,
    Peer::TidespoolMemory,
    Peer::RocksDb,
    Peer::RocksDbTuned,
    Peer::Fjall,
    Peer::Sled,
    Peer::Redb,
    Peer::LocalDisk,
    Peer::Foyer,
];
/// The engines for millions of messages. The others would take too long.
const LOGS: &[Peer] = &[Peer::Tidespool, Peer::RocksDb, Peer::RocksDbTuned, Peer::Fjall];

/// One workload with all its variations; each combination is a [`Case`].
#[derive(Debug, Clone, Copy)]
struct Template {
    workload: Workload,
    sizes: &'static [Size],
    callers: &'static [usize],
    force_sync: bool,
    /// Another process writes to the same disk.
    neighbour: bool,
    lifetimes: &'static [Option<Lifetime>],
    drains: &'static [Drain],
    /// 0 is the default of the workload.
    messages: u64,
    journal_capacity: u64,
    backlog_bytes: u64,
    /// Number of opens in a run, for workloads that open.
    openings: u32,
    drop_page_cache: bool,
    /// 0 is the default of the comparison.
    seconds: u64,
    engines: &'static [Peer],
}

const fn template(workload: Workload, engines: &'static [Peer]) -> Template {
    Template {
        workload,
        sizes: &[Size::Bytes(16 << 10)],
        callers: &[64],
        force_sync: false,
        neighbour: false,
        lifetimes: &[None],
        drains: &[Drain::Order],
        messages: 0,
        journal_capacity: 1 << 30,
        backlog_bytes: 10 << 30,
        openings: 1,
        drop_page_cache: false,
        seconds: 0,
        engines,
    }
}

const LIFETIMES: &[Option<Lifetime>] =
    &[None, Some(Lifetime::TenMillis), Some(Lifetime::OneSecond), Some(Lifetime::HeavyTail)];
const KIB: &[Size] = &[Size::Bytes(1 << 10)];
const KB50: &[Size] = &[Size::Bytes(50_000)];
const METADATA: &[Size] = &[Size::Metadata];

/// Every workload, for a run of many hours.
const FULL: &[Template] = &[
    Template { sizes: SIZES, callers: CALLERS, force_sync: true, ..template(Workload::Store, DURABLE) },
    Template { sizes: SIZES, callers: CALLERS, ..template(Workload::Store, IN_MEMORY) },
    Template { callers: &[1, 64], force_sync: true, neighbour: true, ..template(Workload::Store, DURABLE) },
    Template { sizes: SIZES, callers: &[1, 64], ..template(Workload::Load, IN_MEMORY) },
    Template { sizes: SIZES, callers: &[1, 64], ..template(Workload::LoadShared, &[Peer::Tidespool]) },
    Template {
        sizes: SIZES,
        callers: &[1, 64],
        drop_page_cache: true,
        ..template(Workload::LoadCold, KEEPERS)
    },
    Template {
        sizes: &[Size::Bytes(512), Size::Bytes(16 << 10), Size::Mix],
        lifetimes: LIFETIMES,
        callers: &[64, 1_024],
        ..template(Workload::Lifecycle, KEEPERS)
    },
    Template { sizes: KB50, ..template(Workload::Mail, KEEPERS) },
    Template { sizes: KB50, force_sync: true, ..template(Workload::Mail, KEEPERS) },
    Template { sizes: METADATA, callers: &[1, 64], ..template(Workload::Resave, KEEPERS) },
    Template { sizes: METADATA, callers: &[1, 64], force_sync: true, ..template(Workload::Resave, KEEPERS) },
    Template {
        sizes: &[Size::Bytes(16 << 10), Size::Bytes(64 << 10), Size::Mix],
        force_sync: true,
        journal_capacity: 256 << 20,
        backlog_bytes: 2_560 << 20,
        drains: &[Drain::Order, Drain::Random],
        ..template(Workload::Backlog, KEEPERS)
    },
    Template {
        sizes: &[Size::Bytes(512), Size::Bytes(4 << 10)],
        force_sync: true,
        journal_capacity: 256 << 20,
        backlog_bytes: 2_560 << 20,
        ..template(Workload::Backlog, LOGS)
    },
    Template { sizes: KIB, ..template(Workload::DrainYoung, KEEPERS) },
    Template { sizes: KIB, messages: 1_000_000, ..template(Workload::Enumerate, KEEPERS) },
    Template { sizes: KB50, messages: 100_000, ..template(Workload::Enumerate, KEEPERS) },
    Template { sizes: KIB, messages: 1_000_000, ..template(Workload::OpenClean, KEEPERS) },
    Template { sizes: KB50, messages: 100_000, ..template(Workload::OpenClean, KEEPERS) },
    Template { sizes: KIB, ..template(Workload::OpenKilled, KEEPERS) },
    Template { sizes: KB50, ..template(Workload::OpenKilled, KEEPERS) },
    Template { sizes: &[Size::Mix], seconds: 30, ..template(Workload::Mixed, KEEPERS) },
    Template {
        sizes: &[Size::Bytes(64)],
        messages: 10_000_000,
        ..template(Workload::Scale, &[Peer::Tidespool, Peer::RocksDb])
    },
];

/// One case of each workload, for three minutes.
const QUICK: &[Template] = &[
    Template { force_sync: true, ..template(Workload::Store, DURABLE) },
    Template {
        force_sync: true,
        callers: &[1],
        ..template(
            Workload::Store,
            &[Peer::Tidespool, Peer::RocksDb, Peer::Fjall, Peer::RawJournal, Peer::Bare],
        )
    },
    template(
        Workload::Store,
        &[
            Peer::Tidespool,
            Peer::TidespoolMemory,
            Peer::RocksDb,
            Peer::RocksDbTuned,
            Peer::Fjall,
            Peer::LocalDisk,
            Peer::Foyer,
        ],
    ),
    template(Workload::Load, &[Peer::Tidespool, Peer::RocksDb, Peer::RocksDbTuned, Peer::Fjall, Peer::Foyer]),
    template(Workload::LoadShared, &[Peer::Tidespool]),
    Template { drop_page_cache: true, ..template(Workload::LoadCold, LOGS) },
    Template {
        lifetimes: &[Some(Lifetime::TenMillis)],
        sizes: &[Size::Bytes(512)],
        ..template(Workload::Lifecycle, LOGS)
    },
    Template { sizes: METADATA, force_sync: true, ..template(Workload::Resave, LOGS) },
    Template {
        force_sync: true,
        journal_capacity: 128 << 20,
        backlog_bytes: 384 << 20,
        ..template(Workload::Backlog, LOGS)
    },
    Template { sizes: KIB, messages: 50_000, ..template(Workload::DrainYoung, LOGS) },
    Template { sizes: KIB, messages: 50_000, ..template(Workload::Enumerate, LOGS) },
    Template { sizes: KIB, messages: 50_000, ..template(Workload::OpenClean, LOGS) },
    Template { sizes: KIB, messages: 50_000, ..template(Workload::OpenKilled, LOGS) },
    Template { sizes: &[Size::Mix], seconds: 2, ..template(Workload::Mixed, LOGS) },
];

/// The choices on the command line. Empty lists and `None` mean those of the matrix.
#[derive(Debug, Clone, Default)]
pub(crate) struct Choice {
    pub(crate) quick: bool,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) engines: Vec<Peer>,
    pub(crate) sizes: Vec<Size>,
    pub(crate) callers: Vec<usize>,
    pub(crate) force_sync: Option<bool>,
    pub(crate) neighbour: Option<bool>,
    pub(crate) duration: Option<Duration>,
}

/// One workload with all settings, on which engines are compared.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Case {
    pub(crate) plan: Plan,
    pub(crate) engines: Vec<Peer>,
}

/// One run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    /// The index of the case.
    pub(crate) case: usize,
    pub(crate) engine: Peer,
    pub(crate) round: u32,
}

/// Returns the cases of a choice, which may be none.
pub(crate) fn cases(choice: &Choice) -> Vec<Case> {
    let matrix = if choice.quick { QUICK } else { FULL };
    let mut cases = Vec::new();
    for template in matrix {
        if choice.takes(template) {
            cases.extend(choice.cases_of(template));
        }
    }
    // Chosen sizes can make two templates equal.
    let mut unique: Vec<Case> = Vec::new();
    for case in cases {
        match unique.iter_mut().find(|known| known.plan == case.plan) {
            Some(known) => {
                let new: Vec<Peer> =
                    case.engines.into_iter().filter(|engine| !known.engines.contains(engine)).collect();
                known.engines.extend(new);
            }
            None => unique.push(case),
        }
    }
    unique
}

impl Choice {
    fn takes(&self, template: &Template) -> bool {
        (self.workloads.is_empty() || self.workloads.contains(&template.workload))
            && self.force_sync.is_none_or(|force_sync| force_sync == template.force_sync)
            && self.neighbour.is_none_or(|neighbour| neighbour == template.neighbour)
    }

    fn cases_of(&self, template: &Template) -> Vec<Case> {
        let wanted =
            |peer: &Peer| peer.is_compiled_in() && (self.engines.is_empty() || self.engines.contains(peer));
        let engines: Vec<Peer> = template.engines.iter().copied().filter(wanted).collect();
        let fixed_size = template.workload == Workload::Resave;
        let sizes = if self.sizes.is_empty() || fixed_size { template.sizes } else { &self.sizes };
        let callers = if self.callers.is_empty() { template.callers } else { &self.callers };
        let mut cases = Vec::new();
        for &lifetime in template.lifetimes {
            for &drain in template.drains {
                for &size in sizes {
                    for &concurrency in callers {
                        let plan = Plan { lifetime, drain, size, concurrency, ..self.plan(template) };
                        // It is the limit of one caller only.
                        let fits = |engine: &Peer| *engine != Peer::Bare || concurrency == 1;
                        cases.push(Case { plan, engines: engines.iter().copied().filter(fits).collect() });
                    }
                }
            }
        }
        cases.retain(|case| !case.engines.is_empty());
        cases
    }

    fn plan(&self, template: &Template) -> Plan {
        let usual = if self.quick { Duration::from_secs(1) } else { Duration::from_secs(5) };
        let own = (template.seconds > 0).then(|| Duration::from_secs(template.seconds));
        Plan {
            force_sync: template.force_sync,
            neighbour: template.neighbour,
            duration: self.duration.or(own).unwrap_or(usual),
            journal_capacity: template.journal_capacity,
            backlog_bytes: template.backlog_bytes,
            messages: (template.messages > 0).then_some(template.messages),
            rounds: template.openings,
            drop_page_cache: template.drop_page_cache,
            ..Plan::new(template.workload)
        }
    }
}

/// Returns all runs, interleaved: A B C A B C …. So changes of the machine over time affect all
/// engines alike.
pub(crate) fn turns(cases: &[Case], rounds: u32) -> Vec<Turn> {
    let mut turns = Vec::new();
    for (case, Case { engines, .. }) in cases.iter().enumerate() {
        for round in 0..rounds {
            turns.extend(engines.iter().map(|&engine| Turn { case, engine, round }));
        }
    }
    turns
}

/// Estimates the time of a run, from the rates of slow engines on two cores and a disk with 100
/// MB/s.
pub(crate) fn estimate(plan: &Plan) -> Duration {
    const BYTES_PER_S: u64 = 80_000_000;
    const MESSAGES_PER_S: u64 = 25_000;
    let messages = plan.messages.unwrap_or(100_000);
    let stored = |messages: u64| {
        let bytes = messages.saturating_mul(plan.size.mean() as u64);
        Duration::from_secs(2 + (bytes / BYTES_PER_S).max(messages / MESSAGES_PER_S))
    };
    match plan.workload {
        Workload::Backlog => {
            let messages = plan.backlog_bytes / plan.size.mean().max(1) as u64;
            stored(messages) + Duration::from_secs(2 + messages / MESSAGES_PER_S)
        }
        Workload::LoadCold => {
            let set = (256 << 20) / plan.size.mean().max(1) as u64;
            plan.duration + stored(plan.messages.unwrap_or(set.min(200_000)))
        }
        Workload::Enumerate => plan.duration + stored(messages),
        Workload::DrainYoung | Workload::OpenClean | Workload::OpenKilled | Workload::Scale => {
            stored(messages)
        }
        _ => plan.duration + Duration::from_secs(1),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::ValueEnum;
    use tidespool_bench::word;

    use super::*;
    use crate::compare::wording::title;

    fn full() -> Vec<Case> {
        cases(&Choice::default())
    }

    #[test]
    fn rounds_are_interleaved() {
        let case = Case {
            plan: Plan::new(Workload::Store),
            engines: vec![Peer::Tidespool, Peer::Fjall, Peer::Sled],
        };
        let order: Vec<(usize, &str, u32)> = turns(&[case.clone(), case], 2)
            .iter()
            .map(|turn| (turn.case, turn.engine.name(), turn.round))
            .collect();
        assert_eq!(
            order[..6],
            [
                (0, "tidespool", 0),
                (0, "fjall", 0),
                (0, "sled", 0),
                (0, "tidespool", 1),
                (0, "fjall", 1),
                (0, "sled", 1)
            ]
        );
        assert!(order[6..].iter().all(|(case, ..)| *case == 1));
    }

    #[test]
    fn every_workload_of_several_engines_is_in_the_matrix_and_most_are_quick() {
        let of = |quick| -> BTreeSet<String> {
            cases(&Choice { quick, ..Choice::default() })
                .iter()
                .map(|case| word(&case.plan.workload))
                .collect()
        };
        let all: BTreeSet<String> = Workload::value_variants().iter().map(word).collect();
        assert_eq!(all.difference(&of(false)).collect::<Vec<_>>(), ["memory", "overload"]);
        assert_eq!(all.difference(&of(true)).collect::<Vec<_>>(), ["mail", "memory", "overload", "scale"]);
    }

    #[test]
    fn no_engine_runs_a_workload_that_it_does_not_claim() {
        for case in full().into_iter().chain(cases(&Choice { quick: true, ..Choice::default() })) {
            for engine in &case.engines {
                let claims = engine.claims();
                assert!(claims.syncs || !case.plan.force_sync, "{}", title(&case.plan));
                let in_memory = matches!(case.plan.workload, Workload::Store | Workload::Load);
                assert!(claims.persists || in_memory, "{}", title(&case.plan));
                let durable_store = case.plan.workload == Workload::Store && case.plan.force_sync;
                let only_stores = matches!(engine, Peer::RawJournal | Peer::Bare);
                assert!(!only_stores || durable_store, "{}", title(&case.plan));
                assert!(*engine != Peer::Bare || case.plan.concurrency == 1, "{}", title(&case.plan));
            }
        }
    }

    #[test]
    fn a_quick_comparison_ends_within_minutes() {
        let cases = cases(&Choice { quick: true, ..Choice::default() });
        let secs: u64 = turns(&cases, 1).iter().map(|turn| estimate(&cases[turn.case].plan).as_secs()).sum();
        assert!(secs < 240, "{secs}");
    }

    #[test]
    fn arguments_replace_the_values_of_the_matrix() {
        let choice = Choice {
            workloads: vec![Workload::Store],
            engines: vec![Peer::Tidespool, Peer::RawJournal],
            sizes: vec![Size::Bytes(1_000)],
            callers: vec![7],
            duration: Some(Duration::from_millis(300)),
            ..Choice::default()
        };
        let cases = cases(&choice);
        assert_eq!(cases.len(), 3, "synced, not synced, synced beside a neighbour");
        for case in &cases {
            assert_eq!((case.plan.size, case.plan.concurrency), (Size::Bytes(1_000), 7));
            assert_eq!(case.plan.duration, Duration::from_millis(300));
        }
        assert_eq!(cases[0].engines, [Peer::Tidespool, Peer::RawJournal]);
        assert_eq!(cases[1].engines, [Peer::Tidespool]);
        assert!(!cases[1].plan.neighbour && cases[2].plan.neighbour);
        let alone = Choice { neighbour: Some(false), ..choice };
        assert_eq!(super::cases(&alone), cases[..2]);
        let none =
            Choice { engines: vec![Peer::Foyer], workloads: vec![Workload::Backlog], ..Choice::default() };
        assert_eq!(super::cases(&none), []);
    }
}
