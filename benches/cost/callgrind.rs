//! Instructions of the counted section of a run, from what callgrind writes. It knows of all threads.
//!
//! Left out are:
//!
//! * the allocator's own instructions, which differ from one libc to the next and depend on what
//!   was allocated before (allocations have figures of their own);
//! * sled's waiting for its lazily made statics, which goes round in a loop for as long as another
//!   thread takes;
//! * the threads that work at fixed intervals: how often they do in a section depends on the
//!   machine's speed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

/// The allocator's functions, as others call them.
const ALLOCATOR: [&str; 7] =
    ["malloc", "calloc", "realloc", "free", "posix_memalign", "aligned_alloc", "memalign"];

/// Of a function with this in its name, the instructions do not count.
const SPINNING: &str = "sled::lazy::Lazy<";

/// The functions of the threads that work at fixed intervals. They are not inlined, so that their
/// names are here to be found.
const PERIODIC: [&str; 2] = ["tidespool::tiered::keeper::keep", "tidespool::tiered::watch::watch"];

const WITHOUT_REP: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824";

/// A command that runs `program` under valgrind. The counts are written when the borders are met: before the first of them what came before, ...
pub(crate) fn command(program: &Path, dir: &Path) -> Command {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "-q", "--dump-before=cost::perform::border"]);
    // As it is read here: every name in full.
    valgrind.args(["--compress-strings=no", "--compress-pos=no"]);
    // Copying is counted by vector and not by byte, as processors do it for which `rep movsb` is not the best.
    valgrind.env("GLIBC_TUNABLES", WITHOUT_REP);
    // Threads take turns in order, so that one run is like the next.
    valgrind.arg("--fair-sched=try");
    valgrind.arg(format!("--callgrind-out-file={}", dir.join("counts").display())).arg(program);
    valgrind
}

/// ... and before the second the section between them: this one.
pub(crate) fn section(dir: &Path) -> Result<u64> {
    let path = dir.join("counts.2");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("reading {}, which valgrind should have written", path.display()))?;
    instructions(&text).with_context(|| format!("{} counts nothing", path.display()))
}

/// Adds up a file in callgrind's format. A line below a `calls=` has what the call took altogether;
/// any other what the function itself took.
fn instructions(text: &str) -> Option<u64> {
    let (mut own, mut left_out): (u64, u64) = (0, 0);
    let (mut function, mut called, mut is_call) = ("", "", false);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = name;
        } else if let Some(name) = line.strip_prefix("cfn=") {
            called = name;
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            // Position and cost; no cost is 0.
            let cost: u64 = line.split(' ').nth(1).map_or(Some(0), |cost| cost.parse().ok())?;
            if !std::mem::take(&mut is_call) {
                let counts = !function.contains(SPINNING) && !PERIODIC.contains(&function);
                own += if counts { cost } else { 0 };
            } else if PERIODIC.contains(&function)
                || ALLOCATOR.contains(&called) && !ALLOCATOR.contains(&function)
            {
                left_out += cost;
            }
        }
    }
    own.checked_sub(left_out).filter(|instructions| *instructions > 0)
}
