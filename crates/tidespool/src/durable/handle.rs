//! What the spool holds: the filing engine, or none while it is broken.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::worker::Strays;
use super::{
    Damaged, DurableError, DurableStore, Fingerprint, Key, KeyRange, Op, Record, SledOptions, SledStore,
    Tally,
};

/// Why the engine is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// The spool is opened.
    First,
    /// The engine, or its opening, failed before in this process. What the kernel holds of its files in memory may not be on disk.
    AfterError,
}

/// What a reopening did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reopened {
    /// Why it was not open: the error that broke it.
    pub(crate) why: String,
    /// How long it took, check included.
    pub(crate) took: Duration,
}

type Opener = Box<dyn Fn(Opening) -> Result<Box<dyn DurableStore>, DurableError> + Send + Sync>;

/// The filing engine that the spool uses now, if there is one.
///
/// The first engine error takes it out of use for everyone: it is let go (sled is dropped on its own thread, nobody
/// waits), and every call fails with the retryable [`DurableError::Unavailable`] until [`reopen`](Self::reopen).
pub(crate) struct Durable {
    path: PathBuf,
    opener: Opener,
    close_timeout: Duration,
    strays: Arc<Strays>,
    current: ArcSwapOption<Box<dyn DurableStore>>,
    /// Held for the whole of a reopening.
    broken: Mutex<Option<Broken>>,
    /// It was to be closed while a reopening hung: what that opens after all is let go.
    given_up: AtomicBool,
    /// Why there is none, for those who ask meanwhile.
    why: Mutex<String>,
}

/// An engine out of use, not yet seen closed.
struct Broken {
    store: Arc<Box<dyn DurableStore>>,
    why: String,
}

impl Durable {
    /// Opens sled in `dir`. Before it is relied on, its [`tally`](Self::tally) should be compared with the ledger.
    ///
    /// # Errors
    ///
    /// As [`SledStore::open`].
    pub(crate) fn open_sled(dir: &Path, options: SledOptions) -> Result<Self, DurableError> {
        Self::open_sled_as(dir, options, Opening::First)
    }

    /// The same after an opening that failed: what memory holds of its files may not be what is on disk.
    ///
    /// # Errors
    ///
    /// As [`SledStore::open`].
    pub(crate) fn open_sled_again(dir: &Path, options: SledOptions) -> Result<Self, DurableError> {
        Self::open_sled_as(dir, options, Opening::AfterError)
    }

    fn open_sled_as(dir: &Path, options: SledOptions, opening: Opening) -> Result<Self, DurableError> {
        let (close_timeout, strays) = (options.open_timeout, Arc::clone(&options.strays));
        let path = dir.to_owned();
        let opener: Opener = Box::new(move |opening| {
            let store = SledStore::open(&path, options.clone(), opening)?;
            Ok(Box::new(store))
        });
        let store = opener(opening)?;
        Ok(Self {
            path: dir.to_owned(),
            opener,
            close_timeout,
            strays,
            current: ArcSwapOption::from_pointee(store),
            broken: Mutex::default(),
            given_up: AtomicBool::new(false),
            why: Mutex::default(),
        })
    }

    /// As [`DurableStore::get`].
    pub(crate) fn get(&self, key: &Key) -> Result<Option<Record>, DurableError> {
        self.with(|store| store.get(key))
    }

    /// As [`DurableStore::apply`].
    pub(crate) fn apply(
        &self,
        ops: &mut dyn Iterator<Item = Op>,
        replaced: &mut dyn FnMut(&Key, Option<Record>),
    ) -> Result<Tally, DurableError> {
        self.with(|store| store.apply(ops, replaced))
    }

    /// As [`DurableStore::scan`].
    pub(crate) fn scan(
        &self,
        ranges: &[KeyRange],
        visit: &mut dyn FnMut(Key, Result<Record, Damaged>) -> bool,
    ) -> Result<(), DurableError> {
        self.with(|store| store.scan(ranges, visit))
    }

    /// As [`DurableStore::tally`].
    #[cfg(test)]
    pub(crate) fn tally(&self) -> Result<Tally, DurableError> {
        self.with(|store| store.tally())
    }

    /// As [`DurableStore::size_on_disk`]; 0 while there is none.
    pub(crate) fn size_on_disk(&self) -> u64 {
        self.current.load_full().map_or(0, |store| store.size_on_disk())
    }

