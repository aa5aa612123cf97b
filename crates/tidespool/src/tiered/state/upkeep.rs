//! The runs of `cleanup` and `compact`.

use std::sync::Arc;

use super::runs::Runs;
use crate::checkpoint::{CheckpointError, VerificationReport};

/// The runs that callers share. If all callers of a run are gone, it ends before its next step.
#[derive(Debug, Default)]
pub(in crate::tiered) struct UpkeepRuns {
    pub(in crate::tiered) cleanups: Runs<Result<(), UpkeepFailure>>,
    pub(in crate::tiered) compactions: Runs<Result<VerificationReport, UpkeepFailure>>,
}

/// Why a run failed. All its callers get a copy.
#[derive(Debug, Clone)]
pub(in crate::tiered) enum UpkeepFailure {
    /// The spool was shut down during the run.
    Closed,
    /// The disk did not write the dirty messages in time.
    Late,
    /// The thread that got the request has died, although the spool is open.
    Died,
    CheckpointFailed(Arc<CheckpointError>),
}
