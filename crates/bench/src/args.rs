//! A plan on the command line.

use std::time::Duration;

use crate::plan::{DEFAULT_JOURNAL_CAPACITY, Drain, Lifetime, Plan, Size, Workload};
use crate::size;

/// The longest run: a day.
const MAX_DURATION_SECS: f64 = 86_400.0;

/// The arguments of a [`Plan`], for flattening into a command line.
#[derive(Debug, Clone, clap::Args)]
pub struct PlanArgs {
    /// The workload that the callers run.
    #[arg(long, value_enum, default_value_t = Workload::Store)]
    workload: Workload,
    /// Payload bytes of a message, 1 to 1GiB: 16384, or 16KiB. `mix` is lognormal like mail: mean
    /// 50 KB, at most 1 MiB. `metadata` is 512 bytes to 2 KiB [default: 16KiB; mail: 50000; mixed:
    /// mix; drain-young, enumerate and open-*: 1KiB; scale: 64; resave: always metadata].
    #[arg(long, value_name = "BYTES")]
    size: Option<Size>,
    /// Number of concurrent callers, 1 to 65536 [default: 64; overload: 256].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    concurrency: Option<u32>,
    /// Duration of the run, the warm-up included. May be a fraction. Workloads with a fixed amount
    /// of work ignore it [default: 5; overload: 30].
    #[arg(long, visible_alias = "seconds", value_name = "SECS", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Each store returns only when its message is on stable storage. With `store` and one caller,
    /// the report also has the time of one bare fdatasync on this disk.
    #[arg(long)]
    force_sync: bool,
    /// While the workload runs, another process writes to the same disk as fast as it can: it
    /// rewrites a file of 1 GiB without syncing it. The report has how much it wrote. Not for
    /// memory.
    #[arg(long)]
    neighbour: bool,
    /// The seed of message sizes and of random orders.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The memory budget of the spool, only for --engine tidespool [default: that of the spool].
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    memory_budget: Option<u64>,
    /// The capacity of the journal, for engines that have one [default: 1GiB].
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    journal_capacity: Option<u64>,
    /// lifecycle: how long each message is kept [default: removed immediately].
    #[arg(long, value_enum)]
    lifetime: Option<Lifetime>,
    /// lifecycle with a lifetime, and mixed: the upper bound of live payload bytes; callers wait.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size::parse)]
    live_bytes: u64,
    /// backlog: payload bytes to store [default: 10 times the journal's capacity].
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    backlog_bytes: Option<u64>,
    /// backlog: the order of the removals.
    #[arg(long, value_enum, default_value_t = Drain::Order)]
    drain: Drain,
    /// backlog: removals a second of all callers together [default: unlimited].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    drain_rate: Option<u32>,
    /// Number of messages of workloads that store a set [default: load-cold 256 MiB of them, at
    /// most 200000; drain-young 200000; enumerate and open-clean 100000; open-killed enough to fill
    /// 70 % of the journal; scale 10000000; memory 1000000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    messages: Option<u64>,
    /// open-clean and open-killed: number of rounds [default: open-clean 5, open-killed 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: Option<u32>,
    /// load-cold, enumerate and open-*: first drop the files of the engine from the page cache.
    #[arg(long)]
    drop_page_cache: bool,
    /// open-clean with Tidespool: delete the index before each open, and load every message after
    /// it.
    #[arg(long)]
    lose_index: bool,
}

impl PlanArgs {
    /// Returns the plan that the arguments describe.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let defaults = Plan::new(self.workload);
        let journal_capacity = self.journal_capacity.unwrap_or(DEFAULT_JOURNAL_CAPACITY);
        Plan {
            workload: self.workload,
            size: self.size.unwrap_or(defaults.size),
            concurrency: self
                .concurrency
                .map_or(defaults.concurrency, |callers| usize::try_from(callers).unwrap_or(usize::MAX)),
            force_sync: self.force_sync,
            neighbour: self.neighbour,
            duration: self.duration.unwrap_or(defaults.duration),
            seed: self.seed,
            memory_budget: self.memory_budget,
            journal_capacity,
            lifetime: self.lifetime,
            live_bytes: self.live_bytes,
            backlog_bytes: self.backlog_bytes.unwrap_or(journal_capacity.saturating_mul(10)),
            drain: self.drain,
            drain_rate: self.drain_rate,
            messages: self.messages,
            rounds: self.rounds.unwrap_or(defaults.rounds),
            drop_page_cache: self.drop_page_cache,
            lose_index: self.lose_index,
        }
    }
}

/// Parses seconds on a command line, for `clap`.
///
/// # Errors
///
/// The text of what is expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(secs) if secs > 0.0 && secs <= MAX_DURATION_SECS => Ok(Duration::from_secs_f64(secs)),
        _ => Err(format!("expected seconds, more than 0 and at most {MAX_DURATION_SECS}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds() {
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("0.2"), Ok(Duration::from_millis(200)));
        for text in ["", "0", "-1", "5s", "NaN", "inf", "1e9"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }
}
