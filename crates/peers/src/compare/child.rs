//! A run in a process of its own.

use std::path::Path;
use std::pin::pin;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use thiserror::Error;
use tidespool_bench::Report;
use tokio::process::Command;
use tokio::sync::watch;

/// How long a child may take to end after it was signalled.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a run has no report.
#[derive(Debug, Error)]
pub(crate) enum Failed {
    /// The child failed; this is its last line.
    #[error("{0}")]
    Said(String),
    /// The child ended in another way.
    #[error("ended without a report: {0}")]
    Ended(String),
    /// The child did not end.
    #[error("no end after {0:?}: it was killed")]
    Hung(Duration),
    /// The comparison was interrupted.
    #[error("interrupted")]
    Interrupted,
    /// The child could not be started, or its output not be read.
    #[error("{doing}: {err}")]
    Io {
        /// The failed action.
        doing: &'static str,
        /// Its error.
        err: std::io::Error,
    },
}

/// Set when the comparison is to end.
pub(crate) type Stop = watch::Receiver<bool>;

/// Runs this program with `arguments` in `dir` for at most `limit`. The child is in a process group
/// of its own, so a Ctrl-C on the terminal reaches it only once, through this process.
pub(crate) async fn run(
    arguments: &[String],
    dir: &Path,
    limit: Duration,
    stop: &mut Stop,
) -> Result<Report, Failed> {
    let io = |doing| move |err| Failed::Io { doing, err };
    let program = std::env::current_exe().map_err(io("looking for this program's own file"))?;
    let child = Command::new(program)
        .args(arguments)
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(io("starting the run"))?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let mut output = pin!(child.wait_with_output());
    let ended = tokio::select! {
        ended = &mut output => Ok(ended),
        () = tokio::time::sleep(limit) => Err(Failed::Hung(limit)),
        () = stopped(stop) => Err(Failed::Interrupted),
    };
    match ended {
        Ok(ended) => report(&ended.map_err(io("reading the output of the run"))?),
        Err(why) => {
            // SIGINT first, so that the child ends its own children.
            let signalled = pid.is_some_and(|pid| kill_process(pid, Signal::INT).is_ok());
            if !signalled || tokio::time::timeout(PATIENCE, &mut output).await.is_err() {
                let _ = pid.map(|pid| kill_process_group(pid, Signal::KILL));
                drop(output.await);
            }
            Err(why)
        }
    }
}

/// Returns when `stop` is set; never if its sender is gone.
async fn stopped(stop: &mut Stop) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Returns the report of a child that has ended, or its error.
fn report(output: &Output) -> Result<Report, Failed> {
    if output.status.success() {
        let parsed = serde_json::from_slice(&output.stdout);
        return parsed.map_err(|err| Failed::Ended(format!("its output is not a report: {err}")));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find_map(|line| line.trim().strip_prefix("error: "));
    Err(match last {
        Some(line) => Failed::Said(line.to_owned()),
        None => {
            let line = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("no output");
            Failed::Ended(format!("{}; {line}", output.status))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    fn ended(status: i32, stdout: &str, stderr: &str) -> String {
        let output = Output {
            status: ExitStatus::from_raw(status),
            stdout: stdout.as_bytes().to_vec(),
            stderr: stderr.as_bytes().to_vec(),
        };
        report(&output).unwrap_err().to_string()
    }

    #[test]
    fn a_failed_run_gives_one_line() {
        let one = "a warning\nerror: fjall: writing: No space left on device\n";
        assert_eq!(ended(1 << 8, "", one), "fjall: writing: No space left on device");
        let text = ended(6, "", "thread panicked at x\nnote: y\n\n");
        assert!(text.contains("signal: 6") && text.contains("note: y") && !text.contains('\n'), "{text}");
        assert!(ended(0, "", "").contains("not a report"));
    }
}
