//! What the monitor's thread and its handles share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::clients::Clients;
use super::room::MemoryRoom;
use crate::{PressureConfig, Reading};

/// The state shared by the thread and the handles.
#[derive(Debug, Default)]
pub(super) struct MonitorState {
    control: Mutex<Control>,
    control_changed: Condvar,
    latest: Mutex<(Option<Reading>, Option<MemoryRoom>)>,
    pub(super) clients: Clients,
    has_died: AtomicBool,
}

/// Records a panic of the thread, so that the clients can report that memory is not monitored.
pub(super) struct MonitorExit(pub(super) Arc<MonitorState>);

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
    /// Settings that the thread has not applied yet.
    config: Option<PressureConfig>,
}

/// Why the thread's pause ended.
#[derive(Debug)]
pub(super) enum Wait {
    Elapsed,
    Reconfigured(PressureConfig),
    Stopped,
}

impl MonitorState {
    /// Requests the end of the thread.
    pub(super) fn stop(&self) {
        self.control.lock().is_stopping = true;
        self.control_changed.notify_one();
    }

    /// Hands other settings to the thread.
    pub(super) fn reconfigure(&self, config: PressureConfig) {
        self.control.lock().config = Some(config);
        self.control_changed.notify_one();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.control.lock().is_stopping
    }

    pub(super) fn has_died(&self) -> bool {
        self.has_died.load(Ordering::Relaxed)
    }

    pub(super) fn publish(&self, reading: Option<Reading>, room: Option<MemoryRoom>) {
        *self.latest.lock() = (reading, room);
    }

    pub(super) fn latest(&self) -> Option<Reading> {
        self.latest.lock().0
    }

    pub(super) fn room(&self) -> Option<MemoryRoom> {
        self.latest.lock().1
    }

    /// Adds a client that the latest reading does not include yet.
    pub(super) fn note_joined(&self, budget: u64) {
        if let Some(room) = &mut self.latest.lock().1 {
            room.note_joined(budget);
        }
    }

    /// Waits for `pause`, or without a limit if it is `None`.
    pub(super) fn wait(&self, pause: Option<Duration>) -> Wait {
        let end = pause.and_then(|pause| Instant::now().checked_add(pause));
        let is_idle = |control: &mut Control| !control.is_stopping && control.config.is_none();
        let mut control = self.control.lock();
        match end {
            None => self.control_changed.wait_while(&mut control, is_idle),
            Some(end) => {
                self.control_changed.wait_while_until(&mut control, is_idle, end);
            }
        }
        match control.is_stopping {
            true => Wait::Stopped,
            false => control.config.take().map_or(Wait::Elapsed, Wait::Reconfigured),
        }
    }
}
