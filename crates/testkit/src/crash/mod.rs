//! The oracle of the `kill -9` tests.
//!
//! * The **child** ([`work`]) opens the spool and does a random mix of stores, replaces, removes and loads. It says
//!   each intent before and each answer after, on its standard output ([`Report`]).
//! * The **parent** ([`Victim`]) keeps what it hears, kills the child at some moment, opens the spool itself and takes
//!   stock ([`take_stock`]).
//! * The **judge** ([`judge`]) compares the log with what came back. It is a pure function, with tests of its own
//!   that feed it each kind of lie. What was in doubt at the kill may have happened or not.
//!
//! What it holds a spool to, by the names of the invariants:
//!
//! * I1: what was acknowledged as synced is there, unless its removal was asked for.
//! * I2: what is lost of the rest is young, and there is no hole: no newer message kept while an older one is lost.
//! * I3: a removal that has become durable is not undone.
//! * I4: no torn, mixed or wrong bytes.
//! * And a store that was answered with an error has left nothing behind. One that failed in doubt
//!   may be there, but not if a synced store that began after its answer was acknowledged.

mod event;
mod judge;
#[cfg(test)]
mod judge_tests;
mod stock;
mod victim;
mod work;

pub use event::{Event, Line, Report};
pub use judge::{Coverage, Floor, Losses, Promise, Verdict, Violation, judge};
pub use stock::{Found, Stock, remove_surplus, take_stock, take_stock_of};
pub use victim::{Moment, Victim};
pub use work::work;
