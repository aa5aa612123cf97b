//! A plan as text: the arguments of a child, and the titles of cases.

use bytesize::ByteSize;
use tidespool_bench::{Drain, Plan, Size, Workload, word};

use crate::engines::Peer;

/// Returns the arguments of `run` for this plan.
pub(crate) fn arguments(engine: Peer, plan: &Plan) -> Vec<String> {
    let mut arguments: Vec<String> = ["run", "--json", "--engine", engine.name()].map(str::to_owned).into();
    let mut add = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
    add("workload", word(&plan.workload));
    add("size", plan.size.to_string());
    add("concurrency", plan.concurrency.to_string());
    add("duration", plan.duration.as_secs_f64().to_string());
    add("seed", plan.seed.to_string());
    add("journal-capacity", plan.journal_capacity.to_string());
    add("live-bytes", plan.live_bytes.to_string());
    add("backlog-bytes", plan.backlog_bytes.to_string());
    add("drain", word(&plan.drain));
    add("rounds", plan.rounds.to_string());
    if let Some(lifetime) = plan.lifetime {
        add("lifetime", word(&lifetime));
    }
    if let Some(messages) = plan.messages {
        add("messages", messages.to_string());
    }
    if let Some(budget) = plan.memory_budget {
        add("memory-budget", budget.to_string());
    }
    for (name, given) in [
        ("force-sync", plan.force_sync),
        ("drop-page-cache", plan.drop_page_cache),
        ("neighbour", plan.neighbour),
    ] {
        if given {
            arguments.push(format!("--{name}"));
        }
    }
    arguments
}

/// Returns one line that distinguishes a case from the others.
pub(crate) fn title(plan: &Plan) -> String {
    let mut title = format!("{} {}", word(&plan.workload), size_text(plan.size));
    if let Some(lifetime) = plan.lifetime {
        title += &format!(", lifetime {}", word(&lifetime));
    }
    if plan.workload == Workload::Backlog {
        title += &format!(
            " to {}, drained in {}",
            ByteSize(plan.backlog_bytes),
            match plan.drain {
                Drain::Order => "order",
                Drain::Random => "random order",
            }
        );
    }
    if let Some(messages) = plan.messages {
        title += &format!(", {messages} messages");
    }
    let callers = if plan.concurrency == 1 { "caller" } else { "callers" };
    title += &format!(", {} {callers}", plan.concurrency);
    if plan.force_sync {
        title += ", synced";
    }
    if plan.neighbour {
        title += ", beside a neighbour";
    }
    title
}

fn size_text(size: Size) -> String {
    match size {
        Size::Bytes(bytes) => ByteSize(bytes as u64).to_string(),
        word => word.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{Args, Command, FromArgMatches};
    use tidespool_bench::PlanArgs;

    use super::*;
    use crate::compare::matrix::{Case, Choice, cases};

    fn full() -> Vec<Case> {
        cases(&Choice::default())
    }

    #[test]
    fn titles_distinguish_cases() {
        let cases = full();
        let titles: BTreeSet<String> = cases.iter().map(|case| title(&case.plan)).collect();
        assert_eq!(titles.len(), cases.len());
    }

    #[test]
    fn a_child_gets_the_same_plan() {
        let parser = PlanArgs::augment_args(Command::new("run"));
        for case in full() {
            let arguments = arguments(Peer::Fjall, &case.plan);
            assert_eq!(arguments[..4], ["run", "--json", "--engine", "fjall"]);
            let matches = parser
                .clone()
                .try_get_matches_from(["run"].into_iter().chain(arguments[4..].iter().map(String::as_str)));
            let plan = PlanArgs::from_arg_matches(&matches.unwrap()).unwrap().plan();
            assert_eq!(plan, case.plan);
        }
    }
}
