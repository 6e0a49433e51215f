//! Why a pipeline is not carried out as it stands, in words for whoever has to mend it.

/// What has to be mended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Invalid {
    /// One word, as a condition has it.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// What has to be mended, by its parts.
pub(crate) fn invalid(reason: &'static str, message: impl Into<String>) -> Invalid {
    Invalid { reason, message: message.into() }
}
