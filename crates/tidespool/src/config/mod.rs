//! Settings.
/// Placeholder.
#[derive(Debug, Clone)]
pub struct Config;
