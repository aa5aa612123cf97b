//! Reads the instruction count of the measured section from callgrind's output, which covers all
//! threads.
//!
//! It excludes:
//!
//! * the allocator's own instructions, which depend on the libc and on earlier allocations
//!   (allocations have figures of their own);
//! * sled's spin loop for its lazily created statics, which runs as long as another thread takes;
//! * what runs by the clock, because it depends on the speed of the machine: the threads that work
//!   at fixed intervals, and the committer's look for the next store.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

/// The allocator's functions, by the names under which they are called.
const ALLOCATOR: [&str; 7] =
    ["malloc", "calloc", "realloc", "free", "posix_memalign", "aligned_alloc", "memalign"];

/// Instructions of functions with this in their name are excluded.
const SPINNING: &str = "sled::lazy::Lazy<";

/// The functions that run by the clock. They are not inlined, so that their names appear in the
/// output.
const BY_THE_CLOCK: [&str; 3] = [
    "tidespool::tiered::background::balancer::keep",
    "tidespool::tiered::background::health::watch",
    "tidespool::tiered::commit::spin::look",
];

const WITHOUT_REP: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824";

/// A command that runs `program` under valgrind. callgrind writes the counts at each call of
/// `border`: first those before the section, then those of the section.
pub(crate) fn command(program: &Path, dir: &Path) -> Command {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "-q", "--dump-before=cost::perform::border"]);
    // The format that `instructions` reads, with all names in full.
    valgrind.args(["--compress-strings=no", "--compress-pos=no"]);
    // Copies are counted by vector, as on processors where `rep movsb` is slow, and not by byte.
    valgrind.env("GLIBC_TUNABLES", WITHOUT_REP);
    // Threads run in a fixed order, so that runs are alike.
    valgrind.arg("--fair-sched=try");
    valgrind.arg(format!("--callgrind-out-file={}", dir.join("counts").display())).arg(program);
    valgrind
}

/// The instructions of the section between the two calls of `border`.
pub(crate) fn section(dir: &Path) -> Result<u64> {
    let path = dir.join("counts.2");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("reading {}, which valgrind should have created", path.display()))?;
    instructions(&text).with_context(|| format!("{} contains no counts", path.display()))
}

/// Adds up a file in callgrind's format. A line below a `calls=` line has the total cost of the
/// call; other lines have the cost of the function itself.
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
            // Position and cost. A missing cost is 0.
            let cost: u64 = line.split(' ').nth(1).map_or(Some(0), |cost| cost.parse().ok())?;
            if !std::mem::take(&mut is_call) {
                let counts = !function.contains(SPINNING) && !BY_THE_CLOCK.contains(&function);
                own += if counts { cost } else { 0 };
            } else if BY_THE_CLOCK.contains(&function)
                || ALLOCATOR.contains(&called) && !ALLOCATOR.contains(&function)
            {
                left_out += cost;
            }
        }
    }
    own.checked_sub(left_out).filter(|instructions| *instructions > 0)
}
