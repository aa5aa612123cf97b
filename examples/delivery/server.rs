//! State shared by all tasks of a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_channel::{Receiver, Sender};
use tidespool_core::SpoolId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::counters::Counters;
use crate::input::Input;
use crate::run_log::{Run, RunLog};
use crate::sink::Sink;
use crate::spools::Spools;

/// Limit of messages that are accepted and not yet delivered. Clients wait at this number, so it
/// bounds every queue of the run.
pub(crate) const MAX_IN_FLIGHT: u32 = 4_096;

/// The server: its spools, its queues, and how to stop it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) run: Run,
    pub(crate) input: Input,
    pub(crate) spools: Spools,
    pub(crate) sink: Sink,
    pub(crate) run_log: RunLog,
    pub(crate) counters: Counters,
    pub(crate) sync: bool,
    slots: Arc<Semaphore>,
    slots_taken: Arc<AtomicUsize>,
    /// Messages to deliver now.
    pub(crate) ready: Queue,
    /// Messages to deliver later.
    pub(crate) later: Queue,
    stopping: watch::Sender<bool>,
}

/// A message between acceptance and delivery. The server keeps only this in memory; the rest is in
/// the spools.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) id: SpoolId,
    /// Number of attempts so far.
    pub(crate) attempts: u32,
    pub(crate) due: Instant,
    /// Time of the acknowledgement, if this process sent it.
    pub(crate) acknowledged: Option<Instant>,
    #[expect(dead_code, reason = "held, not used")]
    pub(crate) slot: Slot,
}

impl Server {
    pub(crate) fn new(
        run: Run,
        input: Input,
        spools: Spools,
        sink: Sink,
        run_log: RunLog,
        sync: bool,
        counters: Counters,
    ) -> Self {
        Self {
            run,
            input,
            spools,
            sink,
            run_log,
            counters,
            sync,
            slots: Arc::new(Semaphore::new(MAX_IN_FLIGHT as usize)),
            slots_taken: Arc::default(),
            ready: Queue::new(),
            later: Queue::new(),
            stopping: watch::Sender::new(false),
        }
    }

    /// Waits until one more message may be in flight. Returns `None` if the server stops.
    pub(crate) async fn slot(&self) -> Option<Slot> {
        let permit = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        self.slots_taken.fetch_add(1, Ordering::Relaxed);
        Some(Slot { _permit: permit, taken: Arc::clone(&self.slots_taken) })
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.slots_taken.load(Ordering::Relaxed)
    }

    /// Waits until nothing is in flight, or the server stops.
    pub(crate) async fn idle(&self) {
        // An error means that the server stops.
        let _ = self.slots.acquire_many(MAX_IN_FLIGHT).await;
    }

    /// Stops the server. Nothing new starts; started work is finished.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
        self.slots.close();
        self.close_queues();
    }

    pub(crate) fn close_queues(&self) {
        self.ready.sender.close();
        self.later.sender.close();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Waits until `moment`. Returns false if the server stops first.
    pub(crate) async fn wait_until(&self, moment: Instant) -> bool {
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => false,
            () = tokio::time::sleep_until(moment) => true,
        }
    }
}

/// A place among the messages in flight, released on drop. Counted separately from the semaphore,
/// whose permits look taken while [`Server::idle`] acquires them.
#[derive(Debug)]
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
    taken: Arc<AtomicUsize>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A queue of tickets. Its capacity is the limit of messages in flight, so `put` never waits.
#[derive(Debug)]
pub(crate) struct Queue {
    sender: Sender<Ticket>,
    receiver: Receiver<Ticket>,
}

impl Queue {
    fn new() -> Self {
        let (sender, receiver) = async_channel::bounded(MAX_IN_FLIGHT as usize);
        Self { sender, receiver }
    }

    /// Queues a ticket. If the server stops, the ticket is dropped: the message is in the spools,
    /// and the next run finds it there.
    pub(crate) async fn put(&self, ticket: Ticket) {
        let _ = self.sender.send(ticket).await;
    }

    /// Returns the next ticket, or `None` if the queue is closed and empty.
    pub(crate) async fn take(&self) -> Option<Ticket> {
        self.receiver.recv().await.ok()
    }
}
