//! Clients send messages. The server stores and acknowledges them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tidespool_core::{SpoolBackpressureTimeout, SpoolCallerDeadlineExceeded, SpoolId, SpoolUnhealthyError};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::input::Template;
use crate::meta::{Meta, now_ms};
use crate::resume::Found;
use crate::run_log::{Accepted, Line};
use crate::schedule;
use crate::server::{Server, Slot, Ticket};

/// Longest time that a store may take, in all.
const STORE_DEADLINE: Duration = Duration::from_secs(10);

/// Delay before a client sends a rejected message again.
const RESEND_DELAY: Duration = Duration::from_millis(250);

/// Rejections of one message before the run fails.
const MAX_REJECTIONS: u32 = 20;

/// State shared by the clients.
struct Clients {
    /// The messages to send.
    indexes: Vec<u64>,
    next: AtomicUsize,
    started: Instant,
    messages_per_s: u32,
}

/// Queues the messages of an earlier run, sends the messages `indexes`, and waits until all of them
/// are delivered.
pub(crate) async fn all(
    server: Arc<Server>,
    found: Vec<Found>,
    indexes: Vec<u64>,
    messages_per_s: u32,
    concurrency: u16,
) -> Result<()> {
    for message in found {
        let Some(slot) = server.slot().await else { return Ok(()) };
        let wait_ms = u64::try_from(message.next_try_ms - now_ms()).unwrap_or(0);
        let due = Instant::now() + Duration::from_millis(wait_ms);
        let Found { id, attempts, .. } = message;
        server.later.put(Ticket { id, attempts, due, acknowledged: None, slot }).await;
    }
    let clients =
        Arc::new(Clients { indexes, next: AtomicUsize::new(0), started: Instant::now(), messages_per_s });
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        tasks.spawn(client(Arc::clone(&server), Arc::clone(&clients)));
    }
    while let Some(joined) = tasks.join_next().await {
        joined.context("a client")??;
    }
    server.idle().await;
    server.close_queues();
    Ok(())
}

/// Sends one message after the other, each when it is due.
async fn client(server: Arc<Server>, clients: Arc<Clients>) -> Result<()> {
    loop {
        let nth = clients.next.fetch_add(1, Ordering::Relaxed);
        let Some(index) = clients.indexes.get(nth) else { return Ok(()) };
        let due = clients.started + schedule::due(nth as u64, clients.messages_per_s);
        if !server.wait_until(due).await {
            return Ok(());
        }
        let Some(slot) = server.slot().await else { return Ok(()) };
        accept(&server, *index, slot).await?;
    }
}

/// Stores a message, acknowledges it, and queues it for delivery. Sends it again if the spool
/// rejects it temporarily.
async fn accept(server: &Server, index: u64, slot: Slot) -> Result<()> {
    let template = server.input.template(index);
    let mut refusals = 0;
    loop {
        let id = SpoolId::new();
        let began = Instant::now();
        match store(server, id, index, template).await {
            Ok(at_ms) => {
                server.counters.accept_time.record(began.elapsed());
                // Logged before delivery may start, so no message arrives that is not in the log.
                server.run_log.append(&Line::Accepted(Accepted { id, index, at_ms, synced: server.sync }))?;
                server.counters.accepted.add(1);
                server.counters.accepted_bytes.add(template.bytes.len() as u64);
                let now = Instant::now();
                let ticket = Ticket { id, attempts: 0, due: now, acknowledged: Some(now), slot };
                server.ready.put(ticket).await;
                return Ok(());
            }
            Err(err) if is_refusal(&err) && refusals < MAX_REJECTIONS => {
                refusals += 1;
                server.counters.refused.add(1);
                if !server.wait_until(Instant::now() + RESEND_DELAY).await {
                    return Ok(());
                }
            }
            Err(err) => return Err(err.context(format!("cannot accept {}", template.name))),
        }
    }
}

/// Stores data and metadata. Returns the time of acceptance in milliseconds since 1970.
async fn store(server: &Server, id: SpoolId, index: u64, template: &Template) -> Result<i64> {
    let deadline = Some(std::time::Instant::now() + STORE_DEADLINE);
    let accepted_ms = now_ms();
    let meta = Meta {
        index,
        sender: template.envelope.sender.clone(),
        recipient: template.envelope.recipient.clone(),
        attempts: 0,
        next_try_ms: accepted_ms,
        accepted_ms,
        synced: server.sync,
        length: template.bytes.len() as u64,
        crc32c: template.crc32c,
    };
    let (data, meta) = (Arc::clone(&template.bytes), Arc::new(meta.to_bytes()?));
    server.spools.accept(id, data, meta, server.sync, deadline).await?;
    Ok(accepted_ms)
}

/// True for temporary errors, after which the client sends the message again later.
pub(crate) fn is_refusal(err: &anyhow::Error) -> bool {
    let root = err.root_cause();
    root.is::<SpoolUnhealthyError>()
        || root.is::<SpoolCallerDeadlineExceeded>()
        || root.is::<SpoolBackpressureTimeout>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_errors_differ_from_failures() {
        let refusal = anyhow::Error::from(SpoolUnhealthyError).context("storing");
        assert!(is_refusal(&refusal));
        assert!(is_refusal(&SpoolBackpressureTimeout.into()));
        assert!(is_refusal(&SpoolCallerDeadlineExceeded.into()));
        assert!(!is_refusal(&tidespool_core::Closed.into()));
        assert!(!is_refusal(&std::io::Error::other("disk").into()));
    }
}
