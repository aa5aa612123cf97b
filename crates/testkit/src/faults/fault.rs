use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A kind of call to the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// Creates a file.
    Create,
    /// Opens an existing file.
    Open,
    /// Reads bytes.
    Read,
    /// Reads bytes that are in the page cache, without waiting for the disk. A fault here means
    /// that they are not cached: the caller then makes a [`Read`](Call::Read) call.
    ReadInMemory,
    /// Writes bytes.
    Write,
    /// Syncs a file.
    Sync,
    /// Renames a file. [`Moment::name`] is the new name.
    Rename,
    /// Removes a file.
    Remove,
    /// Syncs a directory.
    SyncDir,
    /// Creates or lists a directory.
    Dir,
    /// Gets the identity and state of the file with a name. Counted only if a fault is set for it,
    /// because the number of these calls depends on timing.
    State,
    /// Queries the free space. Counted as [`State`](Call::State) is. [`Moment::name`] is the name
    /// of a directory.
    Space,
}

/// One call, as passed to filters and watchers.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// The kind of the call.
    pub call: Call,
    /// The file's name, without its directory.
    pub name: &'a str,
    /// The number of the call among all calls, from 1.
    pub number: u64,
}

/// A recorded call, with the thread that made it: for example, a call that a fault affected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strike {
    /// The kind of the call.
    pub call: Call,
    /// The file's name, without its directory.
    pub name: String,
    /// The number of the call among all calls, from 1.
    pub number: u64,
    /// The thread that made it.
    pub thread: String,
}

impl Strike {
    /// Records the current call on the current thread.
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

/// A fault and the calls that it affects. Created with [`Fault::on`] or [`Fault::on_any`]. By
/// default, the next matching call fails once, with EIO.
#[derive(Clone)]
pub struct Fault {
    filter: Filter,
    when: When,
    pub(super) effect: Effect,
    seen: u64,
}

/// `times` matching calls, starting with number `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct When {
    from: u64,
    times: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// The call fails with this `errno`.
    Fail(i32),
    /// A write or read transfers at most this many bytes and returns that count. A query of the
    /// free space returns this many bytes.
    Short(usize),
    /// A write transfers this many bytes and then fails with this `errno`.
    Torn(usize, i32),
    /// The call waits for `heal` or `release`, or at most this long, and is then made.
    Wait(Option<Duration>),
    /// A byte of a write or read is changed: the one after so many 256ths of it.
    Corrupt(u8),
}

impl Effect {
    /// Returns whether this effect applies to calls of this kind.
    pub(super) fn fits(self, call: Call) -> bool {
        match self {
            Self::Fail(_) | Self::Wait(_) => true,
            Self::Short(_) => matches!(call, Call::Write | Call::Read | Call::Space),
            Self::Torn(..) => call == Call::Write,
            Self::Corrupt(_) => matches!(call, Call::Write | Call::Read | Call::ReadInMemory),
        }
    }
}

const EIO: i32 = 5;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;
const EDQUOT: i32 = 122;

impl Fault {
    /// Affects calls of this kind.
    #[must_use]
    pub fn on(call: Call) -> Self {
        Self::on_calls(move |moment| moment.call == call)
    }

    /// Affects calls of every kind except [`Call::State`] and [`Call::Space`].
    #[must_use]
    pub fn on_any() -> Self {
        Self::on_calls(|moment| !matches!(moment.call, Call::State | Call::Space))
    }

    fn on_calls(filter: impl Fn(&Moment<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self {
            filter: Arc::new(filter),
            when: When { from: 1, times: 1 },
            effect: Effect::Fail(EIO),
            seen: 0,
        }
    }

    /// Restricts the fault to calls for which `filter` returns true.
    #[must_use]
    pub fn only(self, filter: impl Fn(&Moment<'_>) -> bool + Send + Sync + 'static) -> Self {
        let before = self.filter;
        Self { filter: Arc::new(move |moment| before(moment) && filter(moment)), ..self }
    }

    /// Restricts the fault to files whose name ends with `end`.
    #[must_use]
    pub fn file(self, end: &'static str) -> Self {
        self.only(move |moment| moment.name.ends_with(end))
    }

    /// Affects only the `n`-th matching call, from 1, counted from the injection of the fault.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        Self { when: When { from: n, times: 1 }, ..self }
    }

    /// Affects all matching calls, until the storage is healed.
    #[must_use]
    pub fn always(self) -> Self {
        self.from(1)
    }

    /// Affects the `n`-th matching call and all later ones, from 1, until the storage is healed.
    #[must_use]
    pub fn from(self, n: u64) -> Self {
        Self { when: When { from: n, times: u64::MAX }, ..self }
    }

    /// Affects this many consecutive calls instead of one.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { when: When { times, ..self.when }, ..self }
    }

    /// Fails with ENOSPC instead of EIO.
    #[must_use]
    pub fn full_disk(self) -> Self {
        Self { effect: Effect::Fail(ENOSPC), ..self }
    }

    /// Fails with EDQUOT instead of EIO: the quota is used up.
    #[must_use]
    pub fn over_quota(self) -> Self {
        Self { effect: Effect::Fail(EDQUOT), ..self }
    }

    /// Fails with EFBIG instead of EIO: the file has reached its maximum size.
    #[must_use]
    pub fn file_too_large(self) -> Self {
        Self { effect: Effect::Fail(EFBIG), ..self }
    }

    /// Makes a write or read transfer at most `bytes` and return that count without an error. Makes
    /// a query of the free space return `bytes`.
    #[must_use]
    pub fn short(self, bytes: usize) -> Self {
        Self { effect: Effect::Short(bytes), ..self }
    }

    /// Makes a write transfer `bytes` and then fail with EIO.
    #[must_use]
    pub fn torn(self, bytes: usize) -> Self {
        Self { effect: Effect::Torn(bytes, EIO), ..self }
    }

    /// Makes the call wait until the storage is healed or released.
    #[must_use]
    pub fn block(self) -> Self {
        Self { effect: Effect::Wait(None), ..self }
    }

    /// Delays the call by `time`, or less if the storage is healed or released meanwhile.
    #[must_use]
    pub fn delay(self, time: Duration) -> Self {
        Self { effect: Effect::Wait(Some(time)), ..self }
    }

    /// Changes the first byte of a write or read, without an error.
    #[must_use]
    pub fn corrupt(self) -> Self {
        self.corrupt_after(0)
    }

    /// Changes one byte of a write or read, without an error: the one after `part` 256ths of it.
    #[must_use]
    pub fn corrupt_after(self, part: u8) -> Self {
        Self { effect: Effect::Corrupt(part), ..self }
    }

    /// Returns whether the fault matches such a call and may still affect it or a later one.
    pub(super) fn is_for(&self, moment: &Moment<'_>) -> bool {
        let is_over = self.seen >= self.when.from.saturating_add(self.when.times.saturating_sub(1));
        !is_over && (self.filter)(moment)
    }

    /// Counts the call, and returns whether the fault affects it.
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