    /// As [`DurableStore::memory_bytes`]; 0 while there is none.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.current.load_full().map_or(0, |store| store.memory_bytes())
    }

    /// Whether there is an engine in use.
    pub(crate) fn is_open(&self) -> bool {
        self.current.load().is_some()
    }

    /// Threads of engines that did not end in time. More than 0 for long: the process has to be started again.
    #[cfg(test)]
    pub(crate) fn stuck_threads(&self) -> usize {
        self.strays.reap()
    }

    /// What its files are, if that can be told by `until`. Only of use while it is closed.
    pub(crate) fn fingerprint(&self, until: Instant) -> io::Result<Option<Fingerprint>> {
        Fingerprint::of(&self.path, Some(until))
    }

    /// Whether some engine of this handle failed while it was closed: what it wrote last may not be there.
    pub(crate) fn closing_failed(&self) -> bool {
        self.strays.closing_failed()
    }

    /// Opens the engine again after an error. Waits until the broken one has closed (as long as a closing may take),
    /// calls `before` (room may have to be made on a full disk), opens, and lets `check` look at what was opened;
    /// nobody else sees it until `check` was content. `None`: there was one in use, and nothing was done.
    ///
    /// # Errors
    ///
    /// Whatever closing, `before`, opening and `check` say. There is no engine then, as before, and it can be tried
    /// again.
    pub(crate) fn reopen(
        &self,
        before: &mut dyn FnMut() -> Result<(), DurableError>,
        check: &mut dyn FnMut(&dyn DurableStore) -> Result<(), DurableError>,
    ) -> Result<Option<Reopened>, DurableError> {
        let started = Instant::now();
        let mut broken = self.broken.lock();
        if self.is_open() {
            return Ok(None);
        }
        if let Some(Broken { store, why }) = broken.take() {
            tracing::warn!(path = %self.path.display(), why, "opening the filing engine again");
            store.close(self.close_timeout)?;
        }
        before()?;
        let store = (self.opener)(Opening::AfterError)?;
        if let Err(err) = check(&*store) {
            // The next attempt, or the end, sees it closed.
            store.let_go();
            *broken = Some(Broken { store: Arc::new(store), why: err.to_string() });
            return Err(err);
        }
        self.current.store(Some(Arc::new(store)));
        if self.given_up.load(Ordering::SeqCst) {
            self.abandon();
            return Err(self.unavailable());
        }
        Ok(Some(Reopened { why: std::mem::take(&mut self.why.lock()), took: started.elapsed() }))
    }

    /// Closes the engine, and waits for that until `by`. It can be opened again by [`reopen`](Self::reopen).
    ///
    /// # Errors
    ///
    /// [`DurableError::Timeout`] where it, or a broken one before it, did not close in time, or is just being opened again. It closes when it can.
    pub(crate) fn close(&self, by: Instant) -> Result<(), DurableError> {
        let after = by.saturating_duration_since(Instant::now());
        let late = |doing| DurableError::Timeout { path: self.path.clone(), doing, after };
        if let Some(store) = self.current.load_full() {
            self.retire(&store, "it was closed");
        }
        let Some(mut broken) = self.broken.try_lock_until(by) else {
            self.given_up.store(true, Ordering::SeqCst);
            self.abandon();
            return Err(late("opening it again"));
        };
        let broken = broken.take();
        let left = || by.saturating_duration_since(Instant::now());
        broken.map_or(Ok(()), |broken| broken.store.close(left())).map_err(|_| late("closing"))?;
        if self.strays.join_all(left()) > 0 {
            return Err(late("closing"));
        }
        Ok(())
    }

    /// Lets go of what a reopening brought too late.
    fn abandon(&self) {
        if let Some(store) = self.current.swap(None) {
            store.let_go();
        }
    }

    /// Runs `f` with the engine in use.
    ///
    /// # Errors
    ///
    /// [`DurableError::Unavailable`] where there is none; what `f` returns. One that poisons takes the engine out of use.
    pub(crate) fn with<T>(
        &self,
        f: impl FnOnce(&dyn DurableStore) -> Result<T, DurableError>,
    ) -> Result<T, DurableError> {
        let store = self.current.load_full().ok_or_else(|| self.unavailable())?;
        let result = f(&**store);
        if let Err(err) = &result
            && err.poisons()
        {
            self.retire(&store, &err.to_string());
        }
        result
    }

    fn unavailable(&self) -> DurableError {
        DurableError::Unavailable { path: self.path.clone(), why: self.why.lock().clone() }
    }

    /// Takes `store` out of use, if it still is in use.
    fn retire(&self, store: &Arc<Box<dyn DurableStore>>, why: &str) {
        let expected = Some(Arc::clone(store));
        let found = self.current.compare_and_swap(&expected, None);
        if !found.as_ref().is_some_and(|found| Arc::ptr_eq(found, store)) {
            return;
        }
        why.clone_into(&mut self.why.lock());
        store.let_go();
        *self.broken.lock() = Some(Broken { store: Arc::clone(store), why: why.to_owned() });
    }
}
