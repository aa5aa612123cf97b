//! The thread that samples health, beside the path.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::Config;
use crate::health::{Latch, Sample, Space};

/// Free space is asked this often.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the spool closes.
pub(super) fn watch(shared: &Arc<Shared>) {
    let mut config = shared.config.load_full();
    let mut latch = Latch::new(&config);
    let mut space_at = None;
    let mut space_short = false;
    let mut syncs = (0, 0);
    loop {
        let now = Instant::now();
        if !Arc::ptr_eq(&config, &shared.config.load()) {
            config = shared.config.load_full();
            latch.reconfigure(&config);
        }
        if space_at.is_none_or(|at| at <= now) {
            space_at = Some(now + SPACE_INTERVAL);
            space_short = is_short_of_space(&config);
        }
        let probe_ok = latch.wants_probe(now) && probe(&config.path).is_ok();
        if let Some(transition) = latch.observe(now, &sample(shared, space_short, probe_ok)) {
            shared.gate.follow(transition);
        }
        let now = shared.stats.syncs();
        let (count, sum_us): (u64, u64) = (now.0 - syncs.0, now.1 - syncs.1);
        shared.filing.note_sync(sum_us.checked_div(count).map(Duration::from_micros));
        syncs = now;
        if shared.closing.wait(config.health.sample_interval) {
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

fn is_short_of_space(config: &Config) -> bool {
    match Space::of(&config.path) {
        Ok(space) => space.is_short(&config.health),
        Err(error) => {
            tracing::warn!(%error, "the free space of the file system is not known");
            false
        }
    }
}

/// Writes, syncs and reads a small file where the spool is.
fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join("probe");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    let written = file.write_all(b"probe").and_then(|()| file.sync_all());
    let back = written.and_then(|()| fs::read(&path));
    fs::remove_file(&path)?;
    let back = back?;
    if back == b"probe" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
