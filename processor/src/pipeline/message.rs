//! A message of NATS as it was received.

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use taskpipeline_contract::{EventKind, Timestamp};
use tokio::time::Instant;

/// A message as it was received: kept whole until its event has landed, for a dead letter must have it.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) kind: EventKind,
    pub(super) subject: Subject,
    pub(super) headers: Option<HeaderMap>,
    pub(super) payload: Bytes,
    /// The wall clock's time, for the task's createdAt and updatedAt.
    pub(super) at: Timestamp,
    /// The same moment for measuring.
    pub(super) taken: Instant,
}
