//! Every thread of the spool is started here, has a name, and is joined by `shutdown`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

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
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let death = Death(self.dead.clone());
        Builder::new().name(name.to_owned()).spawn(move || {
            let _death = death;
            run()
        })
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
