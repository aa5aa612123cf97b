//! One named case for each promise of a spool that can be observed through `dyn Spool`.
//!
//! A [`Factory`] opens the spool under test. [`conformance_tests!`](crate::conformance_tests) makes
//! a `#[test]` of each case, so the name of a failing test says which promise is broken:
//!
//! ```
//! mod reference {
//!     # use std::sync::Arc;
//!     # use tidespool_core::Spool;
//!     # use tidespool_testkit::conformance::Factory;
//!     # use tidespool_testkit::reference::{ReferenceSpool, ReferenceStorage};
//!     #[derive(Default)]
//!     struct InMemory(ReferenceStorage);
//!
//!     #[async_trait::async_trait]
//!     impl Factory for InMemory {
//!         async fn open(&self) -> anyhow::Result<Arc<dyn Spool>> {
//!             Ok(Arc::new(ReferenceSpool::open_with_limit(&self.0, self.max_message_size())))
//!         }
//!     }
//!
//!     tidespool_testkit::conformance_tests!(InMemory::default());
//! }
//! ```
//!
//! To add a case, write a function in one of the modules here, and add a line to `cases.rs`.

mod calls;
mod cases;
mod claims;
mod subject;

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

pub use cases::{CASES, NamedCase};
pub use claims::{Claim, Claims};
pub use subject::{Case, Factory, Outcome, Subject, check, run};
