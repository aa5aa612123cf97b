use super::*;

const ONE: Value = Some(Seen { version: Some(1), len: 100 });
const TWO: Value = Some(Seen { version: Some(2), len: 100 });
const THREE: Value = Some(Seen { version: Some(3), len: 100 });

/// An oracle that knows one id.
struct Single {
    oracle: Oracle,
    id: SpoolId,
}

impl Single {
    fn new() -> Self {
        Self { oracle: Oracle::default(), id: SpoolId::new() }
    }

    fn write(&mut self, value: Value, answer: Answer) {
        let synced = answer == Answer::Done(Survival::Durable);
        let begun = self.oracle.begin(self.id, value, synced);
        self.oracle.end(&begun, answer);
    }

    fn present(&self, value: Value) -> Present {
        value.into_iter().map(|seen| (self.id, seen)).collect()
    }

    fn assert_allowed(&self, values: &[Value]) {
        for value in [None, ONE, TWO, THREE] {
            let violations = self.oracle.violations(&self.present(value));
            assert_eq!(violations.is_empty(), values.contains(&value), "{value:?}: {violations:?}");
        }
    }

    fn assert_visible(&self, value: Value) {
        assert_eq!(self.oracle.visible(self.id), value);
        for other in [None, ONE, TWO, THREE] {
            let differences = self.oracle.differences(&self.present(other));
            assert_eq!(differences.len(), usize::from(other != value), "{differences:?}");
        }
    }
}

const DURABLE: Answer = Answer::Done(Survival::Durable);
const VOLATILE: Answer = Answer::Done(Survival::Volatile);

#[test]
fn a_durable_message_is_present_and_a_durably_removed_one_is_absent() {
    let mut single = Single::new();
    single.write(ONE, DURABLE);
    single.assert_allowed(&[ONE]);
    single.write(TWO, VOLATILE);
    single.assert_allowed(&[ONE, TWO]);
    single.write(None, VOLATILE);
    single.assert_allowed(&[None, ONE, TWO]);
    single.oracle.mark_durable();
    single.assert_allowed(&[None]);
    single.assert_visible(None);
}

#[test]
fn a_store_in_doubt_is_invisible_and_may_reappear_until_it_is_resolved() {
    let ends: [(fn(&mut Single), Value); 3] = [
        (|single| single.oracle.mark_durable(), ONE),
        (
            |single| {
                let begun = single.oracle.begin(SpoolId::new(), THREE, true);
                single.oracle.end(&begun, DURABLE);
            },
            ONE,
        ),
        // A later store of the same message.
        (|single| single.write(THREE, DURABLE), THREE),
    ];
    for (end, left) in ends {
        let mut single = Single::new();
        single.write(ONE, DURABLE);
        single.write(TWO, Answer::InDoubt);
        single.assert_visible(ONE);
        // A doubt excuses no loss.
        single.assert_allowed(&[ONE, TWO]);
        end(&mut single);
        let violations = single.oracle.check(single.id, TWO, &mut Losses::default());
        assert!(violations.is_err());
        assert_eq!(single.oracle.check(single.id, left, &mut Losses::default()), Ok(false));
    }
}

/// Concurrent synced stores prove nothing about each other.
#[test]
fn a_store_that_began_before_the_error_resolves_no_doubt() {
    let mut single = Single::new();
    let doubted = single.oracle.begin(single.id, ONE, true);
    let beside = single.oracle.begin(SpoolId::new(), TWO, true);
    single.oracle.end(&doubted, Answer::InDoubt);
    single.oracle.end(&beside, DURABLE);
    assert_eq!(single.oracle.check(single.id, ONE, &mut Losses::default()), Ok(false));
    assert_eq!(single.oracle.in_doubt(), 1);
}

#[test]
fn messages_that_were_never_stored_are_reported() {
    let mut single = Single::new();
    single.write(ONE, DURABLE);
    let mut found = single.present(ONE);
    found.extend(TWO.map(|seen| (SpoolId::new(), seen)));
    assert!(matches!(single.oracle.violations(&found)[..], [Violation::Resurrected(..)]));
    assert_eq!(single.oracle.differences(&found).len(), 1);
    single.oracle.adopt(&Present::new());
    single.assert_visible(None);
    single.assert_allowed(&[None]);
}
