//! The reference spool passes all cases, and the model test against itself.

use std::sync::Arc;

use async_trait::async_trait;
use tidespool_conformance::reference::{ReferenceSpool, ReferenceStorage};
use tidespool_conformance::{Factory, model};
use tidespool_core::Spool;

#[derive(Default)]
struct Reference(ReferenceStorage);

#[async_trait]
impl Factory for Reference {
    async fn open(&self) -> anyhow::Result<Arc<dyn Spool>> {
        Ok(Arc::new(ReferenceSpool::open_with_limit(&self.0, self.max_message_size())))
    }
}

mod conformance {
    use super::Reference;

    tidespool_conformance::conformance_tests!(Reference::default());
}

#[test]
fn model() {
    model::run(1, Reference::default);
}
