//! The handle of the monitor's thread.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::error;

use super::sample::{Sampler, SystemSampler};
use super::state::{MonitorExit, MonitorState};
use super::watch::{INTERVAL, MonitorThread};
use crate::{InvalidSetting, PressureConfig, Reading};

/// Samples memory use, and asks the registered clients to free memory when it is short.
///
/// A process should have one monitor for all its clients: see [`register`](Self::register). A
/// monitor samples once for all of them. It divides an excess in proportion to the memory that each
/// client can free. A client can also [start its own](super::Registration::own).
///
/// The monitor has its own thread, `tide-pressure`. Clones are handles of the same monitor. It ends
/// with [`shutdown`](Self::shutdown), or when the last handle is dropped. Each registration holds a
/// handle. When the monitor ends or is turned off, it sets the level of its clients to normal.
///
/// ```
/// use tidespool_pressure::{PressureConfig, PressureMonitor};
///
/// let monitor = PressureMonitor::start(PressureConfig::default().memory_limit(4 << 30))?;
/// if let Some(now) = monitor.latest() {
///     let source = now.source.name();
///     println!("{} of {} bytes ({source}): {:?}", now.used, now.limit, now.level);
/// }
/// monitor.shutdown();
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PressureMonitor {
    handle: Arc<Handle>,
}

impl PressureMonitor {
    /// Starts the monitor's thread. Takes a first sample before it returns, for
    /// [`latest`](Self::latest).
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] for settings out of bounds, with the [`InvalidSetting`]
    /// inside. Otherwise the error of the operating system if it cannot start a thread.
    pub fn start(config: PressureConfig) -> io::Result<Self> {
        Self::start_below("/", INTERVAL, config)
    }

    /// Like [`start`](Self::start), but reads every file below `root` instead of `/`, and nothing
    /// else, and samples every `interval`. For tests, which write the files that the monitor shall
    /// read.
    ///
    /// | below `root` | fields |
    /// |---|---|
    /// | `proc/self/status` | `VmRSS`: the resident memory of the process |
    /// | `proc/meminfo` | `MemTotal`, `MemAvailable`: the machine's memory |
    /// | `proc/pressure/memory` | `some avg10`: stalls of the machine, in percent |
    /// | `proc/self/cgroup` | the process's groups |
    /// | `sys/fs/cgroup/GROUP/` | `memory.current`, `memory.max`, `memory.high`, `memory.stat` (`anon`, `inactive_file`), `memory.pressure`: version 2 |
    /// | `sys/fs/cgroup/memory/GROUP/` | `memory.usage_in_bytes`, `memory.limit_in_bytes`, `memory.stat` (`total_rss`, `total_inactive_file`): version 1 |
    ///
    /// A missing or malformed file is skipped. Every sample reads all files again. Replace a
    /// changed file with a rename, or a sample may read a part of it.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_below(
        root: impl Into<PathBuf>,
        interval: Duration,
        config: PressureConfig,
    ) -> io::Result<Self> {
        let sampler = SystemSampler::below(root.into(), config.memory_limit);
        Self::start_with(config, interval, Box::new(sampler))
    }

    pub(super) fn start_with(
        config: PressureConfig,
        interval: Duration,
        sampler: Box<dyn Sampler>,
    ) -> io::Result<Self> {
        config.validate().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let state = Arc::new(MonitorState::default());
        let mut watch = MonitorThread::new(config, interval, sampler, Arc::clone(&state));
        watch.peek();
        let exit = MonitorExit(Arc::clone(&state));
        let thread = thread::Builder::new().name("tide-pressure".to_owned()).spawn(move || {
            let _exit = exit;
            watch.run();
        });
        let thread = thread.map_err(|error| not_started(&error))?;
        Ok(Self { handle: Arc::new(Handle { state, thread: Mutex::new(Some(thread)) }) })
    }

    /// The latest reading. `None` if memory cannot be read, while the monitor is turned off, and
    /// after its end.
    #[must_use]
    pub fn latest(&self) -> Option<Reading> {
        self.handle.state.latest()
    }

    /// Applies other settings, and takes a sample at once. With `enabled = false` sampling stops:
    /// the level is normal, the clients return to their full size, and the thread sleeps until the
    /// next call.
    ///
    /// Does nothing after [`shutdown`](Self::shutdown).
    ///
    /// # Errors
    ///
    /// A setting is out of bounds. The previous settings stay in force.
    pub fn reconfigure(&self, config: PressureConfig) -> Result<(), InvalidSetting> {
        config.validate()?;
        self.state().reconfigure(config);
        Ok(())
    }

    /// Ends the thread and waits until it has ended. A call of a client in progress is completed
    /// first, which takes about a second per client at most. This blocks: do not call it on an
    /// asynchronous worker thread. Concurrent calls return at the same time.
    ///
    /// Clients that are still registered continue without a monitor, at the level normal.
    pub fn shutdown(&self) {
        self.stop();
        self.join();
    }

    /// Requests the end of the thread.
    pub(super) fn stop(&self) {
        self.state().stop();
    }

    /// Waits until the thread has ended. Call [`stop`](Self::stop) before.
    pub(super) fn join(&self) {
        let mut thread = self.handle.thread.lock();
        // The thread itself may be the last owner of a client while it calls the client. It cannot
        // join itself, and is about to end.
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

/// Owns the thread. Dropping the last one requests its end without waiting: a drop must not block.
#[derive(Debug)]
struct Handle {
    state: Arc<MonitorState>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.state.stop();
    }
}

/// Adds to `error` the limits that usually are the cause.
fn not_started(error: &io::Error) -> io::Error {
    let what = format!(
        "the thread tide-pressure can't be started: {error}; raise the limit on threads (RLIMIT_NPROC, \
         which `ulimit -u` shows; pids.max of the control group), or the limit on memory"
    );
    io::Error::new(error.kind(), what)
}
