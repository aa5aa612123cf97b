//! Tests of the thread: scripted samples go in, recorded calls of the clients come out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::sample::{Sample, Sampler};
use super::{PressureMonitor, Registration};
use crate::{Level, PressureConfig, Relief, Source};

/// A time limit that turns a hang into a failure.
const HANG: Duration = Duration::from_secs(30);

#[derive(Debug, PartialEq, Eq)]
enum MonitorEvent {
    Changed(Level),
    Relieved(Level, u64),
    Returned,
    Gone,
}

/// A client that records the calls of the monitor.
struct Recorder {
    events: Mutex<Sender<MonitorEvent>>,
    reclaimable: AtomicU64,
    /// Steps of growth that are left.
    smaller_by: AtomicU64,
    /// While it is locked, `relieve` does not return.
    gate: Mutex<()>,
}

impl Recorder {
    fn send(&self, event: MonitorEvent) {
        let _ = self.events.lock().send(event);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.send(MonitorEvent::Gone);
    }
}

impl Relief for Recorder {
    fn relieve(&self, level: Level, excess_bytes: u64) -> isize {
        self.send(MonitorEvent::Relieved(level, excess_bytes));
        drop(self.gate.lock());
        isize::try_from(excess_bytes).unwrap()
    }
    fn reclaimable_bytes(&self) -> u64 {
        self.reclaimable.load(Ordering::Relaxed)
    }
    fn level_changed(&self, level: Level) {
        self.send(MonitorEvent::Changed(level));
    }
    fn memory_returned(&self) -> bool {
        self.send(MonitorEvent::Returned);
        let before = self.smaller_by.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        before.is_ok_and(|before| before > 1)
    }
}

struct TestClient {
    recorder: Arc<Recorder>,
    relief: Arc<dyn Relief>,
    events: Receiver<MonitorEvent>,
    registration: Registration,
}

fn client(monitor: &PressureMonitor, reclaimable: u64, smaller_by: u64) -> TestClient {
    let (sender, events) = channel();
    let recorder = Arc::new(Recorder {
        events: Mutex::new(sender),
        reclaimable: reclaimable.into(),
        smaller_by: smaller_by.into(),
        gate: Mutex::default(),
    });
    let relief: Arc<dyn Relief> = recorder.clone();
    let registration = monitor.register(&relief).unwrap();
    TestClient { recorder, relief, events, registration }
}

impl TestClient {
    #[track_caller]
    fn expect(&self, events: &[MonitorEvent]) {
        for expected in events {
            assert_eq!(&self.events.recv_timeout(HANG).unwrap(), expected);
        }
    }

    #[track_caller]
    fn expect_nothing(&self) {
        assert!(self.events.try_recv().is_err());
    }
}

/// Blocks until the test sends a sample: the use out of 1000, and the stall ratio.
struct Scripted {
    script: Receiver<Option<(u64, f64)>>,
    /// Notified of each sample taken.
    taken: Sender<()>,
    limit: u64,
}

impl Sampler for Scripted {
    fn sample(&mut self) -> Option<Sample> {
        let next = self.script.recv().ok();
        let _ = self.taken.send(());
        let (used, stalls) = next??;
        let (resident, stall_ratio) = (Some(5), Some(stalls));
        Some(Sample { used, limit: self.limit, source: Source::Process, resident, stall_ratio })
    }

    fn set_memory_limit(&mut self, limit: Option<u64>) {
        self.limit = limit.map_or(1_000, |limit| limit >> 20);
    }
}

struct MonitorRig {
    monitor: PressureMonitor,
    samples: Sender<Option<(u64, f64)>>,
    taken: Receiver<()>,
}

/// Relief aims at 70 % of the limit.
fn config() -> PressureConfig {
    PressureConfig::default().low(0.75).critical(0.9)
}

/// The first two samples, at the start and of the thread, have no memory in use.
fn rig(interval: Duration) -> MonitorRig {
    let (samples, script) = channel();
    let (take, taken) = channel();
    for _ in 0..2 {
        samples.send(Some((0, 0.0))).unwrap();
    }
    let sampler = Scripted { script, taken: take, limit: 1_000 };
    let monitor = PressureMonitor::start_with(config(), interval, Box::new(sampler)).unwrap();
    for _ in 0..2 {
        taken.recv_timeout(HANG).unwrap();
    }
    MonitorRig { monitor, samples, taken }
}

impl MonitorRig {
    fn used(&self, used: u64) {
        self.samples.send(Some((used, 0.0))).unwrap();
    }

    /// Like [`used`](Self::used) for several samples. Waits until the last one is taken.
    fn seen(&self, used: &[u64]) {
        for used in used {
            self.used(*used);
            self.taken.recv_timeout(HANG).unwrap();
        }
    }

