//! The child's side: its tasks with a spool.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tidespool::TieredSpool;
use tidespool_core::{Spool as _, SpoolEntry, SpoolId};
use tidespool_testkit::{ids, payload, wait};
use tokio::task::JoinSet;

use crate::bursts::Which;
use crate::control::Control;
use crate::event::{Answer, Event, Report, Version, answer, examine, failed, refused};
use crate::layout::CONTROL;
use crate::probe;
use crate::setup::{block_on, config};
use crate::traffic::Traffic;

/// Environment variables of the child: the directory of the spool, and the task.
pub(crate) const CHILD_DIR: &str = "TIDESPOOL_SLED_CALLS_DIR";
pub(crate) const CHILD_TASK: &str = "TIDESPOOL_SLED_CALLS_TASK";

/// Concurrent callers.
pub(crate) const CALLERS: u64 = 8;

/// The end of a child's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// `shutdown`.
    Orderly,
    /// Everything is durable, and the parent kills the process.
    Killed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Creates a spool with this many messages.
    Make(u64),
    /// Makes one call of each kind, without a spool.
    Probe,
    /// Opens the spool, lists it, loads all messages, and ends.
    Open,
    /// Opens the spool and works while bursts of calls fail.
    Traffic(Which),
}

/// The task of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) what: What,
    pub(crate) ending: Ending,
    pub(crate) seed: u64,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, number) = match self.what {
            What::Make(messages) => ("make", messages),
            What::Probe => ("probe", 0),
            What::Open => ("open", 0),
            What::Traffic(which) => ("traffic", which as u64),
        };
        write!(f, "{what} {number} {} {}", self.ending == Ending::Killed, self.seed)
    }
}

impl FromStr for Task {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [what, number, killed, seed] = words[..] else { anyhow::bail!("{text:?}") };
        let number = number.parse()?;
        let what = match what {
            "make" => What::Make(number),
            "probe" => What::Probe,
            "open" => What::Open,
            "traffic" => What::Traffic(Which::from_number(number)?),
            _ => anyhow::bail!("{text:?}"),
        };
        let ending = if killed.parse()? { Ending::Killed } else { Ending::Orderly };
        Ok(Self { what, ending, seed: seed.parse()? })
    }
}

/// Not a test itself: runs in the process whose calls fail.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR).map(PathBuf::from) else { return };
    let task: Task = std::env::var(CHILD_TASK).unwrap().parse().unwrap();
    let report = Arc::new(Report::on_stdout());
    block_on(work(task, &dir, report));
}

async fn work(task: Task, dir: &Path, report: Arc<Report>) {
    if task.what == What::Probe {
        return probe::every_call(dir, &report);
    }
    // All ids that were ever used, from the parent's oracle.
    let named = names(dir);
    let spool = match wait::bounded("open", TieredSpool::open(config(dir))).await {
        Ok(spool) => Arc::new(spool),
        Err(err) => return report.send(&refused(&err)),
    };
    report.send(&Event::Opened);
    for damage in &spool.recovery().damage {
        report.send(&Event::Damage(format!("{damage:?}")));
    }
    let client = Client { spool, report };
    match task.what {
        What::Make(messages) => client.make(messages, task.seed).await,
        What::Probe => unreachable!("a probe has no spool"),
        What::Open => {
            client.list().await;
            client.load_all(&named.keys().copied().collect::<Vec<_>>()).await;
        }
        What::Traffic(which) => {
            let control = Control::open(std::env::var_os(CONTROL).unwrap().into());
            Traffic::new(&client, control, named, task.seed).run(which).await;
        }
    }
    client.end(task.ending).await;
}

/// A file beside the spool: each id that was ever used, with its version if it is live.
pub(crate) fn names_path(dir: &Path) -> PathBuf {
    dir.with_extension("names")
}

fn names(dir: &Path) -> BTreeMap<SpoolId, Option<Version>> {
    let text = std::fs::read_to_string(names_path(dir)).unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split(' ');
        let id = words.next().unwrap().parse().unwrap();
        let version = words.next().map(|version| version.parse().unwrap());
        (id, version.map(|version| (version, words.next().unwrap().parse().unwrap())))
    };
    text.lines().map(line).collect()
}

/// A spool, and the events of the calls on it.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) spool: Arc<TieredSpool>,
    pub(crate) report: Arc<Report>,
}

impl Client {
    /// Stores a message and reports the events. Returns true if the store succeeded.
    pub(crate) async fn store(&self, id: SpoolId, version: Version, forced: bool) -> bool {
        self.report.send(&Event::Store(id, version));
        let data = payload::shared(id, version.0, version.1);
        self.report_result(id, &wait::bounded("a store", self.spool.store(id, data, forced, None)).await)
    }

