//! How a server uses a spool: settings, opening, recovery, gate, cleanup timer, metrics, shutdown.
//!
//! `cargo run --example production [SETTINGS.toml]` accepts and delivers 100 messages and ends.
//! `MESSAGES=0` runs until Ctrl-C. Without settings it uses a temporary directory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tidespool::async_channel::{Receiver, Sender, bounded};
use tidespool::chrono::Utc;
use tidespool::core::{NotFound, Spool, SpoolEntry, SpoolExt as _, SpoolId, TooLarge};
use tidespool::{Config, TieredSpool};
use tokio::time::{MissedTickBehavior, interval};

const CLEANUP_INTERVAL: Duration = Duration::from_secs(300);

/// How long a client waits for the answer to a message.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The answer to a client: a spool error is temporary, unless the message can never be stored.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Accepted,
    TryLater(String),
    Rejected(String),
}

fn main() -> Result<()> {
    // First, while there are no other threads: it sets how glibc's allocator behaves.
    tidespool::keep_the_heap_small();
    // The spool logs important events with `tracing`.
    tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::WARN).init();
    tokio::runtime::Runtime::new()?.block_on(serve())
}

async fn serve() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let config = match std::env::args_os().nth(1) {
        Some(file) => Config::from_toml_file(file)?,
        None => Config::new(temporary.path().join("spool")),
    };
    let spool = Arc::new(TieredSpool::open(config).await?);
    let found = spool.recovery();
    if found.lost > 0 || !found.damage.is_empty() {
        eprintln!("the last run left losses or damage: {found:?}");
    }

    let (queue, deliveries) = bounded(256);
    let delivery = tokio::spawn(deliver(spool.clone(), deliveries));
    // Beside the first traffic: what the last run did not deliver.
    let recovery = tokio::spawn(recover(spool.clone(), queue.clone()));
    let cleanup = tokio::spawn(clean_up(spool.clone()));

    let messages = std::env::var("MESSAGES").map_or(Ok(100), |number| number.parse())?;
    tokio::select! {
        result = accept_all(&*spool, &queue, messages) => result?,
        result = tokio::signal::ctrl_c() => result?,
    }

    // Stop the callers first, then the spool: it waits for nothing that is still to come.
    cleanup.abort();
    recovery.await??;
    drop(queue);
    delivery.await??;
    // The page for a scraper. Its type is `application/openmetrics-text; version=1.0.0`.
    let page = spool.prometheus_text();
    println!("the messages are delivered; there are {} metrics", page.matches("# TYPE").count());
    // An error says what could not be made durable. The service manager must give the process the
    // setting `shutdown_timeout` before it kills it.
    spool.shutdown().await.context("shutting down the spool")
}

/// Queues what an earlier run accepted and did not deliver.
async fn recover(spool: Arc<TieredSpool>, queue: Sender<SpoolId>) -> Result<()> {
    // Bounded: the spool reads no faster than the messages are handled.
    let (sender, entries) = bounded(64);
    spool.enumerate(sender, Utc::now())?;
    while let Ok(entry) = entries.recv().await {
        match entry {
            SpoolEntry::Item { id, .. } => queue.send(id).await?,
            entry if entry.is_early_end() => {
                eprintln!("the disk failed for too long, and messages were left out: {entry:?}");
            }
            // Report it, restore it from elsewhere, or remove it.
            SpoolEntry::Corrupt { id, error } => eprintln!("message {id} is damaged: {error}"),
        }
    }
    Ok(())
}

/// Stands for the connections of clients. Accepts `messages` messages, or without end if it is 0.
async fn accept_all(spool: &dyn Spool, queue: &Sender<SpoolId>, messages: u64) -> Result<()> {
    let mut number = 0;
    while messages == 0 || number < messages {
        number += 1;
        let (id, message) = (SpoolId::new(), format!("Subject: message {number}\r\n\r\nHello.\r\n"));
        match accept(spool, id, message).await {
            Reply::Accepted => queue.send(id).await?,
            Reply::TryLater(why) => eprintln!("451 {why}"),
            Reply::Rejected(why) => eprintln!("552 {why}"),
        }
    }
    Ok(())
}

async fn accept(spool: &dyn Spool, id: SpoolId, message: String) -> Reply {
    // One atomic read: ask on every connection, and before each message.
    if let Some(reason) = spool.unhealthy_reason() {
        return Reply::TryLater(reason.to_owned());
    }
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    // `true`: the message is on stable storage when the client gets its answer.
    match spool.store_bytes(id, message.into(), true, Some(deadline)).await {
        Ok(()) => Reply::Accepted,
        Err(error) if error.root_cause().is::<TooLarge>() => Reply::Rejected(error.to_string()),
        Err(error) => Reply::TryLater(format!("{error:#}")),
    }
}

/// Delivers each message of the queue, and removes it.
async fn deliver(spool: Arc<TieredSpool>, queue: Receiver<SpoolId>) -> Result<()> {
    while let Ok(id) = queue.recv().await {
        match spool.load_shared(id).await {
            Ok(message) => {
                // A server sends the message here.
                drop(message);
                spool.remove(id).await?;
            }
            // Removed meanwhile, by a client for example.
            Err(error) if error.root_cause().is::<NotFound>() => {}
            // Damage, or a disk that fails now: a server tries again later.
            Err(error) => eprintln!("message {id} is not delivered: {error:#}"),
        }
    }
    Ok(())
}

async fn clean_up(spool: Arc<TieredSpool>) {
    let mut timer = interval(CLEANUP_INTERVAL);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        if let Err(error) = spool.cleanup().await {
            eprintln!("the cleanup failed, and is tried again: {error:#}");
        }
    }
}
