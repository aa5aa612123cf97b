//! Opens a spool, stores a message, loads it, removes it, checks the spool's health, shuts down.
//!
//! Run it with `cargo run --example basic [DIR]`. Without `DIR` it uses a temporary directory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tidespool::core::{NotFound, Spool, SpoolId};
use tidespool::{Config, TieredSpool};

#[tokio::main]
async fn main() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let path = std::env::args_os().nth(1).map_or_else(|| temporary.path().join("spool"), Into::into);
    let spool: Arc<dyn Spool> = Arc::new(TieredSpool::open(Config::new(path)).await?);

    // Ask before each message is accepted from outside.
    if let Some(reason) = spool.unhealthy_reason() {
        anyhow::bail!("no new messages now: {reason}");
    }

    let id = SpoolId::new();
    let message: Arc<Box<[u8]>> = Arc::new(b"Subject: hi\r\n\r\nHello.\r\n".as_slice().into());
    let deadline = Instant::now() + Duration::from_secs(5);
    // `true`: the message is on stable storage when `store` returns.
    spool.store(id, message, true, Some(deadline)).await?;
    println!("stored {id}, {} bytes", spool.load(id).await?.len());

    spool.remove(id).await?;
    match spool.load(id).await {
        Err(error) if error.root_cause().is::<NotFound>() => println!("removed {id}"),
        found => anyhow::bail!("the message was removed, and loading it returned {found:?}"),
    }

    spool.shutdown().await?;
    println!("shut down");
    Ok(())
}
