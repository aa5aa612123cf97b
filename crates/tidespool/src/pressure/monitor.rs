//! The handle on the monitor's thread.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use tracing::error;

use super::level::Level;
use super::room::MemoryRoom;
use super::sample::{Sampler, Source, SystemSampler};
use super::spools::Spools;
use super::watch::MonitorThread;
use crate::thread_limit::not_started;
use crate::{ConfigError, PressureConfig};

/// Watches how much memory is in use, and asks the spools that are registered with it to give some back.
///
/// A spool opened with [`TieredSpool::open`](crate::TieredSpool::open) has one of its own. A process with several spools
/// gives them one in common, with [`TieredSpool::open_watched`](crate::TieredSpool::open_watched): then memory is looked at
/// once for all of them, and what is too much is shared among them in proportion to what each has to give.
///
/// It runs on a thread of its own, `tide-pressure`. Clones are handles on the same monitor. It ends with
/// [`shutdown`](Self::shutdown), or when the last handle is dropped; the spools opened with it hold one each until their own
/// shutdown, which does not end it. Whenever it ends or is turned off, its spools are told that memory is normal.
///
/// ```
/// use tidespool::{Config, PressureConfig, PressureMonitor, TieredSpool};
///
/// #[tokio::main]
/// async fn main() -> anyhow::Result<()> {
/// #   use tidespool::core::Spool as _;
/// #   let dir = tempfile::tempdir()?;
/// #   let path = dir.path().to_owned();
///     let monitor = PressureMonitor::start(PressureConfig::default().memory_limit(4 << 30))?;
///     let meta = TieredSpool::open_watched(Config::new(path.join("meta")), &monitor).await?;
///     let data = TieredSpool::open_watched(Config::new(path.join("data")), &monitor).await?;
///
///     if let Some(now) = monitor.latest() {
///         println!("{} of {} bytes ({}): {:?}", now.used, now.limit, now.source.name(), now.level);
///     }
/// #   meta.shutdown().await?;
/// #   data.shutdown().await?;
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct PressureMonitor {
    handle: Arc<Handle>,
}

/// What the monitor saw when it last looked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PressureReading {
    /// What is compared with `limit`, in bytes.
    pub used: u64,
    /// The limit that is nearest to being reached, in bytes. Never 0.
    pub limit: u64,
    /// What was compared with what.
    pub source: Source,
    /// Resident memory of this process in bytes, where it can be read.
    pub resident: Option<u64>,
    /// The share of the last 10 s in which some task waited for memory, 0 to 1; where the kernel tells it, and where it
    /// counts (see [`PressureConfig::stall_ratio`]).
    pub stall_ratio: Option<f64>,
    /// The level that follows from it and from what was before.
    pub level: Level,
}

impl PressureMonitor {
    /// Starts the monitor's thread. Memory is looked at once before this returns, so that
    /// [`latest`](Self::latest) has an answer.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`], with the [`ConfigError`] inside, for settings out of bounds; otherwise what the
    /// operating system says when it cannot start a thread.
    pub fn start(config: PressureConfig) -> io::Result<Self> {
        let sampler = SystemSampler::new(config.memory_limit);
        Self::start_with(config, Box::new(sampler))
    }

