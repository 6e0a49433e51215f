//! Why the operator cannot reconcile a pipeline: a reason for the condition, and a message for the user.

/// The fault of a pipeline that a user has to correct, in the pipeline or in an object that it refers to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Invalid {
    /// The reason of a condition: one word.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

pub(crate) fn invalid(reason: &'static str, message: impl Into<String>) -> Invalid {
    Invalid { reason, message: message.into() }
}
