//! The parent's side: the process that is going to be killed.

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

/// A running child, and all that it has said.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    listener: JoinHandle<Vec<Line>>,
    opened: Receiver<()>,
    /// Operations that it reported as done.
    done: Arc<AtomicU64>,
}

/// When the child is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// So long after it was started: often while it opens the spool.
    AfterStart(Duration),
    /// So long after it said that the spool is open.
    AfterOpened(Duration),
    /// When it has reported so many operations as done. So each life does real work, however slow
    /// the machine is.
    AfterDone(u64),
}

impl Victim {
    /// Starts the child, which reports on its standard output.
    ///
    /// # Errors
    ///
    /// Where it cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let Some(out) = child.stdout.take() else { bail!("the child has no standard output") };
        let (say_opened, opened) = channel();
        let done = Arc::new(AtomicU64::new(0));
        let counted = done.clone();
        let listen = move || {
            let mut log = Vec::new();
            let mut lines = BufReader::new(out);
            let mut text = Vec::new();
            while matches!(lines.read_until(b'\n', &mut text), Ok(bytes) if bytes > 0) {
                // Without its end the line was cut by the kill: nobody knows whether the number in it is whole.
                if text.ends_with(b"\n")
                    && let Some(line) = Line::decode(&String::from_utf8_lossy(&text))
                {
                    if line.event == Event::Opened {
                        let _nobody_waits = say_opened.send(());
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

    /// Kills it (`SIGKILL`) at that moment. Returns what it has said until then.
    ///
    /// # Errors
    ///
    /// Where the child had ended by itself, or did not open its spool.
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
        let ended = self.child.try_wait().context("asking after the child")?;
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
