//! Messages leave the spools: to the sink, to the retry queue, or as a bounce.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tidespool_core::SpoolId;
use tokio::time::Instant;

use crate::accept::is_refusal;
use crate::bounce;
use crate::envelope::Envelope;
use crate::meta::{Meta, now_ms};
use crate::schedule::{self, Outcome};
use crate::server::{Server, Ticket};
use crate::sink::Shelf;

/// Delivers one message after the other, until the queue is closed.
pub(crate) async fn worker(server: Arc<Server>) -> Result<()> {
    while let Some(ticket) = server.ready.take().await {
        if server.is_stopping() {
            break;
        }
        let id = ticket.id;
        attempt(&server, ticket).await.with_context(|| format!("cannot deliver message {id}"))?;
    }
    Ok(())
}

/// One attempt to deliver one message.
async fn attempt(server: &Arc<Server>, ticket: Ticket) -> Result<()> {
    let Some((meta, data)) = load(server, &ticket).await else { return Ok(()) };
    let Server { run, counters, .. } = server.as_ref();
    match schedule::outcome(run.seed, meta.index, ticket.attempts, run.failures) {
        Outcome::TemporaryFailure => retry_later(server, ticket, meta).await,
        Outcome::Delivered => {
            let length = data.len() as u64;
            put(server, Shelf::Delivered, ticket.id, data).await?;
            if let Some(acknowledged) = ticket.acknowledged {
                counters.delivery_time.record(acknowledged.elapsed());
            }
            counters.delivered_bytes.add(length);
            remove(server, ticket.id).await?;
            counters.delivered.add(1);
            Ok(())
        }
        Outcome::PermanentFailure => {
            let envelope = Envelope { sender: meta.sender, recipient: meta.recipient };
            let date = chrono::Utc::now().to_rfc2822();
            let report = bounce::render(ticket.id, &envelope, ticket.attempts + 1, &date, &data);
            put(server, Shelf::Bounced, ticket.id, report).await?;
            remove(server, ticket.id).await?;
            counters.bounced.add(1);
            Ok(())
        }
    }
}

/// Loads both parts of a message. On an error, records a problem and returns `None`. The message
/// stays in the spools, and the check at the end finds it missing in the sink.
async fn load(server: &Server, ticket: &Ticket) -> Option<(Meta, Vec<u8>)> {
    let id = ticket.id;
    match load_both(server, id).await {
        Ok((meta, data)) => {
            if !meta.fits(&data) {
                server.counters.problems.add(format!("message {id} was loaded with other bytes than stored"));
                return None;
            }
            Some((meta, data))
        }
        Err(err) => {
            server.counters.problems.add(format!("message {id} cannot be loaded: {err:#}"));
            None
        }
    }
}

async fn load_both(server: &Server, id: SpoolId) -> Result<(Meta, Vec<u8>)> {
    let meta = server.spools.meta().load(id).await.context("metadata")?;
    let meta = Meta::from_bytes(&meta).context("metadata")?;
    let data = server.spools.data().load(id).await.context("data")?;
    Ok((meta, data))
}

async fn retry_later(server: &Server, mut ticket: Ticket, mut meta: Meta) -> Result<()> {
    ticket.attempts += 1;
    let delay = schedule::retry_delay(server.run.seed, meta.index, ticket.attempts);
    meta.attempts = ticket.attempts;
    meta.next_try_ms = now_ms().saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    // Not synced: if this version is lost, the earlier one remains, and costs one attempt more.
    let saved =
        server.spools.meta().store(ticket.id, Arc::new(meta.to_bytes()?), false, Some(deadline)).await;
    match saved {
        // A rejected store also leaves the earlier version.
        Err(err) if !is_refusal(&err) => return Err(err),
        _ => {}
    }
    server.counters.retried.add(1);
    ticket.due = Instant::now() + delay;
    server.later.put(ticket).await;
    Ok(())
}

async fn put(server: &Arc<Server>, shelf: Shelf, id: SpoolId, bytes: Vec<u8>) -> Result<()> {
    let shared = Arc::clone(server);
    let put = tokio::task::spawn_blocking(move || shared.sink.put(shelf, id, &bytes)).await?;
    let replaced = put.with_context(|| format!("writing {}", server.sink.path(shelf, id).display()))?;
    if replaced {
        server.counters.duplicates.add(1);
    }
    Ok(())
}

/// Removes metadata, then data: the metadata marks a message as undelivered.
async fn remove(server: &Server, id: SpoolId) -> Result<()> {
    server.spools.meta().remove(id).await.context("removing its metadata")?;
    server.spools.data().remove(id).await.context("removing its data")
}
