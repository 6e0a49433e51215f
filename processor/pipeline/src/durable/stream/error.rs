//! The errors of a session.

use crate::durable::bucket::raw::RawError;
use crate::durable::bucket::{ReadError, WriteError};
use crate::durable::stream::streams::StreamsError;

/// Why there is no session. Nothing is lost, and a later attempt may succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Streams(#[from] StreamsError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Raw(#[from] RawError),
    #[error("{0}")]
    Nats(String),
}
