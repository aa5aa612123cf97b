//! The cases: each checks one promise of a spool, and panics if the promise is broken.
//!
//! To add a case, write a function in one of the modules here, and add a line to the list in this
//! file. A spool in `tests/teeth` must show that the case can fail.

pub mod closing;
pub mod concurrent;
pub mod dropped;
pub mod enumerate;
pub mod enumerate_traffic;
pub mod refuse;
pub mod remove;
pub mod reopen;
pub mod store;
pub mod upkeep;

mod calls;

use crate::Case;

/// A case and its name.
#[derive(Debug, Clone, Copy)]
pub struct NamedCase {
    /// The name of its function and of its test.
    pub name: &'static str,
    /// The function that runs it.
    pub run: Case,
}

/// Makes a `#[test]` of each conformance case. The argument is an expression that makes a new
/// [`Factory`](crate::Factory) with its own storage each time. Invoke the macro in a
/// separate module.
#[macro_export]
macro_rules! conformance_tests {
    ($factory:expr) => {
        $crate::conformance_cases! { render_conformance_tests $factory }
    };
}

/// Passes the list of cases to the macro that the first argument names.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    ($render:ident $($arg:tt)*) => {
        $crate::$render! { [$($arg)*]
            store::an_absent_message_is_not_found
            store::messages_of_every_size_come_back
            store::bytes_of_every_value_come_back
            store::the_last_store_counts
            store::a_settled_version_is_replaced
            store::ids_of_every_kind_are_kept_apart
            store::a_deadline_ahead_is_met
            remove::removing_the_unknown_is_ok
            remove::a_removed_message_is_gone_at_once
            remove::a_removed_message_stays_away_through_upkeep
            remove::a_removed_id_can_be_stored_again
            refuse::a_past_deadline_stores_nothing
            refuse::a_past_deadline_leaves_the_earlier_version
            refuse::a_message_too_large_stores_nothing
            refuse::a_message_too_large_leaves_the_earlier_version
            refuse::the_largest_message_is_taken
            enumerate::an_empty_spool_enumerates_nothing
            enumerate::every_message_is_enumerated_once
            enumerate::start_time_is_a_strict_bound
            enumerate::ids_without_a_time_are_always_enumerated
            enumerate::a_dropped_receiver_stops_it
            enumerate::a_slow_receiver_gets_everything
            enumerate::enumerations_do_not_disturb_each_other
            enumerate::a_stuck_receiver_does_not_hold_up_shutdown
            enumerate_traffic::messages_present_throughout_are_seen_once
            concurrent::a_load_sees_one_version_whole
            concurrent::many_callers_on_one_id_agree_in_the_end
            concurrent::callers_on_many_ids_do_not_disturb_each_other
            dropped::a_dropped_store_is_done_whole_or_not_at_all
            dropped::dropped_stores_leak_no_room
            dropped::a_later_store_beats_a_dropped_one
            dropped::a_later_remove_beats_a_dropped_store
            upkeep::upkeep_keeps_every_message
            upkeep::upkeep_of_an_empty_spool_is_ok
            upkeep::upkeep_beside_traffic_loses_nothing
            upkeep::a_healthy_spool_gives_no_reason
            closing::shutdown_is_safe_to_repeat
            closing::calls_after_shutdown_are_refused
            closing::stores_beside_a_shutdown_are_answered
            reopen::stored_messages_survive_a_restart
            reopen::replaced_messages_survive_as_replaced
            reopen::removed_messages_stay_away_after_a_restart
            reopen::a_message_stored_after_its_removal_survives
            reopen::start_time_holds_after_a_restart
            reopen::synced_messages_survive_a_drop
        }
    };
}

/// Renders one test for each case.
#[doc(hidden)]
#[macro_export]
macro_rules! render_conformance_tests {
    ([$factory:expr] $($module:ident :: $case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::run(stringify!($case), $factory, |subject| {
                    ::std::boxed::Box::pin($crate::cases::$module::$case(subject))
                });
            }
        )*
    };
}

/// Renders the list as an array.
#[doc(hidden)]
#[macro_export]
macro_rules! render_case_array {
    ([] $($module:ident :: $case:ident)*) => {
        &[$($crate::NamedCase {
            name: stringify!($case),
            run: |subject| ::std::boxed::Box::pin($crate::cases::$module::$case(subject)),
        }),*]
    };
}

/// All cases, for callers that run them without the macro.
pub const CASES: &[NamedCase] = crate::conformance_cases!(render_case_array);
