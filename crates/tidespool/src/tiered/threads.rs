//! Every thread of the spool is started here, has a name, and is joined by `shutdown`.
//!
//! A thread that hangs in a call to the system can't be ended from outside. It holds the spool's directory, and with it the lock, for as
//! long as it lives: nobody else may write there before it has written its last.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::directory::Directory;

/// Starts threads, and notes when one of them dies.
#[derive(Debug, Clone)]
pub(crate) struct Starter {
    dead: Arc<AtomicBool>,
}

impl Starter {
    /// `dead` is set when a thread panics.
    pub(crate) fn new(dead: Arc<AtomicBool>) -> Self {
        Self { dead }
    }

    /// Starts `run` as the thread `name` (at most 15 characters are shown by the system's tools).
    pub(crate) fn start<T: Send + 'static>(
        &self,
        name: &str,
        directory: &Arc<Directory>,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Thread<T>> {
        let (death, end) = (Death(self.dead.clone()), Arc::<End>::default());
        let (directory, at_end) = (directory.clone(), AtEnd(end.clone()));
        let handle = Builder::new().name(name.to_owned()).spawn(move || {
            let _at_end = at_end;
            let _directory = directory;
            let _death = death;
            run()
        })?;
        Ok(Thread { handle, end })
    }
}

/// A running thread, and how to wait for its end.
#[derive(Debug)]
pub(crate) struct Thread<T> {
    handle: JoinHandle<T>,
    end: Arc<End>,
}

#[derive(Debug, Default)]
struct End {
    reached: Mutex<bool>,
    wake: Condvar,
}

/// Tells of the thread's end when it is dropped, which is the last that happens there.
struct AtEnd(Arc<End>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        *self.0.reached.lock() = true;
        self.0.wake.notify_all();
    }
}

impl<T> Thread<T> {
    pub(crate) fn name(&self) -> String {
        self.handle.thread().name().unwrap_or("a thread").to_owned()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits for the end, at most until `by`. `None`: it hangs.
    pub(crate) fn join_by(self, by: Instant) -> Option<std::thread::Result<T>> {
        let mut reached = self.end.reached.lock();
        while !*reached && !self.end.wake.wait_until(&mut reached, by).timed_out() {}
        let has_ended = *reached;
        drop(reached);
        has_ended.then(|| self.handle.join())
    }
}

/// Notes the death of the thread that drops it while panicking.
struct Death(Arc<AtomicBool>);

impl Drop for Death {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
}
