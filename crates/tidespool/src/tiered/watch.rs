//! The thread that samples health and does moka's upkeep, beside the path.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::health::{Latch, Sample, Space};

/// Free space is asked this often.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the spool closes.
pub(super) fn watch(shared: &Arc<Shared>) {
    let mut latch = Latch::new(&shared.config);
    let mut space_at = None;
    let mut space_short = false;
    loop {
        let now = Instant::now();
        if space_at.is_none_or(|at| at <= now) {
            space_at = Some(now + SPACE_INTERVAL);
            space_short = is_short_of_space(shared);
        }
        let probe_ok = latch.wants_probe(now) && probe(&shared.config.path).is_ok();
        if let Some(transition) = latch.observe(now, &sample(shared, space_short, probe_ok)) {
            shared.gate.follow(transition);
        }
        shared.cache.upkeep();
        if shared.closing.wait(shared.config.health.sample_interval) {
            return;
        }
    }
}

fn sample(shared: &Shared, space_short: bool, probe_ok: bool) -> Sample {
    let errors = shared.stats.errors();
    let pool = shared.segments.pool();
    Sample {
        dirty_fraction: shared.budget.dirty() as f64 / shared.budget.limit().max(1) as f64,
        oldest_dirty_age: shared.oldest_dirty_age(),
        no_free_segment: pool.free() <= crate::journal::RESERVED
            && pool.headroom() <= crate::journal::RESERVED,
        journal_write_errors: errors.journal_writes,
        sled_errors: errors.filing,
        read_errors: errors.reads,
        corruption: errors.corrupt,
        space_short,
        worker_dead: shared.worker_dead.load(Ordering::Relaxed),
        probe_ok,
    }
}

fn is_short_of_space(shared: &Shared) -> bool {
    match Space::of(&shared.config.path) {
        Ok(space) => space.is_short(&shared.config.health),
        Err(error) => {
            tracing::warn!(%error, "the free space of the file system is not known");
            false
        }
    }
}

/// Writes, syncs and reads a small file where the spool is.
fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join("probe");
    let mut file = fs::File::create(&path)?;
    file.write_all(b"probe")?;
    file.sync_all()?;
    let back = fs::read(&path)?;
    fs::remove_file(&path)?;
    if back == b"probe" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
