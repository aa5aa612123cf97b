//! The errors of engines.

use thiserror::Error;

/// The engine does not support the call, and does not claim to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{engine} offers no {what}: choose another engine for this workload")]
pub struct NotOffered {
    /// The name of the engine.
    pub engine: &'static str,
    /// The call.
    pub what: &'static str,
}

/// The engine failed. Its error is kept as text, because several callers that waited for one batch
/// get the same error.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{engine} failed at {doing}: {what}")]
pub struct EngineError {
    /// The name of the engine.
    pub engine: &'static str,
    /// What it was doing.
    pub doing: &'static str,
    /// The text of its error.
    pub what: String,
}

impl EngineError {
    /// Converts an error of the engine into this one.
    pub(crate) fn at<E: std::fmt::Display>(
        engine: &'static str,
        doing: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |err| Self { engine, doing, what: err.to_string() }
    }
}
