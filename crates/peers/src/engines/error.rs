//! What engines answer where they don't do what was asked.

use thiserror::Error;

/// The engine does not do this, and does not claim to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{engine} offers no {what}: choose another engine for this workload")]
pub struct NotOffered {
    /// The engine's name.
    pub engine: &'static str,
    /// What was asked of it.
    pub what: &'static str,
}

/// The engine failed. Its own error as text: several callers who waited for the same batch get the same one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{engine} failed at {doing}: {what}")]
pub struct EngineError {
    /// The engine's name.
    pub engine: &'static str,
    /// What it was at.
    pub doing: &'static str,
    /// What it said.
    pub what: String,
}

impl EngineError {
    /// Turns an engine's own error into this one.
    pub(crate) fn at<E: std::fmt::Display>(
        engine: &'static str,
        doing: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |err| Self { engine, doing, what: err.to_string() }
    }
}
