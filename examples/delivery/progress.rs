//! One line per second, redrawn in place on a terminal, else one below the other.

use std::io::{IsTerminal as _, Write};
use std::time::Instant;

use bytesize::ByteSize;

use crate::report::percent;
use crate::server::Server;

/// The output, and the state at the last line.
pub(crate) struct Progress {
    out: Box<dyn Write + Send>,
    in_place: bool,
    started: Instant,
    last: Instant,
    last_done: u64,
    drawn: bool,
}

impl Progress {
    /// With `to_stderr`, stdout is reserved for the result.
    pub(crate) fn new(to_stderr: bool) -> Self {
        let now = Instant::now();
        let (out, in_place): (Box<dyn Write + Send>, bool) = if to_stderr {
            (Box::new(std::io::stderr()), std::io::stderr().is_terminal())
        } else {
            (Box::new(std::io::stdout()), std::io::stdout().is_terminal())
        };
        Self { out, in_place, started: now, last: now, last_done: 0, drawn: false }
    }

    pub(crate) fn show(&mut self, server: &Server) {
        let now = Instant::now();
        let counters = &server.counters;
        let done = counters.delivered.get() + counters.bounced.get();
        let rate = per_second(done - self.last_done, now.duration_since(self.last).as_secs_f64());
        let figures = server.spools.figures();
        let line = format!(
            "{:3} s  accepted {}  delivered {}  retried {}  in flight {}  hits {}  dirty {}  {rate:.0} msg/s",
            self.started.elapsed().as_secs(),
            counters.accepted.get(),
            counters.delivered.get(),
            counters.retried.get(),
            server.in_flight(),
            percent(figures.data_hit_ratio),
            ByteSize(figures.dirty_bytes),
        );
        (self.last, self.last_done) = (now, done);
        self.write(&line);
    }

    /// Prints a line that is not redrawn.
    pub(crate) fn say(&mut self, text: &str) {
        let _ = writeln!(self.out, "{text}");
    }

    /// Ends the redrawn line, so that later output starts on a new line.
    pub(crate) fn finish(&mut self) {
        if self.in_place && self.drawn {
            let _ = writeln!(self.out);
        }
    }

    /// Ignores errors: a reader that went away (`| head`) must not stop the deliveries.
    fn write(&mut self, line: &str) {
        let written = if self.in_place {
            // Line wrapping is off while it is drawn: a narrow terminal cuts the line instead of
            // wrapping it.
            write!(self.out, "\r\x1b[2K\x1b[?7l{line}\x1b[?7h")
        } else {
            writeln!(self.out, "{line}")
        };
        let _ = written.and_then(|()| self.out.flush());
        self.drawn = true;
    }
}

/// Prints the result to stdout.
pub(crate) fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// The rate, or zero if no time passed.
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
pub(crate) fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}
