use tidespool::Durability;

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
