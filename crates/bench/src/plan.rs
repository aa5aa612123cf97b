//! A plan: what the callers do, with which messages, and for how long.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::size;

/// The default capacity of the journal in bytes, the same as that of a spool.
pub const DEFAULT_JOURNAL_CAPACITY: u64 = 1 << 30;

/// The workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Store new messages. At most 8192 messages and 64 MiB (not synced: 16 MiB) stay live, at
    /// least one for each caller. The oldest are removed; removals are not counted.
    Store,
    /// Store, load and remove each message. An operation is a message, its latency the sum of the
    /// three calls. With --lifetime the message is removed when its lifetime ends.
    Lifecycle,
    /// Load at random from a set stored before: at most 8192 messages and 16 MiB, and an eighth of
    /// --memory-budget.
    Load,
    /// The same without a copy (load_shared). Only --engine tidespool.
    LoadShared,
    /// Load each message of a set once, in random order, after reopening with the smallest caches
    /// that the engine allows. Ends when all are loaded, or after the duration. --drop-page-cache
    /// also empties the page cache.
    LoadCold,
    /// The two spools of a mail server. A body of --size and an envelope of 1 KiB are stored, both
    /// are loaded, the envelope is stored again, both are removed. An operation is a message, its
    /// latency the sum of the seven calls.
    Mail,
    /// Each caller repeatedly saves the metadata (512 bytes to 2 KiB) of one message of its own.
    Resave,
    /// Store --backlog-bytes without removing (the measured part; --duration is ignored), then
    /// remove everything in the order of --drain.
    Backlog,
    /// Store --messages, wait until they are durable, and remove them oldest first, all before
    /// their checkpoint. An operation is a removal.
    DrainYoung,
    /// Store --messages, reopen, and enumerate them repeatedly. The latency is that of a whole
    /// enumeration.
    Enumerate,
    /// Store --messages, shut down and open again, --rounds times. An operation is an open.
    OpenClean,
    /// A child process stores --messages and is killed; then the spool is opened, --rounds times.
    /// An operation is an open.
    OpenKilled,
    /// The calls of a mail server: stores, 30 % of them synced, loads, re-saves of metadata, and
    /// removals after lifetimes with a heavy tail. An operation is a call.
    Mixed,
    /// Store up to --messages small messages, before their checkpoint. At 10 000, 100 000, 1 000
    /// 000 and at the end, measure the memory and the cost of a store, of a load from memory and of
    /// a removal.
    Scale,
    /// Check that resident memory keeps to --memory-budget [default: 256 MiB] with each of several
    /// mixes of messages. It may be at most 1.15 times the budget above the base, which is the
    /// process before it opens the spool; otherwise the command fails. Only --engine tidespool.
    Memory,
    /// Offer twice as many unsynced stores as the disk sustains (measured first), on a fixed
    /// schedule. At most --concurrency run at a time; further ones are turned away. Each message is
    /// removed long after it is durable. Latencies count from when a store was due.
    Overload,
}

/// The payload size of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "SizeText", into = "SizeText")]
pub enum Size {
    /// All messages have this size.
    Bytes(usize),
    /// Lognormal like mail: mean 50 KB, at most 1 MiB.
    Mix,
    /// Like the metadata of messages: uniform from 512 bytes to 2 KiB.
    Metadata,
}

impl Size {
    /// Returns the largest payload of this size, in bytes.
    #[must_use]
    pub fn largest(self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Mix => 1 << 20,
            Self::Metadata => 2_048,
        }
    }

    /// Returns the mean payload of this size, in bytes.
    #[must_use]
    pub fn mean(self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Mix => 50_000,
            Self::Metadata => 1_280,
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "mix" => Ok(Self::Mix),
            "metadata" => Ok(Self::Metadata),
            text => size::parse_payload(text).map(Self::Bytes),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Mix => f.write_str("mix"),
            Self::Metadata => f.write_str("metadata"),
        }
    }
}

/// The JSON form of [`Size`]: the number of bytes, or a word.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum SizeText {
    Bytes(usize),
    Word(String),
}

impl From<Size> for SizeText {
    fn from(size: Size) -> Self {
        match size {
            Size::Bytes(bytes) => Self::Bytes(bytes),
            word => Self::Word(word.to_string()),
        }
    }
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(text: SizeText) -> Result<Self, String> {
        match text {
            SizeText::Bytes(bytes) => Ok(Self::Bytes(bytes)),
            SizeText::Word(word) => word.parse(),
        }
    }
}

