use std::sync::Arc;

use tidespool_core::bytes::Bytes;
use tidespool_core::{NotFound, Spool, SpoolExt as _, SpoolId};

use crate::setup::{Tiered, stop};

#[tokio::test(flavor = "multi_thread")]
async fn every_spool_has_the_conveniences() {
    let tiered = Tiered::new(|config| config);
    let tiered_spool = tiered.start().await;
    let spool: Arc<dyn Spool> = tiered_spool.clone();
    let (id, data) = (SpoolId::new(), Bytes::from_static(b"a message"));
    assert!(!spool.contains(id).await.unwrap());
    assert_eq!(spool.size(id).await.unwrap(), None);
    assert!(spool.load_shared(id).await.unwrap_err().root_cause().is::<NotFound>());
    spool.store_bytes(id, data.clone(), true, None).await.unwrap();
    assert_eq!(tiered_spool.stats().stores_synced, 1);
    assert!(spool.contains(id).await.unwrap());
    assert_eq!(spool.size(id).await.unwrap(), Some(9));
    assert_eq!(&spool.load_shared(id).await.unwrap()[..], &data[..]);
    spool.shutdown().await.unwrap();
    // Any error but `NotFound` is returned.
    assert!(spool.contains(id).await.is_err() && spool.size(id).await.is_err());
    drop(spool);
    stop(tiered_spool).await;
}
