//! Hand-written histories, legal and illegal.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::checker::{Call, Ending, Refuted, What, check};
use crate::oracle::Value;
use crate::payload::Seen;

/// Version `n`. 0 is no message.
fn v(n: u64) -> Value {
    (n > 0).then_some(Seen { version: Some(n), len: 100 })
}

fn call(began: u64, ended: u64, what: What) -> Call {
    Call { began, ended, what }
}

fn read(began: u64, ended: u64, n: u64) -> Call {
    call(began, ended, What::Read(v(n)))
}

fn write(began: u64, ended: u64, n: u64) -> Call {
    call(began, ended, What::Written { value: v(n), durable: false })
}

fn synced(began: u64, ended: u64, n: u64) -> Call {
    call(began, ended, What::Written { value: v(n), durable: true })
}

fn dropped(began: u64, ended: u64, n: u64) -> Call {
    call(began, ended, What::Dropped(v(n)))
}

fn failed(began: u64, ended: u64, n: u64) -> Call {
    call(began, ended, What::Failed(v(n)))
}

#[track_caller]
fn legal(initial: u64, calls: &[Call], ending: Option<Ending>) {
    assert_eq!(check(v(initial), calls, ending), Ok(()));
}

/// The call at `place` is the first one whose result no order explains.
#[track_caller]
fn illegal_at(place: usize, initial: u64, calls: &[Call]) {
    match check(v(initial), calls, None) {
        Err(Refuted::Call { place: found, .. }) => assert_eq!(found, place),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn illegal_end(initial: u64, calls: &[Call], ending: Ending) {
    let checked = check(v(initial), calls, Some(ending));
    assert!(matches!(checked, Err(Refuted::Ending { .. })), "{checked:?}");
}

#[test]
fn one_caller_reads_what_it_wrote() {
    legal(0, &[read(1, 2, 0), write(3, 4, 1), read(5, 6, 1), write(7, 8, 0), read(9, 10, 0)], None);
    legal(7, &[read(1, 2, 7), read(3, 4, 7)], None);
    illegal_at(1, 0, &[write(1, 2, 1), read(3, 4, 0)]);
    illegal_at(2, 0, &[write(1, 2, 1), write(3, 4, 2), read(5, 6, 1)]);
    illegal_at(0, 7, &[read(1, 2, 0)]);
    illegal_at(1, 0, &[write(1, 2, 1), read(3, 4, 9)]);
}

#[test]
fn a_load_beside_a_store_sees_the_old_or_the_new_value() {
    for seen in [1, 2] {
        legal(1, &[write(1, 6, 2), read(2, 5, seen)], None);
    }
    illegal_at(1, 1, &[write(1, 6, 2), read(2, 5, 0)]);
}

#[test]
fn a_later_load_sees_what_an_earlier_load_saw() {
    legal(1, &[write(1, 10, 2), read(2, 3, 1), read(4, 5, 2)], None);
    illegal_at(2, 1, &[write(1, 10, 2), read(2, 3, 2), read(4, 5, 1)]);
    // The two loads overlap: either order is legal.
    legal(1, &[write(1, 10, 2), read(2, 5, 2), read(3, 4, 1)], None);
}

#[test]
fn two_concurrent_stores_have_one_order_for_all_loads() {
    let both = [write(1, 10, 1), write(2, 11, 2)];
    legal(0, &[both[0], both[1], read(12, 13, 1)], None);
    legal(0, &[both[0], both[1], read(12, 13, 2)], None);
    illegal_at(3, 0, &[both[0], both[1], read(12, 13, 1), read(14, 15, 2)]);
    legal(0, &[both[0], both[1], read(3, 4, 1), read(5, 6, 2), read(12, 13, 2)], None);
    illegal_at(4, 0, &[both[0], both[1], read(3, 4, 1), read(5, 6, 2), read(12, 13, 1)]);
}

#[test]
fn a_long_load_may_return_what_was_replaced_while_it_ran() {
    let long = read(1, 20, 1);
    legal(0, &[long, write(2, 3, 1), write(4, 5, 2), read(6, 7, 2)], None);
    // The value was replaced before the load began.
    illegal_at(2, 0, &[write(1, 2, 1), write(3, 4, 2), read(5, 6, 1)]);
    // The load of nothing fits between the removal and the next store.
    legal(1, &[read(1, 20, 0), write(2, 3, 0), write(4, 5, 2), read(6, 7, 2)], None);
    illegal_at(0, 1, &[read(1, 20, 0), write(4, 5, 2)]);
}

#[test]
fn a_store_of_the_same_value_explains_a_load_as_well() {
    // Empty messages are indistinguishable.
    legal(0, &[write(1, 2, 1), write(3, 4, 0), write(5, 9, 1), read(6, 7, 1)], None);
    illegal_at(2, 0, &[write(1, 2, 1), write(3, 4, 0), read(5, 6, 1), write(7, 8, 1)]);
}

#[test]
fn a_dropped_store_takes_effect_late_or_never() {
    let given_up = dropped(1, 2, 1);
    legal(0, &[given_up, read(3, 4, 0)], None);
    legal(0, &[given_up, read(3, 4, 1)], None);
    legal(0, &[given_up, read(3, 4, 0), read(5, 6, 1), read(7, 8, 1)], None);
    illegal_at(2, 0, &[given_up, read(3, 4, 1), read(5, 6, 0)]);
}

#[test]
fn a_dropped_store_takes_no_effect_after_a_store_that_began_later() {
    illegal_at(2, 0, &[dropped(1, 2, 1), write(3, 4, 2), read(5, 6, 1)]);
    illegal_at(3, 0, &[dropped(1, 2, 1), write(3, 4, 2), read(5, 6, 2), read(7, 8, 1)]);
    illegal_at(2, 0, &[dropped(1, 2, 1), write(3, 4, 0), read(5, 6, 1)]);
    // The store began before the drop: either order is legal.
    legal(0, &[dropped(1, 4, 1), write(3, 5, 2), read(6, 7, 1)], None);
    // A later store that was also dropped excludes it only if it took effect.
    let two = [dropped(1, 2, 1), dropped(3, 4, 2)];
    legal(0, &[two[0], two[1], read(5, 6, 1), read(7, 8, 2)], None);
    illegal_at(3, 0, &[two[0], two[1], read(5, 6, 2), read(7, 8, 1)]);
}

#[test]
fn a_dropped_remove_takes_effect_or_not() {
    for seen in [0, 1] {
        legal(1, &[dropped(1, 2, 0), read(3, 4, seen)], None);
    }
    illegal_at(2, 1, &[dropped(1, 2, 0), read(3, 4, 0), read(5, 6, 1)]);
}

#[test]
fn a_failed_store_is_never_seen() {
    legal(1, &[failed(1, 4, 2), read(2, 3, 1), read(5, 6, 1)], None);
    illegal_at(1, 1, &[failed(1, 4, 2), read(2, 3, 2)]);
    illegal_at(1, 1, &[failed(1, 2, 2), read(3, 4, 2)]);
    illegal_end(1, &[failed(1, 2, 2)], Ending::Orderly(v(2)));
}

#[test]
fn an_orderly_end_keeps_the_final_value() {
    legal(0, &[write(1, 2, 1)], Some(Ending::Orderly(v(1))));
    illegal_end(0, &[write(1, 2, 1)], Ending::Orderly(v(0)));
    illegal_end(0, &[write(1, 2, 1), write(3, 4, 2)], Ending::Orderly(v(1)));
    illegal_end(1, &[write(1, 2, 0)], Ending::Orderly(v(1)));
    for found in [0, 1] {
        legal(0, &[dropped(1, 2, 1)], Some(Ending::Orderly(v(found))));
    }
    illegal_end(0, &[dropped(1, 2, 1), read(3, 4, 1)], Ending::Orderly(v(0)));
    // The result of a load decides between two concurrent stores.
    let both = [write(1, 10, 1), write(2, 11, 2), read(12, 13, 1)];
    legal(0, &both, Some(Ending::Orderly(v(1))));
    illegal_end(0, &both, Ending::Orderly(v(2)));
}

#[test]
fn a_crash_may_lose_what_is_not_durable_and_no_more() {
    for found in [0, 1, 2] {
        legal(0, &[write(1, 2, 1), write(3, 4, 2)], Some(Ending::Crash(v(found))));
    }
    for found in [1, 2] {
        legal(0, &[synced(1, 2, 1), write(3, 4, 2)], Some(Ending::Crash(v(found))));
    }
    illegal_end(0, &[synced(1, 2, 1), write(3, 4, 2)], Ending::Crash(v(0)));
    illegal_end(9, &[synced(1, 2, 1)], Ending::Crash(v(9)));
    illegal_end(0, &[write(1, 2, 1), synced(3, 4, 2)], Ending::Crash(v(1)));
    illegal_end(0, &[], Ending::Crash(v(1)));
}

#[test]
fn a_crash_may_undo_a_removal_that_is_not_durable() {
    for found in [0, 1] {
        legal(0, &[synced(1, 2, 1), write(3, 4, 0)], Some(Ending::Crash(v(found))));
    }
    illegal_end(0, &[synced(1, 2, 1), synced(3, 4, 0)], Ending::Crash(v(1)));
}

#[test]
fn loads_decide_what_a_crash_may_find() {
    let both = [synced(1, 10, 1), synced(2, 11, 2)];
    for found in [1, 2] {
        legal(0, &both, Some(Ending::Crash(v(found))));
    }
    // The load saw 2 before 1 replaced it.
    let seen = [both[0], both[1], read(3, 4, 2), read(5, 6, 1)];
    legal(0, &seen, Some(Ending::Crash(v(1))));
    illegal_end(0, &seen, Ending::Crash(v(2)));
}

#[test]
fn a_crash_may_find_failed_or_dropped_stores_unless_a_durable_one_came_later() {
    for given_up in [failed(1, 2, 1), dropped(1, 2, 1)] {
        for found in [0, 1] {
            legal(0, &[given_up], Some(Ending::Crash(v(found))));
            legal(0, &[given_up, read(3, 4, 0), write(5, 6, 2)], Some(Ending::Crash(v(found))));
        }
        illegal_end(0, &[given_up, synced(3, 4, 2)], Ending::Crash(v(1)));
        illegal_end(0, &[given_up, synced(3, 4, 0)], Ending::Crash(v(1)));
    }
    // The durable store began before the other one failed: either order is legal.
    legal(0, &[failed(1, 4, 1), synced(3, 6, 2)], Some(Ending::Crash(v(1))));
}

#[test]
fn the_possible_values_are_reported() {
    let refuted = check(v(0), &[write(1, 2, 1), dropped(3, 4, 2), read(5, 6, 9)], None);
    assert_eq!(refuted, Err(Refuted::Call { place: 2, possible: vec![v(1), v(2)] }));
}

#[test]
fn too_many_concurrent_calls_prove_nothing() {
    let wide: Vec<Call> = (0..100).map(|n| write(n + 1, 1_000 + n, n + 1)).collect();
    assert_eq!(check(v(0), &wide, None), Err(Refuted::TooWide));
}

/// Every history of a correct register, driven by many callers one step at a time, is legal. With
/// one load changed to a much older value, almost none is.
#[test]
fn random_histories_of_a_register_are_legal_until_one_load_is_changed() {
    let mut refuted = 0;
    for seed in 0..300 {
        let (calls, stale) = random_history(seed);
        assert_eq!(check(v(0), &calls, None), Ok(()), "seed {seed}: {calls:?}");
        if let Some((place, n)) = stale {
            let mut changed = calls.clone();
            changed[place].what = What::Read(v(n));
            refuted += u64::from(check(v(0), &changed, None).is_err());
        }
    }
    // Not every one: a dropped store of that value may still be open.
    assert!(refuted > 200, "{refuted}");
}

/// Returns a history, and a load in it with a version that was replaced before the load began.
fn random_history(seed: u64) -> (Vec<Call>, Option<(usize, u64)>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut calls: Vec<Call> = Vec::new();
    // The open call of each caller, and whether it has taken effect.
    let mut open: [Option<(usize, bool)>; 4] = [None; 4];
    let (mut value, mut stale) = (0, None);
    for now in 1..200_u64 {
        let caller = rng.random_range(0..4);
        let Some((place, has_happened)) = open[caller] else {
            let what = match rng.random_range(0..5) {
                0 | 1 => What::Read(None),
                2 => What::Written { value: None, durable: false },
                3 => What::Written { value: v(now), durable: false },
                _ => What::Dropped(v(now)),
            };
            open[caller] = Some((calls.len(), false));
            calls.push(call(now, u64::MAX, what));
            continue;
        };
        if !has_happened {
            match &mut calls[place].what {
                What::Read(seen) => *seen = v(value),
                What::Written { value: new, .. } => value = new.map_or(0, |_| calls[place].began),
                What::Dropped(_) if rng.random_bool(0.5) => value = calls[place].began,
                _ => {}
            }
            open[caller] = Some((place, true));
            continue;
        }
        calls[place].ended = now;
        open[caller] = None;
        if now > 100 && stale.is_none() && matches!(calls[place].what, What::Read(_)) {
            let began = calls[place].began;
            let acknowledged = |call: &&Call| matches!(call.what, What::Written { .. }) && call.ended < began;
            let replaced = calls.iter().filter(acknowledged).map(|call| call.began).max();
            let old = calls.iter().find(|call| {
                matches!(call.what, What::Written { value: Some(_), .. })
                    && replaced.is_some_and(|replaced| call.ended < replaced)
            });
            stale = old.map(|old| (place, old.began));
        }
    }
    // Open calls have no result: loads are left out, and writes count as dropped.
    let last = calls.len();
    for (place, _) in open.into_iter().flatten() {
        calls[place].ended = 1_000;
        calls[place].what = match calls[place].what {
            What::Written { value, .. } => What::Dropped(value),
            What::Read(_) => What::Dropped(v(1_000_000 + last as u64)),
            other => other,
        };
    }
    (calls, stale)
}
