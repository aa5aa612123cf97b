//! The events of a child, one per line.

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::str::FromStr;

use parking_lot::Mutex;
use tidespool_core::{Closed, Corrupt, DamagedSpool, InDoubt, Locked, NotFound, SpoolId, UnsupportedFormat};
use tidespool_testkit::payload;

/// Marks the lines of the child among those of the test harness.
const MARK: &str = "@sled-calls ";

/// A version of a message: its number and its length in bytes.
pub(crate) type Version = (u64, usize);

/// The result of a call for one id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// All bytes are correct.
    Whole(Version),
    /// There is no such message.
    Absent,
    /// The disk failed, so the state of the message is unknown.
    Io(String),
    /// Damaged, wrong bytes, or an error of the wrong type.
    Wrong(String),
}

/// The start of a call, its result, or another event of the child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The spool is open.
    Opened,
    /// The opening failed. Whether the error has the right type, and its text.
    Refused(bool, String),
    /// The opening reports damage.
    Damage(String),
    /// A store starts.
    Store(SpoolId, Version),
    /// A removal starts.
    Remove(SpoolId),
    /// The last operation on this id returned `Ok`.
    Done(SpoolId),
    /// The last operation on this id returned an error: whether it is in doubt, and its text.
    Failed(SpoolId, bool, String),
    /// A load returned.
    Loaded(SpoolId, Answer),
    /// An enumeration returned this message.
    Listed(SpoolId, Answer),
    /// The enumeration has ended.
    ListEnd,
    /// The disk works and no load fails. No error is allowed until the next `Burst`.
    Settled,
    /// Calls fail from now on.
    Burst(String),
    /// Everything is durable. The parent may kill the child.
    Ready,
    /// The shutdown ended, with this error if any.
    Ended(Option<String>),
    /// Something else is wrong.
    Wrong(String),
}

/// Classifies the result of a load.
pub(crate) fn answer(id: SpoolId, loaded: anyhow::Result<Vec<u8>>) -> Answer {
    let err = match loaded {
        Ok(data) => return examine(id, &data),
        Err(err) => err,
    };
    let root = err.root_cause();
    if root.is::<NotFound>() {
        Answer::Absent
    } else if root.is::<std::io::Error>() {
        Answer::Io(format!("{err:#}"))
    } else {
        let kind = if root.is::<Corrupt>() { "reported as damaged" } else { "not an I/O error" };
        Answer::Wrong(format!("{kind}: {err:#}"))
    }
}

/// Classifies these bytes.
pub(crate) fn examine(id: SpoolId, data: &[u8]) -> Answer {
    match payload::read(id, data) {
        Ok(seen) => Answer::Whole((seen.version.unwrap_or(0), seen.len)),
        Err(err) => Answer::Wrong(err.to_string()),
    }
}

/// The event of a failed opening. A failing disk must not cause errors of damage, format or
/// ownership.
pub(crate) fn refused(err: &anyhow::Error) -> Event {
    let root = err.root_cause();
    let wrong = root.is::<DamagedSpool>() || root.is::<UnsupportedFormat>() || root.is::<Locked>();
    Event::Refused(!wrong, format!("{err:#}"))
}

/// The event of a failed operation.
pub(crate) fn failed(id: SpoolId, err: &anyhow::Error) -> Event {
    if err.root_cause().is::<Closed>() {
        return Event::Wrong(format!("{id}: closed while running"));
    }
    Event::Failed(id, err.is::<InDoubt>(), format!("{err:#}"))
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole((version, len)) => write!(f, "whole {version} {len}"),
            Self::Absent => write!(f, "absent"),
            Self::Io(text) => write!(f, "io {text}"),
            Self::Wrong(text) => write!(f, "wrong {text}"),
        }
    }
}

