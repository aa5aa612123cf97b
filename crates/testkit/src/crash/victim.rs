//! The parent's handle of the child process that is killed.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{Event, Line};
use crate::wait::PATIENCE;

/// A running child, and the lines that it has written.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    listener: JoinHandle<Vec<Line>>,
    opened: Receiver<()>,
    /// The number of operations reported as done.
    done: Arc<AtomicU64>,
}

/// When to kill the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// This long after the start: often while the child opens the spool.
    AfterStart(Duration),
    /// This long after the child reported that the spool is open.
    AfterOpened(Duration),
    /// After this many operations were reported as done. So each child does real work, even on a
    /// slow machine.
    AfterDone(u64),
}

impl Victim {
    /// Starts the child. It reports on its standard output.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let Some(out) = child.stdout.take() else { bail!("the child has no standard output") };
        let (send_opened, opened) = channel();
        let done = Arc::new(AtomicU64::new(0));
        let counted = done.clone();
        let listen = move || {
            let mut log = Vec::new();
            let mut lines = BufReader::new(out);
            let mut text = Vec::new();
            while matches!(lines.read_until(b'\n', &mut text), Ok(bytes) if bytes > 0) {
                // A line without its end was cut by the kill, and its last number may be
                // incomplete.
                if text.ends_with(b"\n")
                    && let Some(line) = Line::decode(&String::from_utf8_lossy(&text))
                {
                    if line.event == Event::Opened {
                        let _receiver_is_optional = send_opened.send(());
                    }
                    counted.fetch_add(u64::from(matches!(line.event, Event::Done { .. })), Ordering::Relaxed);
                    log.push(line);
                }
                text.clear();
            }
            log
        };
        let listener = std::thread::Builder::new().name("crash-listener".into()).spawn(listen)?;
        Ok(Self { child, listener, opened, done })
    }

    /// Kills the child (`SIGKILL`) at `moment`. Returns the lines that it wrote.
    ///
    /// # Errors
    ///
    /// If the child had already exited, or did not open its spool.
    pub fn kill_at(mut self, moment: Moment) -> Result<Vec<Line>> {
        let opened = match moment {
            Moment::AfterStart(delay) => {
                std::thread::sleep(delay);
                Ok(())
            }
            Moment::AfterOpened(delay) => {
                self.opened.recv_timeout(PATIENCE).map(|()| std::thread::sleep(delay))
            }
            Moment::AfterDone(count) => {
                let began = Instant::now();
                while self.done.load(Ordering::Relaxed) < count && began.elapsed() < PATIENCE {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            }
        };
        let ended = self.child.try_wait().context("polling the child")?;
        self.child.kill().context("killing the child")?;
        self.child.wait().context("waiting for the child")?;
        let log = match self.listener.join() {
            Ok(log) => log,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        if let Some(status) = ended {
            bail!("the child ended by itself, {status}, after {:?}", log.last());
        }
        opened.with_context(|| format!("the child did not open its spool within {PATIENCE:?}"))?;
        Ok(log)
    }
}
