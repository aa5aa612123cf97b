//! A neighbour: a process that writes to the disk of the engine while a workload runs.
//!
//! It rewrites one file through the page cache as fast as it can. The kernel would keep so few
//! bytes in memory for half a minute, so the neighbour asks it to write each part back at once, as
//! a copy or a backup that spares the page cache does. The neighbour never syncs.
//!
//! It is a process of its own, so that the kernel's counts of this process remain those of the
//! engine.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::num::NonZero;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use rustix::fs::{Advice, OFlags, fadvise, fcntl_setfl};

use crate::disk;
use crate::figures::per;

/// Bytes of the file.
const FILE_SIZE: u64 = 1 << 30;

/// Bytes of a write.
const STEP: u64 = 1 << 20;

/// The line that the child prints after its first write.
const STARTED: &str = "started\n";

/// Begins the line that the child prints at the end. The number of bytes that it wrote follows.
const WRITTEN: &str = "written ";

/// Writes to a file in `dir` until standard input is closed, and prints how many bytes it wrote.
/// Blocks.
///
/// The process that [`Opener::neighbour`](crate::Opener::neighbour) starts only has to call this
/// function.
///
/// # Errors
///
/// An I/O error that names the file.
pub fn write_beside(dir: &Path) -> Result<()> {
    let path = dir.join("neighbour");
    let file = File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
    // Its space is released when this process ends, however it ends.
    std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    let mut input = io::stdin();
    fcntl_setfl(&input, OFlags::NONBLOCK).context("opening standard input")?;
    // Bypasses the lock of standard output: a command that prints its result may hold it.
    let mut out = File::from(rustix::io::dup(io::stdout()).context("opening standard output")?);
    // Not zeros, which a file system may compress.
    let bytes: Vec<u8> =
        (0..STEP / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let (mut written, mut position) = (0, 0);
    while !is_closed(&mut input).context("reading standard input")? {
        write_step(&file, &bytes, position).with_context(|| format!("writing {}", path.display()))?;
        if written == 0 {
            out.write_all(STARTED.as_bytes()).context("writing to standard output")?;
        }
        written += STEP;
        position = (position + STEP) % FILE_SIZE;
    }
    writeln!(out, "{WRITTEN}{written}").context("writing to standard output")
}

fn write_step(file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
    file.write_all_at(bytes, position)?;
    // Starts writing these pages back, and waits only for a place in the queue of the disk.
    Ok(fadvise(file, position, NonZero::new(STEP), Advice::DontNeed)?)
}

/// Returns whether `input`, which does not block, is at its end.
fn is_closed(input: &mut impl io::Read) -> io::Result<bool> {
    match input.read(&mut [0; 64]) {
        Ok(read) => Ok(read == 0),
        Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
        Err(err) => Err(err),
    }
}

/// The child process, which writes. Dropping it kills and reaps it.
pub(crate) struct Neighbour {
    child: Child,
    out: BufReader<ChildStdout>,
    begun: Instant,
}

impl Neighbour {
    /// Starts the child with `command`, and returns when it writes to `dir`. Blocks.
    pub(crate) fn start(mut command: Command, dir: &Path) -> Result<Self> {
        disk::require(dir, FILE_SIZE).context("starting the neighbour")?;
        // A Ctrl-C on the terminal reaches only this process, which ends the child.
        command.arg(dir).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?;
        let out = child.stdout.take().context("no output of the neighbour")?;
        let mut neighbour = Self { child, out: BufReader::new(out), begun: Instant::now() };
        if neighbour.line()? != STARTED {
            return Err(neighbour.failure());
        }
        neighbour.begun = Instant::now();
        Ok(neighbour)
    }

    /// Ends the child and returns how many MB it wrote a second. Blocks.
    pub(crate) fn finish(mut self) -> Result<f64> {
        drop(self.child.stdin.take());
        let line = self.line()?;
        let seconds = self.begun.elapsed().as_secs_f64();
        match line.trim_end().strip_prefix(WRITTEN).and_then(|bytes| bytes.parse().ok()) {
            Some(bytes) => Ok(per(bytes, seconds) / 1e6),
            None => Err(self.failure()),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line).context("reading the output of the neighbour")?;
        Ok(line)
    }

    /// Returns the error of a child that ended too early.
    fn failure(&mut self) -> anyhow::Error {
        let mut said = String::new();
        // Without its text the error is still one.
        let _ = self.child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
        anyhow!("the neighbour ended early: {}", said.trim_end())
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // An error means that the child has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
