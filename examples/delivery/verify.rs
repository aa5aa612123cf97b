//! Compares the messages that arrived with the messages that were sent.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use tidespool_core::SpoolId;

use crate::bounce;
use crate::counters::Problems;
use crate::input::Input;
use crate::run_log::{Accepted, Notes};
use crate::sink::{Shelf, Sink};

/// Messages that arrived and are correct.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) delivered: u64,
    pub(crate) bounced: u64,
    /// Message bytes compared, including those inside bounces.
    pub(crate) bytes: u64,
}

/// Compares every byte in the sink with the input, and adds differences to `problems`. `notes` list
/// the expected messages; they are read from disk, not from the memory of the server.
pub(crate) fn check(notes: &Notes, input: &Input, sink: &Sink, problems: &Problems) -> io::Result<Arrived> {
    let mut arrived = Arrived::default();
    for accepted in notes.accepted.values() {
        check_one(notes, accepted, input, sink, problems, &mut arrived)?;
    }
    for shelf in Shelf::ALL {
        for id in sink.ids(shelf)? {
            if !notes.accepted.contains_key(&id) {
                problems.add(format!("{} arrived but was never accepted", sink.path(shelf, id).display()));
            }
        }
    }
    check_indexes(notes, problems);
    Ok(arrived)
}

fn check_one(
    notes: &Notes,
    accepted: &Accepted,
    input: &Input,
    sink: &Sink,
    problems: &Problems,
    arrived: &mut Arrived,
) -> io::Result<()> {
    let id = accepted.id;
    let sent = input.template(accepted.index);
    let delivered = sink.read(Shelf::Delivered, id)?;
    let bounced = sink.read(Shelf::Bounced, id)?;
    let (shelf, bytes) = match (&delivered, &bounced) {
        (Some(bytes), None) => (Shelf::Delivered, Some(bytes.as_slice())),
        (None, Some(report)) => (Shelf::Bounced, bounce::message_in(report, id)),
        (Some(_), Some(_)) => {
            problems.add(format!("message {id} ({}) was delivered and bounced", sent.name));
            return Ok(());
        }
        (None, None) => {
            // Recovery has logged and classified the loss.
            match notes.lost.get(&id) {
                Some(lost) if lost.excused => {}
                Some(_) => problems.add(format!("message {id} ({}) had to survive the kill", sent.name)),
                None => problems.add(format!("message {id} ({}) did not arrive", sent.name)),
            }
            return Ok(());
        }
    };
    if bytes != Some(&sent.bytes[..]) {
        let path = sink.path(shelf, id);
        problems.add(format!("{} differs from what was sent ({})", path.display(), sent.name));
        return Ok(());
    }
    arrived.bytes += sent.bytes.len() as u64;
    match shelf {
        Shelf::Delivered => arrived.delivered += 1,
        Shelf::Bounced => arrived.bounced += 1,
    }
    Ok(())
}

/// Checks that each message of the run was accepted once.
fn check_indexes(notes: &Notes, problems: &Problems) {
    let mut times: BTreeMap<u64, u32> = BTreeMap::new();
    for accepted in notes.accepted.values() {
        *times.entry(accepted.index).or_default() += 1;
    }
    for (index, count) in &times {
        if *count > 1 {
            problems.add(format!("message number {index} was accepted {count} times"));
        }
    }
    let missing = (0..notes.run.messages).filter(|index| !times.contains_key(index)).count();
    if missing > 0 {
        problems.add(format!("{missing} messages of the run were never accepted"));
    }
}

