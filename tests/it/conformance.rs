use tidespool::Durability;
use tidespool_conformance::reference::{ReferenceSpool, ReferenceStorage};

use crate::setup::Tiered;

mod memory {
    use super::*;
    tidespool_conformance::conformance_tests!(Tiered::with(Durability::Memory));
}

mod process {
    use super::*;
    tidespool_conformance::conformance_tests!(Tiered::with(Durability::Process));
}

mod synced {
    use super::*;
    tidespool_conformance::conformance_tests!(Tiered::with(Durability::Synced));
}

/// The reference of the other tests must pass the suite itself.
mod reference {
    use std::sync::Arc;

    use async_trait::async_trait;
    use tidespool_conformance::Factory;
    use tidespool_core::Spool;

    use super::{ReferenceSpool, ReferenceStorage};

    #[derive(Default)]
    struct Reference(ReferenceStorage);

    #[async_trait]
    impl Factory for Reference {
        async fn open(&self) -> anyhow::Result<Arc<dyn Spool>> {
            Ok(Arc::new(ReferenceSpool::open_with_limit(&self.0, self.max_message_size())))
        }
    }

    tidespool_conformance::conformance_tests!(Reference::default());
}
