//! The parent's side of a child: start it, read its events, end it.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tidespool_testkit::wait::PATIENCE;

use crate::control::Control;
use crate::event::{Event, decode};
use crate::layout::CONTROL;
use crate::library::library;
use crate::tasks::{CHILD_DIR, CHILD_TASK, Task};

/// Longest time without an event of the child. The child's own waits time out earlier, with an
/// event.
const SILENCE: Duration = Duration::from_secs(2 * PATIENCE.as_secs());

/// Capacity of the channel of events.
const WAITING: usize = 1024;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It exited with success.
    Done,
    /// The parent killed it after [`Event::Ready`].
    Killed,
    /// It panicked, aborted, or sent no event for too long.
    Failed(Option<ExitStatus>),
}

/// Runs a child on `dir` to its end, and passes each of its events to `on_event`. `control` selects
/// the calls that fail. The child's standard error goes to the file `log`.
pub(crate) fn run(
    task: Task,
    dir: &Path,
    control: Option<&Control>,
    log: &Path,
    mut on_event: impl FnMut(&Event),
) -> End {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "tasks::child", "--nocapture", "--test-threads=1"]);
    command.env(CHILD_DIR, dir).env(CHILD_TASK, task.to_string()).env("RUST_BACKTRACE", "0");
    if let Some(control) = control {
        command.env("LD_PRELOAD", library()).env(CONTROL, control.path());
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(log).unwrap());
    let mut child = command.spawn().unwrap_or_else(|err| panic!("{command:?}: {err}"));
    let (events, listener) = listen(child.stdout.take().unwrap());
    let mut ready = false;
    let silent = loop {
        match events.recv_timeout(SILENCE) {
            Ok(event) => {
                on_event(&event);
                ready = event == Event::Ready;
                if ready {
                    break false;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    if ready || silent {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    // Unblocks the listener, which may wait for space in the channel.
    drop(events);
    listener.join().unwrap();
    match status {
        _ if silent => End::Failed(None),
        _ if ready => End::Killed,
        status if status.success() => End::Done,
        status => End::Failed(Some(status)),
    }
}

/// Reads the child's events on a thread, which ends with the child.
fn listen(out: impl std::io::Read + Send + 'static) -> (Receiver<Event>, JoinHandle<()>) {
    let (send, receive) = sync_channel(WAITING);
    let listener = thread::Builder::new().name("listener".to_owned());
    let listener = listener.spawn(move || {
        let mut lines = BufReader::new(out);
        let mut text = Vec::new();
        while matches!(lines.read_until(b'\n', &mut text), Ok(bytes) if bytes > 0) {
            // A line without its end was truncated by the kill.
            if text.ends_with(b"\n")
                && let Some(event) = decode(String::from_utf8_lossy(&text).trim_end_matches('\n'))
                && send.send(event).is_err()
            {
                return;
            }
            text.clear();
        }
    });
    (receive, listener.unwrap())
}
