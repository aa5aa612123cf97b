use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A kind of call to the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// A file is made.
    Create,
    /// A file that is there is opened.
    Open,
    /// Bytes are read.
    Read,
    /// Bytes are read if they are in memory, without waiting for the disk. A fault here stands for bytes that are not: whoever reads so asks the disk
    /// then, which is a [`Read`](Call::Read).
    ReadInMemory,
    /// Bytes are written.
    Write,
    /// A file is synced.
    Sync,
    /// A file is renamed. Its name here is the new one.
    Rename,
    /// A file is removed.
    Remove,
    /// A directory is synced.
    SyncDir,
    /// A directory is made or listed.
    Dir,
    /// A look at which file has a name. Counted only if a fault is set for it: the number of looks
    /// depends on the time.
    State,
}

/// One call, as a fault or a watcher sees it.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// What is called.
    pub call: Call,
    /// The file's name, without its directory.
    pub name: &'a str,
    /// Which call of all it is, from 1.
    pub number: u64,
}

/// A call, and who made it: one that a fault struck, for example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strike {
    /// What was called.
    pub call: Call,
    /// The file's name, without its directory.
    pub name: String,
    /// Which call of all it was, from 1.
    pub number: u64,
    /// The thread that made it.
    pub thread: String,
}

impl Strike {
    /// The call that is made now, on this thread.
    #[must_use]
    pub fn of(moment: &Moment<'_>) -> Self {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        Self { call: moment.call, name: moment.name.to_owned(), number: moment.number, thread }
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, name, number, thread } = self;
        write!(f, "{call:?} of {name} as call {number}, by {thread}")
    }
}

type Filter = Arc<dyn Fn(&Moment<'_>) -> bool + Send + Sync>;

/// What breaks. Made with [`Fault::on`] or [`Fault::on_any`]; without more it breaks once, the next time, with EIO.
#[derive(Clone)]
pub struct Fault {
    filter: Filter,
    when: When,
    pub(super) effect: Effect,
    seen: u64,
}

/// So many calls from this one on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct When {
    from: u64,
    times: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// The call fails with this error of the system.
    Fail(i32),
    /// Of a write or a read, at most so many bytes are written or read, and reported.
    Short(usize),
    /// Of a write, so many bytes are written, and then it fails.
    Torn(usize, i32),
    /// The call waits until the storage is healed, or for so long, and is then made.
    Wait(Option<Duration>),
    /// Of a write or a read, the first byte is changed on the way.
    Corrupt,
}

impl Effect {
    /// Whether it makes a difference to such a call.
    pub(super) fn fits(self, call: Call) -> bool {
        match self {
            Self::Fail(_) | Self::Wait(_) => true,
            Self::Short(_) => matches!(call, Call::Write | Call::Read),
            Self::Torn(..) => call == Call::Write,
            Self::Corrupt => matches!(call, Call::Write | Call::Read | Call::ReadInMemory),
        }
    }
}

const EIO: i32 = 5;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;
const EDQUOT: i32 = 122;

impl Fault {
    /// Calls of this kind.
    #[must_use]
    pub fn on(call: Call) -> Self {
        Self::on_calls(move |moment| moment.call == call)
    }

    /// Calls of every kind but [`Call::State`].
    #[must_use]
    pub fn on_any() -> Self {
        Self::on_calls(|moment| moment.call != Call::State)
    }

    fn on_calls(filter: impl Fn(&Moment<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self {
            filter: Arc::new(filter),
            when: When { from: 1, times: 1 },
            effect: Effect::Fail(EIO),
            seen: 0,
        }
    }

    /// Of those, only the calls for which `filter` is true.
    #[must_use]
    pub fn only(self, filter: impl Fn(&Moment<'_>) -> bool + Send + Sync + 'static) -> Self {
        let before = self.filter;
        Self { filter: Arc::new(move |moment| before(moment) && filter(moment)), ..self }
    }

    /// Of those, only the calls on files whose name ends so.
    #[must_use]
    pub fn file(self, end: &'static str) -> Self {
        self.only(move |moment| moment.name.ends_with(end))
    }

    /// Only the `n`-th of them, from 1, counted from when the fault is injected.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        Self { when: When { from: n, times: 1 }, ..self }
    }

    /// All of them, until the storage is healed.
    #[must_use]
    pub fn always(self) -> Self {
        self.from(1)
    }

    /// The `n`-th of them and all after it, from 1, until the storage is healed.
    #[must_use]
    pub fn from(self, n: u64) -> Self {
        Self { when: When { from: n, times: u64::MAX }, ..self }
    }

    /// Not one of them but so many, one after the other.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { when: When { times, ..self.when }, ..self }
    }

    /// With ENOSPC instead of EIO.
    #[must_use]
    pub fn full_disk(self) -> Self {
        Self { effect: Effect::Fail(ENOSPC), ..self }
    }

    /// With EDQUOT instead of EIO: a quota is used up.
    #[must_use]
    pub fn over_quota(self) -> Self {
        Self { effect: Effect::Fail(EDQUOT), ..self }
    }

    /// With EFBIG instead of EIO: a file is at its largest size.
    #[must_use]
    pub fn file_too_large(self) -> Self {
        Self { effect: Effect::Fail(EFBIG), ..self }
    }

    /// Of a write or a read, at most `bytes` are written or read, and reported: no error.
    #[must_use]
    pub fn short(self, bytes: usize) -> Self {
        Self { effect: Effect::Short(bytes), ..self }
    }

    /// Of a write, `bytes` are written before it fails with EIO.
    #[must_use]
    pub fn torn(self, bytes: usize) -> Self {
        Self { effect: Effect::Torn(bytes, EIO), ..self }
    }

    /// The call waits until the storage is healed.
    #[must_use]
    pub fn block(self) -> Self {
        Self { effect: Effect::Wait(None), ..self }
    }

    /// The call takes this much longer; less where the storage is healed meanwhile.
    #[must_use]
    pub fn delay(self, time: Duration) -> Self {
        Self { effect: Effect::Wait(Some(time)), ..self }
    }

    /// Of a write or a read, the first byte is changed on the way: no error.
    #[must_use]
    pub fn corrupt(self) -> Self {
        Self { effect: Effect::Corrupt, ..self }
    }

    /// Whether it is for such calls, and its time may come yet.
    pub(super) fn is_for(&self, moment: &Moment<'_>) -> bool {
        let is_over = self.seen >= self.when.from.saturating_add(self.when.times.saturating_sub(1));
        !is_over && (self.filter)(moment)
    }

    /// Counts the call, and says whether it breaks.
    pub(super) fn strikes(&mut self, moment: &Moment<'_>) -> bool {
        if !(self.filter)(moment) {
            return false;
        }
        self.seen += 1;
        self.seen.checked_sub(self.when.from).is_some_and(|after| after < self.when.times)
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { when, effect, seen, .. } = self;
        f.debug_struct("Fault")
            .field("when", when)
            .field("effect", effect)
            .field("seen", seen)
            .finish_non_exhaustive()
    }
}

pub(super) fn system_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}