    /// Ends the monitor on another thread, so that a hang fails the test.
    #[track_caller]
    fn must_end(self) {
        let Self { monitor, samples, taken: _taken } = self;
        let (done, ended) = channel();
        thread::spawn(move || {
            // The thread may be waiting for a sample.
            monitor.stop();
            drop(samples);
            monitor.shutdown();
            let _ = done.send(());
        });
        assert_eq!(ended.recv_timeout(HANG), Ok(()), "the monitor did not end");
    }
}

const TICK: Duration = Duration::from_millis(10);
const LONG_INTERVAL: Duration = Duration::from_secs(60);

#[test]
fn pressure_begins_is_relieved_and_ends() {
    let rig = rig(TICK);
    let client = client(&rig.monitor, 500, 2);
    rig.used(850);
    client.expect(&[MonitorEvent::Changed(Level::Low), MonitorEvent::Relieved(Level::Low, 150)]);
    rig.used(950);
    client.expect(&[MonitorEvent::Changed(Level::Critical), MonitorEvent::Relieved(Level::Critical, 250)]);
    // A failed sample changes nothing.
    rig.samples.send(None).unwrap();
    rig.used(900);
    client.expect(&[MonitorEvent::Relieved(Level::Critical, 200)]);
    let latest = rig.monitor.latest().unwrap();
    assert_eq!((latest.used, latest.level, latest.resident), (900, Level::Critical, Some(5)));
    rig.used(100);
    client.expect(&[MonitorEvent::Changed(Level::Normal)]);
    for _ in 0..100 {
        rig.used(100);
    }
    client.expect(&[MonitorEvent::Returned, MonitorEvent::Returned]);
    while rig.taken.try_recv().is_ok() {}
    rig.seen(&[100; 20]);
    client.expect_nothing();
    rig.must_end();
}

#[test]
fn several_clients_share_the_excess_by_their_reclaimable_bytes() {
    let rig = rig(TICK);
    let clients = [client(&rig.monitor, 300, 0), client(&rig.monitor, 100, 0), client(&rig.monitor, 0, 0)];
    rig.used(860);
    clients[0].expect(&[MonitorEvent::Changed(Level::Low), MonitorEvent::Relieved(Level::Low, 120)]);
    clients[1].expect(&[MonitorEvent::Changed(Level::Low), MonitorEvent::Relieved(Level::Low, 40)]);
    clients[2].expect(&[MonitorEvent::Changed(Level::Low)]);
    // One client leaves: the others get its share.
    let [first, second, third] = clients;
    first.registration.leave();
    assert!(first.registration.leave_by(Instant::now() + HANG));
    rig.used(860);
    second.expect(&[MonitorEvent::Relieved(Level::Low, 160)]);
    // A client registers during pressure.
    let late = client(&rig.monitor, 300, 0);
    rig.used(860);
    late.expect(&[MonitorEvent::Changed(Level::Low), MonitorEvent::Relieved(Level::Low, 120)]);
    second.expect(&[MonitorEvent::Relieved(Level::Low, 40)]);
    first.expect_nothing();
    third.expect_nothing();
    rig.must_end();
    late.expect(&[MonitorEvent::Changed(Level::Normal)]);
}

#[test]
fn stalls_request_a_part_of_the_reclaimable_memory() {
    let rig = rig(TICK);
    let client = client(&rig.monitor, 400, 0);
    rig.samples.send(Some((100, 0.3))).unwrap();
    client.expect(&[MonitorEvent::Changed(Level::Low), MonitorEvent::Relieved(Level::Low, 50)]);
    rig.used(100);
    client.expect(&[MonitorEvent::Changed(Level::Normal)]);
    rig.must_end();
}

#[test]
fn new_settings_apply_at_once_and_disabling_restores_normal() {
    let rig = rig(LONG_INTERVAL);
    let client = client(&rig.monitor, 500, 3);
    // The thread sleeps for about two seconds now. The new settings wake it.
    rig.used(600);
    rig.monitor.reconfigure(config().low(0.45)).unwrap();
    client.expect(&[MonitorEvent::Changed(Level::Low), MonitorEvent::Relieved(Level::Low, 200)]);
    // 600 of 640 instead of 1000.
    rig.used(600);
    rig.monitor.reconfigure(config().memory_limit(640 << 20)).unwrap();
    client.expect(&[MonitorEvent::Changed(Level::Critical), MonitorEvent::Relieved(Level::Critical, 152)]);
    let refused = rig.monitor.reconfigure(config().low(2.0)).unwrap_err();
    assert!(refused.to_string().starts_with("pressure.low = 2 "), "{refused}");
    rig.monitor.reconfigure(config().enabled(false)).unwrap();
    let returned = || MonitorEvent::Returned;
    client.expect(&[MonitorEvent::Changed(Level::Normal), returned(), returned(), returned()]);
    assert_eq!(rig.monitor.latest(), None);
    rig.used(950);
    rig.monitor.reconfigure(config()).unwrap();
    client.expect(&[MonitorEvent::Changed(Level::Critical), MonitorEvent::Relieved(Level::Critical, 250)]);
    rig.must_end();
}

