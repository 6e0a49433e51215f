//! A message of NATS as it was received.

use std::sync::Arc;

use async_nats::HeaderMap;
use bytes::Bytes;
use taskpipeline_contract::{EventKind, Timestamp};
use tokio::time::Instant;

/// A message as it was received: kept whole until its event has landed, for a dead letter must have it. In mode
/// `Core` many of them wait in memory, so it is kept small.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) kind: EventKind,
    /// Shared by all messages of their kind.
    pub(super) subject: Arc<str>,
    /// Boxed, for most have none.
    pub(super) headers: Option<Box<HeaderMap>>,
    pub(super) payload: Bytes,
    /// The wall clock's time, for the task's createdAt and updatedAt.
    pub(super) at: Timestamp,
    /// The same moment for measuring.
    pub(super) taken: Instant,
}