    pub(crate) async fn remove(&self, id: SpoolId) -> bool {
        self.report.send(&Event::Remove(id));
        self.report_result(id, &wait::bounded("a removal", self.spool.remove(id)).await)
    }

    fn report_result(&self, id: SpoolId, answer: &anyhow::Result<()>) -> bool {
        let event = answer.as_ref().map_or_else(|err| failed(id, err), |()| Event::Done(id));
        self.report.send(&event);
        answer.is_ok()
    }

    /// Loads a message and reports the event.
    pub(crate) async fn load(&self, id: SpoolId) {
        let loaded = self.answer(id).await;
        self.report.send(&Event::Loaded(id, loaded));
    }

    async fn answer(&self, id: SpoolId) -> Answer {
        answer(id, wait::bounded("a load", self.spool.load(id)).await)
    }

    /// Loads all these messages until each load has a result other than an I/O error.
    pub(crate) async fn load_all(&self, ids: &[SpoolId]) {
        let mut rest = ids.to_vec();
        wait::bounded("all can be loaded", async {
            while !rest.is_empty() {
                let (mut answers, mut failed_ids) = (Vec::new(), Vec::new());
                for id in rest {
                    let loaded = self.answer(id).await;
                    if matches!(loaded, Answer::Io(_)) {
                        failed_ids.push(id);
                        // The other loads would wait for the same cause.
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    answers.push(Event::Loaded(id, loaded));
                }
                self.report.send_all(&answers);
                rest = failed_ids;
            }
        })
        .await;
    }

    /// Enumerates and reports the events.
    pub(crate) async fn list(&self) {
        let (sender, receiver) = async_channel::bounded(64);
        if let Err(err) = self.spool.enumerate(sender, DateTime::<Utc>::MAX_UTC) {
            return self.report.send(&Event::Wrong(format!("enumerate: {err:#}")));
        }
        let mut listed = Vec::new();
        while let Ok(entry) = wait::bounded("an enumeration", receiver.recv()).await {
            let (id, found) = match entry {
                SpoolEntry::Item { id, data } => (id, examine(id, &data)),
                SpoolEntry::Corrupt { id, error } => (id, Answer::Wrong(format!("damaged: {error}"))),
            };
            listed.push(Event::Listed(id, found));
        }
        listed.push(Event::ListEnd);
        self.report.send_all(&listed);
    }

    /// Creates a spool with messages in all states: checkpointed, replaced, removed, and not
    /// checkpointed.
    async fn make(&self, messages: u64, seed: u64) {
        let mut tasks = JoinSet::new();
        let mut rngs = SmallRng::seed_from_u64(seed);
        for _ in 0..4 * CALLERS {
            let (client, mut rng) = (self.clone(), rngs.fork());
            let count = messages.div_ceil(4 * CALLERS);
            tasks.spawn(async move { client.make_some(count, &mut rng).await });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }

    async fn make_some(&self, count: u64, rng: &mut SmallRng) {
        let mut live = Vec::new();
        for n in 1..=count {
            let id = new_id();
            assert!(self.store(id, (n, len(rng)), true).await);
            live.push(id);
            if rng.random_bool(0.2) {
                let id = live[rng.random_range(0..live.len())];
                assert!(self.store(id, (count + n, len(rng)), true).await);
            }
            if rng.random_bool(0.15) {
                assert!(self.remove(live.swap_remove(rng.random_range(0..live.len()))).await);
            }
            if rng.random_range(0..count) == 0 || n == count / 2 || n + count / 8 == count {
                self.spool.compact().await.unwrap();
            }
        }
    }

    async fn end(&self, ending: Ending) {
        match ending {
            Ending::Orderly => {
                let ended = wait::bounded("the shutdown", self.spool.shutdown()).await;
                self.report.send(&Event::Ended(ended.err().map(|err| format!("{err:#}"))));
            }
            Ending::Killed => {
                // Makes dirty messages and removals durable.
                let flushed = wait::bounded("a flush", self.spool.advise_low_memory()).await;
                if let Err(err) = flushed {
                    self.report.send(&Event::Wrong(format!("a flush failed: {err:#}")));
                }
                self.report.send(&Event::Ready);
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Lengths of messages in bytes. Most are small, and all can hold their version.
pub(crate) fn len(rng: &mut SmallRng) -> usize {
    match rng.random_range(0..20) {
        0..14 => rng.random_range(60..250),
        14..19 => rng.random_range(250..2_000),
        _ => rng.random_range(2_000..20_000),
    }
}

/// A new id that no other process uses, in random order. Such ids are spread over many pages of
/// sled, which are read repeatedly.
pub(crate) fn new_id() -> SpoolId {
    let id = SpoolId::new();
    let [high, low] = [0, 1].map(|half: usize| {
        let bytes = id.as_bytes().as_chunks().0[half];
        u64::from_be_bytes(bytes)
    });
    ids::v4(high ^ low.rotate_left(32))
}
