//! The errors that end a pipeline.

use taskpipeline_kv::ClientError;

/// Why the pipeline could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The KV client could not be created.
    #[error(transparent)]
    Kv(#[from] ClientError),
    /// NATS cannot be used at all. The pipeline waits for a server that is only unreachable.
    #[error("cannot use NATS at {url}: {reason}")]
    Nats {
        /// The servers, without credentials.
        url: String,
        /// The error of the NATS client.
        reason: String,
    },
    /// The metrics could not be registered.
    #[error("cannot register metrics")]
    Metrics(#[from] prometheus::Error),
    /// A part of the pipeline ended although it must run until the shutdown.
    #[error("the {0} stopped unexpectedly; this is a bug in taskpipeline")]
    Stopped(&'static str),
}
