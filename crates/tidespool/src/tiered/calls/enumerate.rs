//! `enumerate` and `stream`: send every live message once, with its payload.
//!
//! Payloads are read in the order of their places on disk. A message that was read ahead is sent
//! only if it is still the newest version when the whole batch has been read. Otherwise, or if the
//! receiver is slow, the message is looked up by itself.

use tidespool_core::SpoolEntry;

use super::lookup::{InMemory, LookupError, in_memory, on_disk};
use super::walk::{Body, STEP, Stopped, Visitor, Walk, cause_of, position};
use crate::journal::RecordPlace;
use crate::message_id::MessageId;

/// Maximum bytes that are read ahead at once. A single larger message is read whole.
const AHEAD: u64 = 2 << 20;

/// Sends the messages with their payloads.
pub(in crate::tiered) struct Payloads;

impl Walk<Payloads> {
    /// Sends all messages, then drops the sender, which closes the channel.
    pub(in crate::tiered) fn enumerate(self) {
        // The receiver gets no other notice of the end than the closed channel and this entry.
        if let Err(Stopped::Failed(error)) = self.run() {
            let _ = self.send(SpoolEntry::early_end(&error.to_string()));
        }
    }
}

impl Visitor for Payloads {
    type Sent = SpoolEntry;

    const READS_PAYLOADS: bool = true;

    fn visit(walk: &Walk<Self>, step: Vec<(MessageId, Body)>, exits: Option<u64>) -> Result<(), Stopped> {
        let mut step = step.into_iter().peekable();
        while step.peek().is_some() {
            let (mut some, mut bytes) = (Vec::with_capacity(STEP), 0);
            while let Some((id, body)) =
                step.next_if(|(_, body)| some.is_empty() || bytes + body.len() <= AHEAD)
            {
                bytes += body.len();
                some.push((id, body));
            }
            walk.send_read_ahead(some, exits)?;
        }
        Ok(())
    }
}

impl Walk<Payloads> {
    fn send_read_ahead(&self, some: Vec<(MessageId, Body)>, exits: Option<u64>) -> Result<(), Stopped> {
        let mut payloads = self.read_ahead(&some);
        let newest: Vec<bool> = some.iter().map(|(id, body)| self.is_newest(id, body)).collect();
        let (mut is_fresh, mut has_waited) = (self.is_disk_unchanged(exits), false);
        for (number, (id, body)) in some.into_iter().enumerate() {
            let is_newest = is_fresh && newest[number] && (!has_waited || self.is_newest(&id, &body));
            let data = match body {
                Body::Indexed(_) | Body::At(_) => payloads[number].take(),
                Body::Unknown => None,
            };
            let at_once = match data.filter(|_| is_newest) {
                Some(data) => self.send(SpoolEntry::Item { id: id.id(), data })?,
                None => {
                    self.send_message(id)?;
                    // The lookup may have waited for the disk.
                    false
                }
            };
            if !at_once {
                has_waited = true;
                is_fresh = is_fresh && self.is_disk_unchanged(exits);
            }
        }
        Ok(())
    }

    /// Reads the payloads with a known place in a segment, in the order of their places. `None`:
    /// the message has to be looked up by itself.
    fn read_ahead(&self, some: &[(MessageId, Body)]) -> Vec<Option<Vec<u8>>> {
        let mut order: Vec<(usize, MessageId, RecordPlace)> = some
            .iter()
            .enumerate()
            .filter_map(|(number, (id, body))| Some((number, *id, body.place()?)))
            .collect();
        order.sort_unstable_by_key(|(_, _, place)| position(*place));
        let mut payloads: Vec<Option<Vec<u8>>> = some.iter().map(|_| None).collect();
        for same in order.chunk_by(|(_, _, one), (_, _, other)| one.generation == other.generation) {
            let Some(segment) = self.shared.segments.get(same[0].2.generation) else { continue };
            let puts: Vec<(MessageId, RecordPlace)> =
                same.iter().map(|(_, id, place)| (*id, *place)).collect();
            for (payload, (number, ..)) in
                segment.read_puts(self.shared.segments.salt(), &puts).into_iter().zip(same)
            {
                payloads[*number] = payload;
            }
        }
        payloads
    }

    fn send_message(&self, message: MessageId) -> Result<(), Stopped> {
        let id = message.id();
        let entry = self.retry(|| match in_memory(&self.shared, &message) {
            InMemory::Found(data, _) => Ok(Some(SpoolEntry::Item { id, data: data.to_vec() })),
            InMemory::Removed => Ok(None),
            InMemory::Elsewhere(_) => match on_disk(&self.shared, &message) {
                Ok(found) => Ok(found.map(|found| SpoolEntry::Item { id, data: found.data })),
                Err(LookupError::Corrupt(error)) => Ok(Some(SpoolEntry::Corrupt { id, error })),
                Err(error) => Err(cause_of(error)),
            },
        })?;
        match entry {
            Some(entry) => self.send(entry).map(drop),
            None => Ok(()),
        }
    }
}
