//! Why a pipeline ends by itself.

use taskpipeline_kv::ClientError;

/// Why the pipeline could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The KV client cannot be made.
    #[error(transparent)]
    Kv(#[from] ClientError),
    /// NATS cannot be used at all; a server that is merely away is waited for.
    #[error("cannot use NATS at {url}: {reason}")]
    Nats {
        /// The servers, without credentials.
        url: String,
        /// What the client says.
        reason: String,
    },
    /// The metrics cannot be registered.
    #[error("cannot register metrics")]
    Metrics(#[from] prometheus::Error),
    /// A part of the pipeline ended that must not.
    #[error("the {0} stopped unexpectedly; this is a bug in taskpipeline")]
    Stopped(&'static str),
}
