//! One unsettled task, and the memory that it takes.

use std::sync::Arc;

use tokio::time::Instant;

use crate::durable::bucket::Revision;
use crate::durable::ledger::record::Record;
use crate::durable::projector::shares::Share;

/// The bytes of a task without its record: here, in the queue, and its id.
pub(super) const BYTES_PER_TASK: usize = 300;

/// The bytes of a record besides its texts.
const BYTES_PER_RECORD: usize = 400;

/// A task whose newest state KV may lack.
#[derive(Debug)]
pub(super) struct Task {
    /// The first change that KV may lack.
    pub(super) low: Revision,
    /// The newest change that was read.
    pub(super) seen: Revision,
    /// The newest record; `None` while nothing must be written.
    pub(super) record: Option<Arc<Record>>,
    /// The revision in the request in flight.
    pub(super) sent: Option<Revision>,
    /// When the doubt ends. A write that is sent later settles the task.
    pub(super) doubtful_until: Option<Instant>,
    pub(super) attempts: u32,
    /// The share of the memory that the task counts to.
    pub(super) share: Share,
}

impl Task {
    /// The bytes that the task takes.
    pub(super) fn bytes(&self) -> usize {
        BYTES_PER_TASK + self.record.as_deref().map_or(0, bytes)
    }
}

fn bytes(record: &Record) -> usize {
    BYTES_PER_RECORD + record.text_bytes()
}
