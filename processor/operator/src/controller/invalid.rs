//! Why the operator does not carry out a pipeline: a reason for its condition, and a message for its user.

/// A pipeline that cannot be carried out until somebody changes it or what it refers to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Invalid {
    /// One word, as a condition has it.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Makes one.
pub(crate) fn invalid(reason: &'static str, message: impl Into<String>) -> Invalid {
    Invalid { reason, message: message.into() }
}
