//! The messages that wait for their next attempt.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use anyhow::Result;
use tokio::time::Instant;

use crate::server::{Server, Ticket};

/// Passes each ticket on when it is due. Ends when the queue is closed; messages that still wait
/// remain in the spools.
pub(crate) async fn wait_and_pass_on(server: Arc<Server>) -> Result<()> {
    // Bounded by the number of messages in flight.
    let mut waiting: BinaryHeap<Reverse<ByDue>> = BinaryHeap::new();
    loop {
        let next_due = waiting.peek().map(|Reverse(first)| first.0.due);
        tokio::select! {
            taken = server.later.take() => match taken {
                Some(ticket) => waiting.push(Reverse(ByDue(ticket))),
                None => return Ok(()),
            },
            () = sleep_until(next_due) => {
                if let Some(Reverse(ByDue(ticket))) = waiting.pop() {
                    server.ready.put(ticket).await;
                }
            }
        }
    }
}

/// Without a moment, sleeps for ever.
async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// A ticket, ordered by due time.
struct ByDue(Ticket);

impl Ord for ByDue {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.due, self.0.id).cmp(&(other.0.due, other.0.id))
    }
}

impl PartialOrd for ByDue {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByDue {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByDue {}