    /// The same with every file looked for below `root` in the place of `/`, and nothing read from anywhere else: for
    /// tests, which write there what they want the spool to see.
    ///
    /// | below `root` | what is read of it |
    /// |---|---|
    /// | `proc/self/status` | `VmRSS`: the resident memory of the process |
    /// | `proc/meminfo` | `MemTotal`, `MemAvailable`: the machine's memory |
    /// | `proc/pressure/memory` | `some avg10`: stalls of the machine, in percent |
    /// | `proc/self/cgroup` | the process's groups |
    /// | `sys/fs/cgroup/GROUP/` | `memory.current`, `memory.max`, `memory.high`, `memory.stat` (`anon`, `inactive_file`), `memory.pressure`: version 2 |
    /// | `sys/fs/cgroup/memory/GROUP/` | `memory.usage_in_bytes`, `memory.limit_in_bytes`, `memory.stat` (`total_rss`, `total_inactive_file`): version 1 |
    ///
    /// A file that is missing or makes no sense is passed over. They are read anew at each look: put a changed one in
    /// place with a rename, or it may be seen half written.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_below(root: impl Into<PathBuf>, config: PressureConfig) -> io::Result<Self> {
        let sampler = SystemSampler::below(root.into(), config.memory_limit);
        Self::start_with(config, Box::new(sampler))
    }

    pub(super) fn start_with(config: PressureConfig, sampler: Box<dyn Sampler>) -> io::Result<Self> {
        config.validate().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let state = Arc::new(MonitorState::default());
        let mut watch = MonitorThread::new(config, sampler, Arc::clone(&state));
        watch.peek();
        let death = MonitorExit(Arc::clone(&state));
        let thread = thread::Builder::new().name("tide-pressure".to_owned()).spawn(move || {
            let _death = death;
            watch.run();
        });
        let thread = thread.map_err(|error| not_started("tide-pressure", &error))?;
        Ok(Self { handle: Arc::new(Handle { state, thread: Mutex::new(Some(thread)) }) })
    }

    /// The newest reading; `None` where memory cannot be read, while the monitor is turned off, and after its end.
    #[must_use]
    pub fn latest(&self) -> Option<PressureReading> {
        self.handle.state.latest.lock().0
    }

    /// Goes on with other settings, from a look on that is taken at once. With `enabled = false` it looks no more: the
    /// level is normal, the spools go back to their full size, and the thread sleeps until the next call of this.
    ///
    /// After [`shutdown`](Self::shutdown) it does nothing.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] for settings out of bounds. Those of before hold.
    pub fn reconfigure(&self, config: PressureConfig) -> Result<(), ConfigError> {
        config.validate()?;
        self.state().control.lock().config = Some(config);
        self.state().wake.notify_all();
        Ok(())
    }

    /// Ends the thread and waits for that: until it is back from asking the spools for memory, which takes about a second for
    /// each at most. From asynchronous code, call it where blocking is allowed. The second call returns when the first does.
    ///
    /// The spools that are still open go on without a monitor, at the level normal.
    pub fn shutdown(&self) {
        self.handle.stop();
        self.join();
    }

    /// Asks the thread to end.
    pub(super) fn stop(&self) {
        self.handle.stop();
    }

    /// Waits until the thread has ended. Call [`stop`](Self::stop) before.
    pub(super) fn join(&self) {
        let mut thread = self.handle.thread.lock();
        // The last owner of a spool may be the thread itself, for the moment in which it calls the spool. It cannot wait
        // for itself, and is about to end.
        if thread.as_ref().is_none_or(|thread| thread.thread().id() == thread::current().id()) {
            return;
        }
        if thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the memory-pressure monitor panicked; memory was not watched from then on");
        }
    }

    pub(super) fn state(&self) -> &MonitorState {
        &self.handle.state
    }
}

/// Owns the thread. Dropping the last one asks the thread to end and does not wait: a drop must not block.
#[derive(Debug)]
struct Handle {
    state: Arc<MonitorState>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    fn stop(&self) {
        self.state.control.lock().is_stopping = true;
        self.state.wake.notify_all();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the thread and the handles share.
#[derive(Debug, Default)]
pub(super) struct MonitorState {
    control: Mutex<Control>,
    wake: Condvar,
    latest: Mutex<(Option<PressureReading>, Option<MemoryRoom>)>,
    pub(super) spools: Spools,
    has_died: AtomicBool,
}

/// Notes that the thread panicked: its spools go on without anybody who watches memory, and have to know.
struct MonitorExit(Arc<MonitorState>);

impl Drop for MonitorExit {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.has_died.store(true, Ordering::Relaxed);
        }
    }
}

#[derive(Debug, Default)]
struct Control {
    is_stopping: bool,
    /// Settings that the thread has not taken over yet.
    config: Option<PressureConfig>,
}

/// Why the thread's pause is over.
#[derive(Debug)]
pub(super) enum Wait {
    Elapsed,
    Reconfigured(PressureConfig),
    Stopped,
}

impl MonitorState {
    pub(super) fn is_stopping(&self) -> bool {
        self.control.lock().is_stopping
    }

    pub(super) fn has_died(&self) -> bool {
        self.has_died.load(Ordering::Relaxed)
    }

    pub(super) fn publish(&self, reading: Option<PressureReading>, room: Option<MemoryRoom>) {
        *self.latest.lock() = (reading, room);
    }

    pub(super) fn room(&self) -> Option<MemoryRoom> {
        self.latest.lock().1
    }

    /// Another spool has come, which the newest reading does not count yet.
    pub(super) fn note_joined(&self, budget: u64) {
        if let Some(room) = &mut self.latest.lock().1 {
            room.note_joined(budget);
        }
    }

    /// Waits for `pause`, or without end where there is none.
    pub(super) fn wait(&self, pause: Option<Duration>) -> Wait {
        let end = pause.and_then(|pause| Instant::now().checked_add(pause));
        let mut control = self.control.lock();
        loop {
            if control.is_stopping {
                return Wait::Stopped;
            }
            if let Some(config) = control.config.take() {
                return Wait::Reconfigured(config);
            }
            match end {
                None => self.wake.wait(&mut control),
                Some(end) => {
                    if Instant::now() >= end {
                        return Wait::Elapsed;
                    }
                    self.wake.wait_until(&mut control, end);
                }
            }
        }
    }
}
