//! Starts the threads of the spool. Each has a name, and is joined by `shutdown` or by the call
//! that started it.
//!
//! A thread that hangs in a system call can't be ended from outside. It holds the spool's
//! directory, and with it the lock, as long as it exists. So no other process can write there
//! before its last write.
//!
//! # Reserved threads
//!
//! At a limit on threads, an opening must fail before it has started anything. So it creates all
//! threads first ([`Starter::reserve`]), and each of them waits for its job. The index engine
//! creates its own threads, and may hang if it can't. For these, spare threads are created, and
//! ended just before it is opened.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::directory::Directory;
use crate::mailbox::Mailbox;
use crate::thread_limit::not_started;

/// The names of a spool's threads. The kernel keeps 15 characters of a name.
pub(in crate::tiered) mod names {
    pub(in crate::tiered) const COMMIT: &str = "tide-commit";
    pub(in crate::tiered) const SYNC: &str = "tide-sync";
    pub(in crate::tiered) const TIMER: &str = "tide-timer";
    pub(in crate::tiered) const CHECKPOINT: &str = "tide-checkpoint";
    pub(in crate::tiered) const VERIFY: &str = "tide-verify";
    pub(in crate::tiered) const PREWRITE: &str = "tide-prewrite";
    pub(in crate::tiered) const HEALTH: &str = "tide-health";
    pub(in crate::tiered) const PROBE: &str = "tide-probe";
    pub(in crate::tiered) const BALANCER: &str = "tide-balancer";
    /// Writes the manifest and the fingerprint of the index's files at the end.
    pub(in crate::tiered) const LAST_WRITER: &str = "tide-manifest";
    /// Reserved for threads that the index engine and the monitor start, and ended before these are
    /// started.
    pub(in crate::tiered) const SPARE: &str = "tide-spare";
    /// An enumeration. Started on request.
    pub(in crate::tiered) const ENUMERATE: &str = "tide-enum";
    pub(in crate::tiered) const OPEN: &str = "tide-open";
    pub(in crate::tiered) const END: &str = "tide-end";

    /// The names of the threads that every opening starts once.
    pub(in crate::tiered) const OF_A_SPOOL: [&str; 9] =
        [COMMIT, SYNC, TIMER, CHECKPOINT, VERIFY, PREWRITE, HEALTH, PROBE, BALANCER];

    pub(in crate::tiered) fn reader(number: impl std::fmt::Display) -> String {
        format!("tide-read-{number}")
    }
}

/// The longest wait for the kernel to remove a thread that was joined.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);
const RELEASE_PAUSE: Duration = Duration::from_micros(100);

/// Starts threads, and sets a flag when one of them panics.
#[derive(Debug)]
pub(crate) struct Starter {
    dead: Arc<AtomicBool>,
    /// Threads without a job yet. They end when this is dropped.
    reserved: Mutex<Vec<Reserved>>,
}

/// A thread that waits for its job.
#[derive(Debug)]
struct Reserved {
    name: String,
    /// Ends the thread if it is dropped without a job.
    job: SyncSender<ThreadJob>,
    handle: JoinHandle<()>,
    /// The thread's folder in `/proc`, once it runs.
    task: Arc<OnceLock<Option<PathBuf>>>,
}

type ThreadJob = Box<dyn FnOnce() + Send>;

impl Starter {
    /// `dead` is set when a thread panics.
    pub(crate) fn new(dead: Arc<AtomicBool>) -> Self {
        Self { dead, reserved: Mutex::default() }
    }

    /// Creates the threads `names` for later calls of [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// A thread can't be created.
    pub(crate) fn reserve(&self, names: impl IntoIterator<Item = String>) -> io::Result<()> {
        names.into_iter().try_for_each(|name| {
            let created = create(name)?;
            self.reserved.lock().push(created);
            Ok(())
        })
    }

    /// Ends the reserved threads with this name. When it returns, others can be started in their
    /// place.
    pub(crate) fn release(&self, name: &str) {
        let released: Vec<Reserved> =
            self.reserved.lock().extract_if(.., |thread| thread.name == name).collect();
        let tasks: Vec<_> = released.iter().map(|thread| thread.task.clone()).collect();
        end(released);
        // A joined thread counts towards the limit until the kernel has removed it.
        let until = Instant::now() + RELEASE_PATIENCE;
        while tasks.iter().any(|task| is_running(task)) && Instant::now() < until {
            std::thread::sleep(RELEASE_PAUSE);
        }
    }

    /// Starts `run` as the thread `name`, which has at most 15 characters. The thread keeps the
    /// directory locked.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        name: &str,
        directory: &Arc<Directory>,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Thread<T>> {
        let directory = directory.clone();
        self.start_free(name, move || {
            let _directory = directory;
            run()
        })
    }

    /// Starts a thread that accesses no file. It does not keep the directory locked.
    pub(crate) fn start_free<T: Send + 'static>(
        &self,
        name: &str,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Thread<T>> {
        let (death, end) = (PanicFlag(self.dead.clone()), Arc::<ThreadEnd<T>>::default());
        let at_end = AtEnd(end.clone());
        let job: ThreadJob = Box::new(move || {
            let at_end = at_end;
            let _death = death;
            let result = run();
            *at_end.0.result.lock() = Some(result);
        });
        let reserved = {
            let mut reserved = self.reserved.lock();
            let found = reserved.iter().position(|thread| thread.name == name);
            found.map(|found| reserved.swap_remove(found))
        };
        let Reserved { job: sender, handle, .. } = match reserved {
            Some(reserved) => reserved,
            None => create(name.to_owned())?,
        };
        // Never blocks: the channel has room for the only job.
        let _ = sender.send(job);
        Ok(Thread { handle, end })
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        end(self.reserved.get_mut().drain(..));
    }
}

