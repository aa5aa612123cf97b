use super::*;

const ONE: Value = Some(Seen { version: Some(1), len: 100 });
const TWO: Value = Some(Seen { version: Some(2), len: 100 });
const THREE: Value = Some(Seen { version: Some(3), len: 100 });
const DURABLE: Answer = Answer::Done(Survival::Durable);
const VOLATILE: Answer = Answer::Done(Survival::Volatile);

fn write(oracle: &mut Oracle, id: SpoolId, value: Value, answer: Answer) {
    let begun = oracle.begin(id, value, answer == DURABLE);
    oracle.end(&begun, answer);
}

fn present(id: SpoolId, value: Value) -> Present {
    value.into_iter().map(|seen| (id, seen)).collect()
}

/// Checks the values that a crash may leave, and the value that callers get.
fn assert_allows(oracle: &Oracle, id: SpoolId, allowed: &[Value], visible: Value) {
    assert_eq!(oracle.visible(id), visible);
    for value in [None, ONE, TWO, THREE] {
        let (violations, found) = (oracle.violations(&present(id, value)), present(id, value));
        assert_eq!(violations.is_empty(), allowed.contains(&value), "{value:?}: {violations:?}");
        assert_eq!(oracle.differences(&found).is_empty(), value == visible, "{value:?}");
    }
}

#[test]
fn a_durable_message_is_present_and_a_durably_removed_one_is_absent() {
    let (mut oracle, id) = (Oracle::default(), SpoolId::new());
    write(&mut oracle, id, ONE, DURABLE);
    assert_allows(&oracle, id, &[ONE], ONE);
    write(&mut oracle, id, TWO, VOLATILE);
    assert_allows(&oracle, id, &[ONE, TWO], TWO);
    write(&mut oracle, id, None, VOLATILE);
    assert_allows(&oracle, id, &[None, ONE, TWO], None);
    oracle.mark_durable();
    assert_allows(&oracle, id, &[None], None);
}

#[test]
fn a_store_in_doubt_is_invisible_and_may_reappear_until_it_is_resolved() {
    type End = fn(&mut Oracle, SpoolId);
    // A removal that counts as a synced write of another id leaves that id absent.
    let ends: [(End, Value); 3] = [
        (|oracle, _| oracle.mark_durable(), ONE),
        (|oracle, _| write(oracle, SpoolId::from_bytes([0; 16]), None, DURABLE), ONE),
        // A later store of the same message.
        (|oracle, id| write(oracle, id, THREE, DURABLE), THREE),
    ];
    for (end, left) in ends {
        let (mut oracle, id) = (Oracle::default(), SpoolId::new());
        write(&mut oracle, id, ONE, DURABLE);
        write(&mut oracle, id, TWO, Answer::InDoubt);
        // A doubt excuses no loss.
        assert_allows(&oracle, id, &[ONE, TWO], ONE);
        end(&mut oracle, id);
        assert_allows(&oracle, id, &[left], left);
    }
}

/// Concurrent synced stores prove nothing about each other.
#[test]
fn a_store_that_began_before_the_error_resolves_no_doubt() {
    let (mut oracle, id) = (Oracle::default(), SpoolId::new());
    let doubted = oracle.begin(id, ONE, true);
    let beside = oracle.begin(SpoolId::from_bytes([0; 16]), None, true);
    oracle.end(&doubted, Answer::InDoubt);
    oracle.end(&beside, DURABLE);
    assert_allows(&oracle, id, &[None, ONE], None);
}

#[test]
fn messages_that_were_never_stored_are_reported() {
    let (mut oracle, id) = (Oracle::default(), SpoolId::new());
    write(&mut oracle, id, ONE, DURABLE);
    let mut found = present(SpoolId::new(), TWO);
    found.extend(present(id, ONE));
    assert!(matches!(oracle.violations(&found)[..], [Violation::Resurrected(..)]));
    assert_eq!(oracle.differences(&found).len(), 1);
    oracle.adopt(&Present::new());
    assert_allows(&oracle, id, &[None], None);
}
