//! The thread that watches memory.

use std::io;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing::{debug, error, info, warn};

use super::level::Level;
use super::pacer::Pacer;
use super::sample::{Sample, Sampler};
use crate::PressureConfig;

/// What can give memory back. Called from the monitor's thread, which does nothing else meanwhile.
pub(crate) trait Relief: Send + Sync {
    /// Gives back memory: about `excess_bytes`, or all that can go at [`Level::Critical`]. Returns the bytes by
    /// which the accounted memory fell, negative where it grew.
    fn relieve(&self, level: Level, excess_bytes: u64) -> isize;

    /// The level changed. Comes before the first `relieve` at that level.
    fn level_changed(&self, level: Level);

    /// Memory is normal again after there was pressure. Comes at each look from then on: let the cache grow by a
    /// small step each time, up to its size of before.
    fn memory_returned(&self);
}

/// Owns the thread. Dropping it asks the thread to end and does not wait.
#[derive(Debug)]
pub(crate) struct Monitor {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stopping: Mutex<bool>,
    wake: Condvar,
    latest: Mutex<Option<Sample>>,
}

impl Monitor {
    /// Starts the thread `tidespool-pressure`. It does not keep `relief` alive: it ends when that is gone.
    ///
    /// # Errors
    ///
    /// The operating system cannot start a thread.
    pub(crate) fn start(
        config: &PressureConfig,
        sampler: Box<dyn Sampler>,
        relief: &Arc<dyn Relief>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watch = Watch {
            pacer: Pacer::new(config),
            interval: config.interval,
            sampler,
            relief: Arc::downgrade(relief),
            shared: Arc::clone(&shared),
            is_blind: false,
        };
        let thread =
            thread::Builder::new().name("tidespool-pressure".to_owned()).spawn(move || watch.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The newest reading; `None` before the first one and where memory cannot be read.
    pub(crate) fn latest(&self) -> Option<Sample> {
        *self.shared.latest.lock()
    }

    /// Asks the thread to end, which it does as soon as it is not inside of [`Relief`].
    pub(crate) fn stop(&self) {
        *self.shared.stopping.lock() = true;
        self.shared.wake.notify_all();
    }

    /// Waits until the thread has ended. Call [`stop`](Self::stop) before. The second call returns at once.
    pub(crate) fn join(&self) {
        let Some(thread) = self.thread.lock().take() else { return };
        // The last owner of the spool may be the thread itself, for the moment in which it calls the spool. It cannot
        // wait for itself, and is about to end.
        if thread.thread().id() == thread::current().id() {
            return;
        }
        if thread.join().is_err() {
            error!("the memory-pressure monitor panicked; memory was not watched from then on");
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the thread works with.
struct Watch {
    pacer: Pacer,
    interval: Duration,
    sampler: Box<dyn Sampler>,
    relief: Weak<dyn Relief>,
    shared: Arc<Shared>,
    /// The last reading failed: told once.
    is_blind: bool,
}

impl Watch {
    fn run(mut self) {
        loop {
            let Some(relief) = self.relief.upgrade() else { return };
            self.look(&*relief);
            // Not held while waiting: the spool must be able to go.
            drop(relief);
            if self.shared.wait(self.interval) {
                return;
            }
        }
    }

    fn look(&mut self, relief: &dyn Relief) {
        let sample = self.sampler.sample();
        *self.shared.latest.lock() = sample;
        let Some(sample) = sample else {
            if !self.is_blind {
                warn!("memory use cannot be read: the memory-pressure monitor does nothing until it can");
            }
            self.is_blind = true;
            return;
        };
        self.is_blind = false;
        let step = self.pacer.observe(Instant::now(), &sample);
        if let Some(level) = step.level_changed {
            let Sample { used, limit, source, .. } = sample;
            info!(?level, used, limit, ?source, "memory pressure changed");
            relief.level_changed(level);
        }
        if let Some((level, excess)) = step.relieve {
            let freed = relief.relieve(level, excess);
            debug!(?level, excess, freed, "gave memory back");
            self.pacer.relieved(Instant::now(), freed);
        }
        if step.memory_returned {
            relief.memory_returned();
        }
    }
}

impl Shared {
    /// Waits for `interval`, or until it is time to end. Returns whether it is.
    fn wait(&self, interval: Duration) -> bool {
        let end = Instant::now() + interval;
        let mut stopping = self.stopping.lock();
        while !*stopping {
            if self.wake.wait_until(&mut stopping, end).timed_out() {
                break;
            }
        }
        *stopping
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::super::sample::Source;
    use super::*;

    /// Never reached where the code is right: it only turns a hang into a failure.
    const HANG: Duration = Duration::from_secs(30);

    #[derive(Debug, PartialEq, Eq)]
    enum Event {
        Changed(Level),
        Relieved(Level, u64),
        Returned,
        Gone,
    }

    struct Recorder(Mutex<Sender<Event>>);

    impl Recorder {
        fn send(&self, event: Event) {
            let _ = self.0.lock().send(event);
        }
    }

    impl Drop for Recorder {
        fn drop(&mut self) {
            self.send(Event::Gone);
        }
    }

    impl Relief for Recorder {
        fn relieve(&self, level: Level, excess_bytes: u64) -> isize {
            self.send(Event::Relieved(level, excess_bytes));
            1
        }
        fn level_changed(&self, level: Level) {
            self.send(Event::Changed(level));
        }
        fn memory_returned(&self) {
            self.send(Event::Returned);
        }
    }

    /// Blocks until the test says what memory looks like. When the test is done with it, it sees nothing more.
    struct Scripted(Receiver<Option<u64>>);

    impl Sampler for Scripted {
        fn sample(&mut self) -> Option<Sample> {
            let used = self.0.recv().ok()??;
            Some(Sample { used, limit: 1_000, source: Source::Process, resident: Some(5), stall_ratio: None })
        }
    }

    struct Rig {
        monitor: Monitor,
        relief: Arc<dyn Relief>,
        samples: Sender<Option<u64>>,
        events: Receiver<Event>,
    }

    fn rig(interval: Duration) -> Rig {
        let config = PressureConfig::default().interval(interval).low(0.8).critical(0.9).hysteresis(0.1);
        let (samples, script) = channel();
        let (recorder, events) = channel();
        let relief: Arc<dyn Relief> = Arc::new(Recorder(Mutex::new(recorder)));
        let monitor = Monitor::start(&config, Box::new(Scripted(script)), &relief).unwrap();
        Rig { monitor, relief, samples, events }
    }

    impl Rig {
        #[track_caller]
        fn expect(&self, events: &[Event]) {
            for expected in events {
                assert_eq!(&self.events.recv_timeout(HANG).unwrap(), expected);
            }
        }
    }

    /// Joins on another thread, so that a monitor that does not end fails the test instead of hanging it.
    #[track_caller]
    fn must_end(monitor: Monitor) {
        let (done, ended) = channel();
        thread::spawn(move || {
            monitor.join();
            let _ = done.send(());
        });
        assert_eq!(ended.recv_timeout(HANG), Ok(()), "the monitor did not end");
    }

    #[test]
    fn pressure_comes_is_relieved_and_goes() {
        let rig = rig(Duration::from_millis(1));
        rig.samples.send(Some(850)).unwrap();
        rig.expect(&[Event::Changed(Level::Low), Event::Relieved(Level::Low, 150)]);
        rig.samples.send(Some(950)).unwrap();
        rig.expect(&[Event::Changed(Level::Critical), Event::Relieved(Level::Critical, 250)]);
        // A reading that fails changes nothing.
        rig.samples.send(None).unwrap();
        rig.samples.send(Some(900)).unwrap();
        rig.expect(&[Event::Relieved(Level::Critical, 200)]);
        assert_eq!(rig.monitor.latest().unwrap().used, 900);
        rig.samples.send(Some(100)).unwrap();
        rig.expect(&[Event::Changed(Level::Normal), Event::Returned]);
        rig.monitor.stop();
        drop(rig.samples);
        must_end(rig.monitor);
    }

    #[test]
    fn stop_does_not_wait_for_the_interval() {
        let rig = rig(Duration::from_secs(3_600));
        rig.samples.send(Some(850)).unwrap();
        rig.expect(&[Event::Changed(Level::Low), Event::Relieved(Level::Low, 150)]);
        rig.monitor.stop();
        must_end(rig.monitor);
    }

    #[test]
    fn join_may_be_called_twice() {
        let rig = rig(Duration::from_secs(3_600));
        drop(rig.samples);
        rig.monitor.stop();
        rig.monitor.join();
        rig.monitor.join();
    }

    #[test]
    fn the_monitor_does_not_keep_the_spool_alive_while_it_waits() {
        let mut rig = rig(Duration::from_secs(3_600));
        rig.samples.send(Some(850)).unwrap();
        rig.expect(&[Event::Changed(Level::Low), Event::Relieved(Level::Low, 150)]);
        rig.relief = Arc::new(Recorder(Mutex::new(channel().0)));
        rig.expect(&[Event::Gone]);
        rig.monitor.stop();
        must_end(rig.monitor);
    }

    #[test]
    fn the_monitor_ends_with_the_spool() {
        let Rig { monitor, relief, samples, events } = rig(Duration::from_millis(1));
        samples.send(Some(100)).unwrap();
        drop(relief);
        drop(samples);
        must_end(monitor);
        assert_eq!(events.recv_timeout(HANG), Ok(Event::Gone));
    }

    #[test]
    fn dropping_the_handle_ends_the_thread() {
        let Rig { monitor, relief, samples, events } = rig(Duration::from_secs(3_600));
        samples.send(Some(850)).unwrap();
        assert_eq!(events.recv_timeout(HANG), Ok(Event::Changed(Level::Low)));
        let thread = monitor.thread.lock().take().unwrap();
        drop(monitor);
        let (done, ended) = channel();
        thread::spawn(move || done.send(thread.join().is_ok()));
        assert_eq!(ended.recv_timeout(HANG), Ok(true));
        drop(relief);
    }
}
