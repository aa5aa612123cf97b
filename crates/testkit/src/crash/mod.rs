//! A `kill -9` test: work, kill, and a check of the recovered messages.
//!
//! * The **child** ([`work`]) opens the spool and runs a random mix of stores, replaces, removes
//!   and loads. It writes each intent before the call and each result after it to its standard
//!   output ([`Report`]).
//! * The **parent** ([`Victim`]) keeps this log, kills the child at some moment, opens the spool
//!   itself and lists its messages ([`take_stock`]).
//! * The **check** ([`judge`]) compares the log with the recovered messages, by the rules of
//!   [`oracle`](crate::oracle). It is a pure function; its tests pass it each kind of violation. In
//!   addition, I4: no torn, mixed or wrong bytes.

mod event;
mod judge;
#[cfg(test)]
mod judge_tests;
mod stock;
mod victim;
mod work;

pub use event::{Event, Line, Report};
pub use judge::{Coverage, Verdict, judge};
pub use stock::{Found, Stock, remove_surplus, take_stock, take_stock_of};
pub use victim::{Moment, Victim};
pub use work::work;