#[test]
fn invalid_settings_do_not_start_a_monitor() {
    let error = PressureMonitor::start(PressureConfig::default().low(7.0)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(error.to_string().starts_with("pressure.low = 7 "), "{error}");
}

#[test]
fn shutdown_does_not_wait_for_the_interval_and_may_be_repeated() {
    let rig = rig(LONG_INTERVAL);
    let other = rig.monitor.clone();
    let client = client(&rig.monitor, 1, 1);
    rig.must_end();
    other.shutdown();
    other.reconfigure(config()).unwrap();
    assert_eq!(other.latest(), None);
    assert!(other.register(&client.relief).is_err(), "the monitor has ended");
    client.expect_nothing();
}

#[test]
fn the_monitor_does_not_keep_a_client_alive() {
    let rig = rig(TICK);
    let TestClient { recorder, relief, events, registration } = client(&rig.monitor, 1, 0);
    drop((recorder, relief));
    assert_eq!(events.recv_timeout(HANG), Ok(MonitorEvent::Gone));
    rig.seen(&[950, 950]);
    drop(registration);
    rig.must_end();
}

#[test]
fn a_client_that_leaves_waits_for_the_call_in_progress() {
    let rig = rig(TICK);
    let client = client(&rig.monitor, 500, 0);
    let gate = client.recorder.gate.lock();
    rig.used(850);
    client.expect(&[MonitorEvent::Changed(Level::Low), MonitorEvent::Relieved(Level::Low, 150)]);
    client.registration.leave();
    assert!(!client.registration.leave_by(Instant::now()), "the call still runs");
    drop(gate);
    assert!(client.registration.leave_by(Instant::now() + HANG));
    rig.must_end();
}

#[test]
fn a_clients_own_monitor_ends_with_it() {
    let (sender, _events) = channel();
    let (reclaimable, smaller_by, gate) = (1.into(), 0.into(), Mutex::default());
    let relief: Arc<dyn Relief> =
        Arc::new(Recorder { events: Mutex::new(sender), reclaimable, smaller_by, gate });
    let registration = Registration::own(config(), &relief).unwrap();
    assert!(registration.latest().is_some_and(|now| now.used > 0), "the first sample is taken at the start");
    registration.leave();
    assert!(registration.leave_by(Instant::now() + HANG));
    assert_eq!(registration.latest(), None);
}

/// Records its drop, which happens when the thread has ended.
struct Ends(Arc<AtomicBool>);

impl Sampler for Ends {
    fn sample(&mut self) -> Option<Sample> {
        None
    }
    fn set_memory_limit(&mut self, _limit: Option<u64>) {}
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn dropping_the_last_handle_ends_the_thread() {
    let ended = Arc::new(AtomicBool::new(false));
    let monitor =
        PressureMonitor::start_with(config(), LONG_INTERVAL, Box::new(Ends(ended.clone()))).unwrap();
    let other = monitor.clone();
    drop(monitor);
    assert!(!other.state().is_stopping());
    drop(other);
    let started = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        assert!(started.elapsed() < HANG, "the thread did not end");
        thread::yield_now();
    }
}

/// The death of the thread was not reported: the clients assumed that memory was monitored.
#[test]
fn the_death_of_the_thread_is_reported() {
    let rig = rig(LONG_INTERVAL);
    let client = client(&rig.monitor, 1, 1);
    assert!(!client.registration.has_died());
    rig.monitor.shutdown();
    assert!(!client.registration.has_died(), "a shutdown is not a death");

    let monitor = PressureMonitor::start_with(config(), LONG_INTERVAL, Box::new(Panics(0))).unwrap();
    let client = self::client(&monitor, 1, 1);
    let started = Instant::now();
    while !client.registration.has_died() {
        assert!(started.elapsed() < HANG, "the death was not reported");
        thread::yield_now();
    }
    monitor.shutdown();
}

/// Panics at the first sample of the thread. The sample before the start succeeds.
struct Panics(u32);

impl Sampler for Panics {
    fn sample(&mut self) -> Option<Sample> {
        self.0 += 1;
        assert!(self.0 < 2, "on purpose");
        None
    }
    fn set_memory_limit(&mut self, _limit: Option<u64>) {}
}