/// Checks that a spool is empty after everything is delivered.
pub(crate) fn check_spool(name: &str, left: &BTreeSet<SpoolId>, problems: &Problems) {
    for id in left {
        problems.add(format!("message {id} was removed and is still in the {name} spool"));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Args;
    use crate::envelope::Envelope;
    use crate::run_log::{Lost, Run, VERSION};

    struct Case {
        _dir: tempfile::TempDir,
        notes: Notes,
        input: Input,
        sink: Sink,
        ids: Vec<SpoolId>,
    }

    impl Case {
        /// Three correct messages in the sink; the last is a bounce.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let input = Input::read(&Args::try_parse_from(["delivery"]).unwrap(), 3).unwrap();
            let sink = Sink::new(dir.path()).unwrap();
            let ids: Vec<SpoolId> = (0..3).map(|_| SpoolId::new()).collect();
            let accepted =
                (0..).zip(&ids).map(|(index, id)| Accepted { id: *id, index, at_ms: 1, synced: false });
            let notes = Notes {
                run: Run {
                    version: VERSION,
                    messages: 3,
                    seed: 1,
                    failures: 0,
                    origin: String::new(),
                    fingerprint: 0,
                    sink: String::new(),
                },
                accepted: accepted.map(|accepted| (accepted.id, accepted)).collect(),
                lost: BTreeMap::new(),
            };
            sink.put(Shelf::Delivered, ids[0], &input.template(0).bytes).unwrap();
            sink.put(Shelf::Delivered, ids[1], &input.template(1).bytes).unwrap();
            let envelope = Envelope { sender: String::new(), recipient: String::new() };
            let report = bounce::render(ids[2], &envelope, 1, "now", &input.template(2).bytes);
            sink.put(Shelf::Bounced, ids[2], &report).unwrap();
            Self { _dir: dir, notes, input, sink, ids }
        }

        fn check(&self) -> (Arrived, Vec<String>) {
            let problems = Problems::default();
            let arrived = check(&self.notes, &self.input, &self.sink, &problems).unwrap();
            (arrived, problems.first())
        }

        fn only_problem(&self) -> String {
            let (_, problems) = self.check();
            assert_eq!(problems.len(), 1, "{problems:?}");
            problems[0].clone()
        }
    }

    #[test]
    fn a_good_run_has_no_problems() {
        let case = Case::new();
        let (arrived, problems) = case.check();
        assert_eq!((arrived.delivered, arrived.bounced), (2, 1));
        assert_eq!(
            arrived.bytes,
            (0..3).map(|index| case.input.template(index).bytes.len() as u64).sum::<u64>()
        );
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn one_wrong_byte_is_found() {
        let case = Case::new();
        let mut bytes = case.input.template(1).bytes.to_vec();
        bytes[7] ^= 1;
        case.sink.put(Shelf::Delivered, case.ids[1], &bytes).unwrap();
        assert!(case.only_problem().contains("differs from what was sent"));
    }

    #[test]
    fn a_wrong_byte_in_a_bounce_is_found() {
        let case = Case::new();
        let mut report = case.sink.read(Shelf::Bounced, case.ids[2]).unwrap().unwrap();
        let position = report.len() - 60;
        report[position] ^= 1;
        case.sink.put(Shelf::Bounced, case.ids[2], &report).unwrap();
        assert!(case.only_problem().contains("differs from what was sent"));
    }

    #[test]
    fn a_missing_message_is_found_unless_its_loss_is_excused() {
        let mut case = Case::new();
        std::fs::remove_file(case.sink.path(Shelf::Delivered, case.ids[0])).unwrap();
        assert!(case.only_problem().contains("did not arrive"));
        let id = case.ids[0];
        case.notes.lost.insert(id, Lost { id, excused: false });
        assert!(case.only_problem().contains("had to survive"));
        case.notes.lost.insert(id, Lost { id, excused: true });
        assert!(case.check().1.is_empty());
    }

    #[test]
    fn an_unexpected_message_is_found() {
        let case = Case::new();
        case.sink.put(Shelf::Delivered, SpoolId::new(), b"ghost").unwrap();
        assert!(case.only_problem().contains("never accepted"));
    }

    #[test]
    fn a_message_both_delivered_and_bounced_is_found() {
        let case = Case::new();
        case.sink.put(Shelf::Bounced, case.ids[0], b"x").unwrap();
        assert!(case.only_problem().contains("delivered and bounced"));
    }

    #[test]
    fn each_message_is_accepted_once() {
        let mut case = Case::new();
        case.notes.run.messages = 5;
        assert!(case.only_problem().contains("2 messages of the run were never accepted"));
        case.notes.run.messages = 3;
        let id = SpoolId::new();
        case.sink.put(Shelf::Delivered, id, &case.input.template(0).bytes).unwrap();
        case.notes.accepted.insert(id, Accepted { id, index: 0, at_ms: 1, synced: false });
        assert!(case.only_problem().contains("message number 0 was accepted 2 times"));
    }
}
