//! What all tasks of a run share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_channel::{Receiver, Sender};
use tidespool_core::SpoolId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::counters::Counters;
use crate::input::Input;
use crate::manifest::{Manifest, Run};
use crate::sink::Sink;
use crate::spools::Spools;

/// Messages that are accepted and not yet delivered. At this number clients have to wait. It is what bounds every
/// queue of the run.
pub(crate) const MAX_IN_FLIGHT: u32 = 4_096;

/// The server: its spools, its queues, and how to stop it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) run: Run,
    pub(crate) input: Input,
    pub(crate) spools: Spools,
    pub(crate) sink: Sink,
    pub(crate) manifest: Manifest,
    pub(crate) counters: Counters,
    pub(crate) sync: bool,
    slots: Arc<Semaphore>,
    slots_taken: Arc<AtomicUsize>,
    /// To be delivered now.
    pub(crate) ready: Queue,
    /// To be delivered later.
    pub(crate) later: Queue,
    stopping: watch::Sender<bool>,
}

/// A message between acceptance and delivery. Only this is kept in memory by the server; the rest is in the spools.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) id: SpoolId,
    /// Attempts so far.
    pub(crate) attempts: u32,
    pub(crate) due: Instant,
    /// When it was acknowledged, if that was in this process.
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
        manifest: Manifest,
        sync: bool,
        counters: Counters,
    ) -> Self {
        Self {
            run,
            input,
            spools,
            sink,
            manifest,
            counters,
            sync,
            slots: Arc::new(Semaphore::new(MAX_IN_FLIGHT as usize)),
            slots_taken: Arc::default(),
            ready: Queue::new(),
            later: Queue::new(),
            stopping: watch::Sender::new(false),
        }
    }

    /// Waits until one more message may be in flight. `None`: the server stops.
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
        // An error says that the server stops.
        let _ = self.slots.acquire_many(MAX_IN_FLIGHT).await;
    }

    /// Nothing new begins; what has begun comes to its end.
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

    /// Waits until `moment`. False: the server stops first.
    pub(crate) async fn wait_until(&self, moment: Instant) -> bool {
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => false,
            () = tokio::time::sleep_until(moment) => true,
        }
    }
}

/// A place among the messages in flight, free again when it is dropped. Counted beside the semaphore, of which the
/// permits seem taken while [`Server::idle`] collects them.
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

/// A queue of tickets. As many fit in as there may be in flight, so that nobody ever waits to put one in.
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

    /// While the server stops, the ticket is dropped: the message is in the spools, and the next run finds it there.
    pub(crate) async fn put(&self, ticket: Ticket) {
        let _ = self.sender.send(ticket).await;
    }

    /// `None`: the queue is closed and empty.
    pub(crate) async fn take(&self) -> Option<Ticket> {
        self.receiver.recv().await.ok()
    }
}