/// How long `lifecycle` keeps a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Lifetime {
    /// 10 milliseconds.
    #[value(name = "10ms")]
    #[serde(rename = "10ms")]
    TenMillis,
    /// 1 second.
    #[value(name = "1s")]
    #[serde(rename = "1s")]
    OneSecond,
    /// 90 % 10 ms, 9 % 1 s, 1 % until the end of the run.
    #[value(name = "heavy-tail")]
    #[serde(rename = "heavy-tail")]
    HeavyTail,
}

/// The order in which `backlog` removes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drain {
    /// Oldest first.
    #[default]
    Order,
    /// Random order.
    Random,
}

/// One run. [`Plan::new`] returns the defaults; fields that the workload does not use are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The workload that the callers run.
    pub workload: Workload,
    /// Payload bytes of a message. `resave` ignores it.
    pub size: Size,
    /// Number of concurrent callers; at least 1.
    pub concurrency: usize,
    /// Each store returns only when its message is on stable storage.
    pub force_sync: bool,
    /// A child process writes to the same disk while the workload runs.
    #[serde(default)]
    pub neighbour: bool,
    /// Duration of the run, the warm-up included.
    pub duration: Duration,
    /// The seed of message sizes and of random orders.
    pub seed: u64,
    /// The memory budget of the engine in bytes, for engines that have one.
    pub memory_budget: Option<u64>,
    /// The capacity of the journal in bytes, for engines that have one. `backlog` allows this on
    /// disk besides 1.5 × the live bytes.
    pub journal_capacity: u64,
    /// `lifecycle`: `None` removes each message immediately.
    pub lifetime: Option<Lifetime>,
    /// `lifecycle` with a lifetime and `mixed`: the upper bound of live payload bytes; callers
    /// wait.
    pub live_bytes: u64,
    /// `backlog`: payload bytes to store.
    pub backlog_bytes: u64,
    /// `backlog`: the order of the removals.
    pub drain: Drain,
    /// `backlog`: removals a second of all callers together; `None` is unlimited.
    pub drain_rate: Option<u32>,
    /// Number of messages of a workload that stores a set; `None` is the default of the workload.
    pub messages: Option<u64>,
    /// `open-clean` and `open-killed`: number of rounds.
    pub rounds: u32,
    /// `load-cold`, `enumerate` and `open-*`: first drop the files of the engine from the page
    /// cache.
    pub drop_page_cache: bool,
    /// `open-clean`: delete the index before each open, and load every message after it.
    pub lose_index: bool,
}

impl Plan {
    /// Returns the plan of `tidespool bench --workload …` without further arguments.
    #[must_use]
    pub fn new(workload: Workload) -> Self {
        Self {
            workload,
            size: workload.default_size(),
            concurrency: workload.default_concurrency(),
            force_sync: false,
            neighbour: false,
            duration: workload.default_duration(),
            seed: 1,
            memory_budget: None,
            journal_capacity: DEFAULT_JOURNAL_CAPACITY,
            lifetime: None,
            live_bytes: 256 << 20,
            backlog_bytes: 10 * DEFAULT_JOURNAL_CAPACITY,
            drain: Drain::Order,
            drain_rate: None,
            messages: None,
            rounds: if workload == Workload::OpenClean { 5 } else { 1 },
            drop_page_cache: false,
            lose_index: false,
        }
    }
}

impl Workload {
    /// Returns the default number of concurrent callers.
    #[must_use]
    pub fn default_concurrency(self) -> usize {
        if self == Self::Overload { 256 } else { 64 }
    }

    /// Returns the default duration.
    #[must_use]
    pub fn default_duration(self) -> Duration {
        Duration::from_secs(if self == Self::Overload { 30 } else { 5 })
    }

    /// Returns the default size: 16 KiB for most workloads.
    #[must_use]
    pub fn default_size(self) -> Size {
        match self {
            Self::Resave => Size::Metadata,
            Self::Mixed => Size::Mix,
            Self::Mail => Size::Bytes(50_000),
            Self::Scale => Size::Bytes(64),
            Self::DrainYoung | Self::Enumerate | Self::OpenClean | Self::OpenKilled => Size::Bytes(1_024),
            _ => Size::Bytes(16_384),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_or_a_word_in_json_too() {
        for (size, json) in
            [(Size::Bytes(4_096), "4096"), (Size::Mix, "\"mix\""), (Size::Metadata, "\"metadata\"")]
        {
            assert_eq!(serde_json::to_string(&size).unwrap(), json);
            assert_eq!(serde_json::from_str::<Size>(json).unwrap(), size);
            assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
        }
        assert!("mail".parse::<Size>().unwrap_err().contains("16384, 16KiB"));
    }

    #[test]
    fn a_plan_can_be_passed_to_a_child_process() {
        let plan =
            Plan { size: Size::Mix, lifetime: Some(Lifetime::TenMillis), ..Plan::new(Workload::OpenKilled) };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
}
