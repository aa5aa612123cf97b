//! `unpaired`: sends the ids of one spool without a message of the same id in another spool.

use tidespool_core::SpoolId;

use super::walk::{Body, Stopped, Visitor, Walk};
use crate::message_id::{MessageId, SpoolNumber};

/// Sends the ids without a partner, one by one: few ids lie between the check and the receiver.
pub(in crate::tiered) struct Unpaired {
    /// The spool of the partners.
    pub(in crate::tiered) partners: SpoolNumber,
}

impl Visitor for Unpaired {
    type Sent = SpoolId;

    const READS_PAYLOADS: bool = false;

    fn visit(walk: &Walk<Self>, step: Vec<(MessageId, Body)>, _: Option<u64>) -> Result<(), Stopped> {
        // The age of an id without a time is not known: its partner may be on its way.
        for (message, _) in step.into_iter().filter(|(message, _)| message.id().created().is_some()) {
            if walk.is_unpaired(&message)? {
                walk.send(message.id())?;
            }
        }
        Ok(())
    }
}

impl Walk<Unpaired> {
    /// True if the message is there and its partner is not.
    fn is_unpaired(&self, message: &MessageId) -> Result<bool, Stopped> {
        let partner = MessageId::new(self.visitor.partners, message.id());
        let has = |message: &MessageId| Ok(self.locate(message)?.is_some());
        is_unpaired(|| has(&partner), || has(message))
    }
}

/// The partner is looked up again after the message was found: it may have been stored since the
/// first look.
fn is_unpaired<E>(
    has_partner: impl Fn() -> Result<bool, E>,
    has_message: impl FnOnce() -> Result<bool, E>,
) -> Result<bool, E> {
    Ok(!has_partner()? && has_message()? && !has_partner()?)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::is_unpaired;

    #[test]
    fn a_partner_that_is_stored_during_the_check_counts() {
        for (before, during, message, expected) in [
            (false, false, true, true),
            (true, true, true, false),
            (false, true, true, false),
            (false, false, false, false),
        ] {
            let partner = Cell::new(before);
            let has_message = || {
                partner.set(during);
                Ok::<_, Infallible>(message)
            };
            assert_eq!(is_unpaired(|| Ok(partner.get()), has_message), Ok(expected));
        }
    }
}
