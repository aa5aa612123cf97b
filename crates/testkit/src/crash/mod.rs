//! A `kill -9` test: work, kill, and a check of the recovered messages.
//!
//! * The **child** ([`work`]) opens the spool and runs a random mix of stores, replaces, removes
//!   and loads. It writes each intent before the call and each result after it to its standard
//!   output ([`Report`]).
//! * The **parent** ([`Victim`]) keeps this log, kills the child at some moment, opens the spool
//!   itself and lists its messages ([`take_stock`]).
//! * The **check** ([`judge`]) compares the log with the recovered messages. It is a pure function;
//!   its tests pass it each kind of violation. Operations without a result at the kill may have
//!   happened or not.
//!
//! The invariants that it checks:
//!
//! * I1: a message acknowledged as synced is present, unless its removal was requested.
//! * I2: other lost messages are young, and there is no hole: no newer message is kept while an
//!   older one is lost.
//! * I3: a durable removal is not undone.
//! * I4: no torn, mixed or wrong bytes.
//! * A store that returned an error left nothing behind. A store that failed in doubt may be
//!   present, unless a synced store that began after the error was acknowledged.

mod event;
mod judge;
#[cfg(test)]
mod judge_tests;
mod stock;
mod victim;
mod work;

pub use event::{Event, Line, Report};
pub use judge::{Coverage, DurabilityLevel, Losses, Promise, Verdict, Violation, judge};
pub use stock::{Found, Stock, remove_surplus, take_stock, take_stock_of};
pub use victim::{Moment, Victim};
pub use work::work;
