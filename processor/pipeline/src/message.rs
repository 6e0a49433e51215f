//! A NATS message as it was received.

use std::sync::Arc;

use async_nats::HeaderMap;
use bytes::Bytes;
use taskpipeline_contract::{EventKind, Timestamp};
use tokio::time::Instant;

/// A message as it was received.
///
/// It is kept whole until its event has landed, because a dead letter needs all of it. It is small,
/// because many wait in memory in mode `Core`.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) kind: EventKind,
    /// Shared by all messages of this kind.
    pub(super) subject: Arc<str>,
    /// Boxed, because most messages have none.
    pub(super) headers: Option<Box<HeaderMap>>,
    pub(super) payload: Bytes,
    /// The time of the wall clock, for createdAt and updatedAt of the task.
    pub(super) at: Timestamp,
    /// The same time on the monotonic clock, for measuring.
    pub(super) taken: Instant,
}
