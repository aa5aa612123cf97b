//! Statistics.
/// Placeholder.
#[derive(Debug, Clone)]
pub struct StatsSnapshot;
