//! Two spools of one process, and a cache of its own, share a memory-pressure monitor: it samples
//! once for all, and divides what has to be freed between them.
//!
//! Run it with `cargo run --example shared_monitor [DIR]`. Without `DIR` it uses a temporary
//! directory.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::Result;
use parking_lot::Mutex;
use tidespool::core::{Spool as _, SpoolExt as _, SpoolId};
use tidespool::pressure::Relief;
use tidespool::{Config, PressureConfig, PressureLevel, PressureMonitor, TieredSpool};

/// A cache of the server: answers of DNS, the oldest first.
#[derive(Default)]
struct DnsCache(Mutex<VecDeque<String>>);

impl Relief for DnsCache {
    fn relieve(&self, level: PressureLevel, excess_bytes: u64) -> isize {
        let wanted = if level == PressureLevel::Critical { u64::MAX } else { excess_bytes };
        let mut answers = self.0.lock();
        let mut freed = 0;
        while freed < wanted
            && let Some(answer) = answers.pop_front()
        {
            freed += answer.capacity() as u64;
        }
        isize::try_from(freed).unwrap_or(isize::MAX)
    }

    fn reclaimable_bytes(&self) -> u64 {
        self.0.lock().iter().map(|answer| answer.capacity() as u64).sum()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let dir = std::env::args_os().nth(1).map_or_else(|| temporary.path().to_owned(), Into::into);

    // The bound of the process. The limit of a control group applies as well, and needs no setting.
    let monitor = PressureMonitor::start(PressureConfig::default().memory_limit(4 << 30))?;
    let metadata = Config::new(dir.join("metadata")).memory_budget(32 << 20);
    let metadata = TieredSpool::open_watched(metadata, &monitor).await?;
    let data = Config::new(dir.join("data")).memory_budget(256 << 20);
    let data = TieredSpool::open_watched(data, &monitor).await?;
    let dns = Arc::new(DnsCache::default());
    let client: Arc<dyn Relief> = dns.clone();
    // The monitor calls the cache until this is dropped.
    let _registration = monitor.register(&client)?;

    // A message has the same id in both spools.
    let id = SpoolId::new();
    metadata.store_bytes(id, "to: someone@example.org".into(), false, None).await?;
    data.store_bytes(id, "Subject: hi\r\n\r\nHello.\r\n".into(), true, None).await?;
    dns.0.lock().push_back("example.org MX mail.example.org".to_owned());

    if let Some(now) = monitor.latest() {
        println!("{:?}: {} of {} bytes ({})", now.level, now.used, now.limit, now.source.name());
    }
    for (name, spool) in [("metadata", &metadata), ("data", &data)] {
        let now = spool.stats().gauges;
        println!("{name}: {} of {} bytes", now.accounted_bytes, now.memory_allowed);
    }
    println!("dns: {} bytes", dns.reclaimable_bytes());

    data.remove(id).await?;
    metadata.remove(id).await?;
    data.shutdown().await?;
    metadata.shutdown().await?;
    // The monitor outlives its spools. Its end waits for its thread, so it may block.
    tokio::task::spawn_blocking(move || monitor.shutdown()).await?;
    Ok(())
}