impl FromStr for Answer {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (word, rest) = split(text);
        match word {
            "whole" => Ok(Self::Whole(version(rest)?)),
            "absent" => Ok(Self::Absent),
            "io" => Ok(Self::Io(rest.to_owned())),
            "wrong" => Ok(Self::Wrong(rest.to_owned())),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opened => write!(f, "opened"),
            Self::Refused(typed, text) => write!(f, "refused {typed} {text}"),
            Self::Damage(text) => write!(f, "damage {text}"),
            Self::Store(id, (version, len)) => write!(f, "store {id} {version} {len}"),
            Self::Remove(id) => write!(f, "remove {id}"),
            Self::Done(id) => write!(f, "done {id}"),
            Self::Failed(id, doubt, text) => write!(f, "failed {id} {doubt} {text}"),
            Self::Loaded(id, answer) => write!(f, "loaded {id} {answer}"),
            Self::Listed(id, answer) => write!(f, "listed {id} {answer}"),
            Self::ListEnd => write!(f, "list-end"),
            Self::Settled => write!(f, "settled"),
            Self::Burst(text) => write!(f, "burst {text}"),
            Self::Ready => write!(f, "ready"),
            Self::Ended(None) => write!(f, "ended"),
            Self::Ended(Some(text)) => write!(f, "ended {text}"),
            Self::Wrong(text) => write!(f, "wrong {text}"),
        }
    }
}

impl FromStr for Event {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (word, rest) = split(text);
        let (first, more) = split(rest);
        let id = || first.parse::<SpoolId>().map_err(drop);
        let flag = |text: &str| text.parse::<bool>().map_err(drop);
        Ok(match word {
            "opened" => Self::Opened,
            "refused" => Self::Refused(flag(first)?, more.to_owned()),
            "damage" => Self::Damage(rest.to_owned()),
            "store" => Self::Store(id()?, version(more)?),
            "remove" => Self::Remove(id()?),
            "done" => Self::Done(id()?),
            "failed" => {
                let (doubt, text) = split(more);
                Self::Failed(id()?, flag(doubt)?, text.to_owned())
            }
            "loaded" => Self::Loaded(id()?, more.parse()?),
            "listed" => Self::Listed(id()?, more.parse()?),
            "list-end" => Self::ListEnd,
            "settled" => Self::Settled,
            "burst" => Self::Burst(rest.to_owned()),
            "ready" => Self::Ready,
            "ended" => Self::Ended((!rest.is_empty()).then(|| rest.to_owned())),
            "wrong" => Self::Wrong(rest.to_owned()),
            _ => return Err(()),
        })
    }
}

fn split(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

fn version(text: &str) -> Result<Version, ()> {
    let (version, len) = split(text);
    Ok((version.parse().map_err(drop)?, len.parse().map_err(drop)?))
}

/// The event in a line of the child's output, if any.
pub(crate) fn decode(line: &str) -> Option<Event> {
    line.split_once(MARK)?.1.parse().ok()
}

/// The child's output. Each line is one unbuffered write, so that a kill loses no event.
#[derive(Debug)]
pub(crate) struct Report(Mutex<File>);

impl Report {
    pub(crate) fn on_stdout() -> Self {
        Self(Mutex::new(File::from(std::io::stdout().as_fd().try_clone_to_owned().unwrap())))
    }

    pub(crate) fn send(&self, event: &Event) {
        self.send_all(std::slice::from_ref(event));
    }

    /// Writes several events at once: results of reads, whose loss in a kill is harmless.
    pub(crate) fn send_all(&self, events: &[Event]) {
        let line = |event: &Event| format!("\n{MARK}{}\n", event.to_string().replace('\n', " / "));
        let text: String = events.iter().map(line).collect();
        if self.0.lock().write_all(text.as_bytes()).is_err() {
            // Without a parent the child is useless.
            std::process::exit(0);
        }
    }
}

#[test]
fn lines_are_read_back() {
    let id = SpoolId::new();
    let text = || "a b".to_owned();
    let events = [
        Event::Opened,
        Event::Refused(true, text()),
        Event::Damage(text()),
        Event::Store(id, (3, 40)),
        Event::Remove(id),
        Event::Done(id),
        Event::Failed(id, true, text()),
        Event::Loaded(id, Answer::Whole((3, 40))),
        Event::Loaded(id, Answer::Absent),
        Event::Loaded(id, Answer::Io(text())),
        Event::Listed(id, Answer::Wrong(text())),
        Event::ListEnd,
        Event::Settled,
        Event::Burst(text()),
        Event::Ready,
        Event::Ended(None),
        Event::Ended(Some(text())),
        Event::Wrong(text()),
    ];
    for event in events {
        assert_eq!(decode(&format!("test x ... {MARK}{event}")), Some(event));
    }
    assert_eq!(decode("running 1 test"), None);
}
