//! What a repair makes of a sled that hangs while it is read.

use std::time::Duration;

use tempfile::TempDir;
use tidespool_core::Spool as _;

use super::*;
use crate::durable::Key;
use crate::{Config, TieredSpool};

/// Of so many records more, those are read. Then it hangs, and is not asked again.
struct Hanging {
    sled: SledCopy,
    left: usize,
}

impl Records for Hanging {
    fn visit(&mut self, visit: &mut dyn FnMut(Key, &[u8]) -> Result<()>) -> Result<Vec<String>> {
        let mut more = Vec::new();
        self.sled.visit(&mut |key, value| {
            match self.left {
                0 => more.push(key),
                _ => {
                    self.left -= 1;
                    visit(key, value)?;
                }
            }
            Ok(())
        })?;
        Ok(if self.left == 0 { vec!["reading it did not go on".to_owned()] } else { Vec::new() })
    }
}

/// What sled had been counted to know at the first reading was not looked for in the segments, though at the second one it was not read any more: not one of the large
/// messages was saved.
#[tokio::test(flavor = "multi_thread")]
async fn what_sled_no_longer_tells_is_taken_from_the_segments() {
    const MESSAGES: usize = 20;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("spool");
    let config = Config::new(&path)
        .memory_budget(32 << 20)
        .dirty_limit(4 << 20)
        .segment_size(256 << 10)
        .journal_capacity(8 << 20)
        .ballast(0)
        .checkpoint_after(Duration::from_secs(3600));
    let spool = TieredSpool::open(config).await.expect("open");
    for _ in 0..MESSAGES {
        let data = Arc::new(vec![7; 20_000].into_boxed_slice());
        spool.store(SpoolId::new(), data, true, None).await.expect("store");
    }
    spool.compact().await.expect("compact");
    spool.shutdown().await.expect("shutdown");
    drop(spool);
    // In the middle of the first reading, at its end, in the middle of the second one, and never.
    for left in [7, MESSAGES, MESSAGES + 7, 2 * MESSAGES + 1] {
        let new = dir.path().join(format!("new{left}"));
        let (spool, _) = identify(&path).expect("identify");
        let disk = AsFarAsReadable::new(Arc::new(OsStorage));
        let places = Places { storage: disk.clone(), dir: path.clone(), spool: spool.expect("known") };
        let mut target = Target::begin(&path, &new).expect("begin");
        let (sled, wrong) = SledCopy::open(&*disk, &places.sled(), &target.scratch()).expect("copy");
        let mut report = Salvage::default();
        let mut sled = Hanging { sled, left };
        save_with(&places, &disk, &mut sled, wrong, &mut target, &mut report).expect("save");
        sled.sled.close();
        target.finish().expect("finish");
        assert_eq!(report.saved, MESSAGES as u64, "{left}: {report:?}");
        assert_eq!(
            (report.lost, report.unsaved.len()),
            (0, 0),
            "{left}: by the digest it is all of it: {report:?}"
        );
        assert_eq!(report.damage.is_empty(), left > 2 * MESSAGES, "{left}: {report:?}");
    }
}