fn create(name: String) -> io::Result<Reserved> {
    let (job, wait) = sync_channel::<ThreadJob>(1);
    let task = Arc::<OnceLock<Option<PathBuf>>>::default();
    let own = task.clone();
    debug_assert!(name.len() <= 15, "the kernel cuts the name {name}");
    let run = move || {
        let _ = own.set(own_task());
        if let Ok(job) = wait.recv() {
            job();
        }
    };
    let created = Builder::new().name(name.clone()).spawn(run);
    let handle = created.map_err(|error| not_started(&name, &error))?;
    Ok(Reserved { name, job, handle, task })
}

/// Ends reserved threads without a job, and returns when they have ended.
fn end(threads: impl IntoIterator<Item = Reserved>) {
    let handles: Vec<JoinHandle<()>> = threads.into_iter().map(|thread| thread.handle).collect();
    for handle in handles {
        // Cannot fail: the thread ran no job that could panic.
        let _ = handle.join();
    }
}

/// Returns the folder of the calling thread in `/proc`. rustix can return its id, but with that
/// feature it reads the vDSO, which valgrind hides.
fn own_task() -> Option<PathBuf> {
    Some(Path::new("/proc").join(std::fs::read_link("/proc/thread-self").ok()?))
}

/// True while the kernel lists a thread.
fn is_running(task: &OnceLock<Option<PathBuf>>) -> bool {
    task.get().and_then(Option::as_ref).is_some_and(|task| task.exists())
}

/// Runs `work`, which may block, on a thread of its own, and returns its result. Works on any
/// executor.
///
/// If this future is dropped, the thread finishes its work and drops the result.
///
/// # Errors
///
/// The thread could not be started, and `work` did not run; or `work` panicked.
pub(in crate::tiered) async fn aside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, receiver) = oneshot::channel();
    let thread = Builder::new().name(name.to_owned()).spawn(move || {
        // The caller may be gone.
        drop(done.send(work()));
    });
    let thread = thread.map_err(|error| not_started(name, &error))?;
    let result = receiver.await;
    // Sending is the last step of the thread.
    let ended = thread.join();
    match (result, ended) {
        (Ok(result), Ok(())) => Ok(result),
        _ => Err(io::Error::other(format!("{name} panicked: see the log"))),
    }
}

/// A running thread that can be joined with a deadline.
#[derive(Debug)]
pub(crate) struct Thread<T> {
    handle: JoinHandle<()>,
    end: Arc<ThreadEnd<T>>,
}

#[derive(Debug)]
struct ThreadEnd<T> {
    reached: Mailbox<bool>,
    /// The return value of the thread.
    result: Mutex<Option<T>>,
}

impl<T> Default for ThreadEnd<T> {
    fn default() -> Self {
        Self { reached: Mailbox::default(), result: Mutex::default() }
    }
}

/// Signals the thread's end when it is dropped, which is the last step of the thread.
struct AtEnd<T>(Arc<ThreadEnd<T>>);

impl<T> Drop for AtEnd<T> {
    fn drop(&mut self) {
        self.0.reached.post(|reached| *reached = true);
    }
}

impl<T> Thread<T> {
    pub(crate) fn name(&self) -> String {
        self.handle.thread().name().unwrap_or("a thread").to_owned()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits for the thread's end, at most until `by`. `None`: the thread hangs.
    pub(crate) fn join_by(self, by: Instant) -> Option<std::thread::Result<T>> {
        self.end.reached.wait_for(by, |reached| *reached).then(|| {
            self.handle.join()?;
            // A thread that did not panic has stored its result.
            self.end.result.lock().take().ok_or_else(|| Box::new("no result") as Box<dyn Any + Send>)
        })
    }
}

/// Sets the flag when a panicking thread drops it.
struct PanicFlag(Arc<AtomicBool>);

impl Drop for PanicFlag {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_hangs_keeps_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Arc::new(Directory::open_or_create(dir.path()).unwrap());
        let starter = Starter::new(Arc::default());
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let hangs = starter.start("hangs", &directory, move || wait.recv().is_ok()).unwrap();
        let ends = starter.start("ends", &directory, || 7).unwrap();
        assert_eq!(ends.join_by(Instant::now() + Duration::from_secs(60)).unwrap().unwrap(), 7);
        let held = Arc::downgrade(&directory);
        drop(directory);
        assert!(hangs.join_by(Instant::now()).is_none());
        assert!(held.upgrade().is_some(), "the lock was given up");
        release.send(()).unwrap();
        while held.upgrade().is_some() {
            std::thread::yield_now();
        }
    }

    /// A shutdown waited for another spool's thread of the same name, for as long as it waits at
    /// most.
    #[test]
    fn a_released_thread_is_not_mistaken_for_another_of_its_name() {
        let [released, other] = [(); 2].map(|()| create("tide-test".to_owned()).unwrap());
        let [task, other_task] = [&released, &other].map(|thread| thread.task.clone());
        end([released]);
        while is_running(&task) || !is_running(&other_task) {
            std::thread::yield_now();
        }
        end([other]);
    }
}
