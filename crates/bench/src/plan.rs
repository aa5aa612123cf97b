//! One run: what the callers do, with which messages, for how long.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::size;

/// What a journal may hold where nothing else is said: the default of a spool's `journal_capacity`, in bytes.
pub const DEFAULT_JOURNAL_CAPACITY: u64 = 1 << 30;

/// The workloads by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Stores new messages; at most 8192 messages and 64 MiB (not synced: 16 MiB) stay live, one for each caller at least, the oldest are removed, uncounted.
    Store,
    /// Stores, loads and removes each message; an operation is a message, its latency the three calls together.
    /// With --lifetime, it is removed when that is over.
    Lifecycle,
    /// Loads at random from a set stored before: at most 8192 messages and 16 MiB, and an eighth of --memory-budget.
    Load,
    /// The same without a copy: load_shared. Only --engine tidespool.
    LoadShared,
    /// Loads each message of a set once, in random order, after a reopening with caches as small as the engine allows.
    /// Ends when all are loaded, or with the duration. --drop-page-cache: the system's cache is emptied as well.
    LoadCold,
    /// The two spools of a mail server: a body of --size and an envelope of 1 KiB are stored, both are loaded, the
    /// envelope is stored again, both are removed; an operation is a message, its latency the seven calls together.
    Mail,
    /// Each caller saves the metadata (512 bytes to 2 KiB) of one message of its own again and again.
    Resave,
    /// Stores without removing until --backlog-bytes are there (the measured part; --duration does not count), then
    /// removes everything, in the order --drain says.
    Backlog,
    /// Stores --messages, waits until they are durable, and removes them oldest first while all are younger than
    /// their checkpoint; an operation is a removal.
    DrainYoung,
    /// Stores --messages, reopens, and enumerates them, again and again; the latency is that of a whole enumeration.
    Enumerate,
    /// Stores --messages, shuts down, and opens again, --rounds times; an operation is an opening.
    OpenClean,
    /// A child process stores --messages and is killed; an operation is the opening after that, --rounds times.
    OpenKilled,
    /// What a mail server does: stores, 30 % of them synced, loads, re-saves of metadata, removals after lifetimes
    /// with a heavy tail; an operation is a call.
    Mixed,
    /// Stores up to --messages small ones younger than their checkpoint. On the way, at 10 000, 100 000, 1 000 000
    /// and at the end: the cost of a store, of a load from memory and of a removal, and the memory.
    Scale,
    /// Whether resident memory keeps to --memory-budget [default: 256 MiB] with each of several mixes of messages: at most 1.15 times of it above the
    /// base, which is the process before it opens the spool; else the command fails. Only --engine tidespool.
    Memory,
    /// Twice as many stores, not synced, as the disk takes (measured first), whether those before are done or not; at
    /// most --concurrency at a time, what comes while so many wait is turned away. Each message is removed long after
    /// it is durable. Latencies count from when a store was due.
    Overload,
}

/// The payload bytes of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "SizeText", into = "SizeText")]
pub enum Size {
    /// All alike.
    Bytes(usize),
    /// Like mail: lognormal, 50 KB in the mean, at most 1 MiB.
    Mix,
    /// Like the metadata of messages: 512 bytes to 2 KiB, each as likely.
    Metadata,
}

impl Size {
    /// The most bytes that a message of this size has.
    #[must_use]
    pub fn largest(self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Mix => 1 << 20,
            Self::Metadata => 2_048,
        }
    }

    /// The bytes of a message in the mean.
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

/// In JSON: the number of bytes, or a word.
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

/// How long a message of `lifecycle` is there.
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
    /// In random order.
    Random,
}

/// One run. [`Plan::new`] has the defaults; the fields of other workloads are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What the callers do.
    pub workload: Workload,
    /// Payload bytes of a message. `resave` ignores it.
    pub size: Size,
    /// Callers at a time; at least 1.
    pub concurrency: usize,
    /// Each store returns only when its message is on stable storage.
    pub force_sync: bool,
    /// How long to run, the warm-up included.
    pub duration: Duration,
    /// Sizes and orders are drawn from this.
    pub seed: u64,
    /// The memory budget given to the engine, in bytes, where it has such a setting.
    pub memory_budget: Option<u64>,
    /// The journal's capacity given to the engine, in bytes, where it has such a setting; also what `backlog` allows
    /// on disk beside 1.5 × the live bytes.
    pub journal_capacity: u64,
    /// `lifecycle`: `None` removes each message at once.
    pub lifetime: Option<Lifetime>,
    /// `lifecycle` with a lifetime and `mixed`: the most payload bytes that are there at a time; callers wait.
    pub live_bytes: u64,
    /// `backlog`: payload bytes to store.
    pub backlog_bytes: u64,
    /// `backlog`: the order of the removals.
    pub drain: Drain,
    /// `backlog`: removals a second, all callers together; `None` is as fast as they go.
    pub drain_rate: Option<u32>,
    /// The messages of a workload that stores a set of them; `None` is the workload's own default.
    pub messages: Option<u64>,
    /// `open-clean` and `open-killed`: how often.
    pub rounds: u32,
    /// `load-cold`, `enumerate` and `open-*`: the system's page cache lets go of the engine's files first.
    pub drop_page_cache: bool,
    /// `open-clean`: the index is deleted before each opening, and every message is loaded after it.
    pub lose_index: bool,
}

impl Plan {
    /// The plan of `tidespool bench --workload …` without further arguments.
    #[must_use]
    pub fn new(workload: Workload) -> Self {
        Self {
            workload,
            size: workload.default_size(),
            concurrency: workload.default_concurrency(),
            force_sync: false,
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
    /// Callers at a time where nothing else is said.
    #[must_use]
    pub fn default_concurrency(self) -> usize {
        if self == Self::Overload { 256 } else { 64 }
    }

    /// How long to run where nothing else is said.
    #[must_use]
    pub fn default_duration(self) -> Duration {
        Duration::from_secs(if self == Self::Overload { 30 } else { 5 })
    }

    /// The size where none is given: 16 KiB for most.
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
    fn a_plan_survives_the_way_to_a_child_process() {
        let plan =
            Plan { size: Size::Mix, lifetime: Some(Lifetime::TenMillis), ..Plan::new(Workload::OpenKilled) };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
}
