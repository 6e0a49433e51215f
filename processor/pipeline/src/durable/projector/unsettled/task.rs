//! One unsettled task, and the memory it occupies.

use std::sync::Arc;

use tokio::time::Instant;

use crate::durable::bucket::Revision;
use crate::durable::ledger::record::Record;
use crate::durable::projector::shares::Share;

/// What a task occupies without its record: here, in the queue, and its id.
pub(super) const BYTES_PER_TASK: usize = 300;

/// What a record occupies besides its texts.
const BYTES_PER_RECORD: usize = 400;

/// A task whose state in the ledger KV may lack.
#[derive(Debug)]
pub(super) struct Task {
    /// The first change that KV may lack.
    pub(super) low: Revision,
    /// The newest change that was seen.
    pub(super) seen: Revision,
    /// What it says; not kept while nothing is to be written.
    pub(super) record: Option<Arc<Record>>,
    /// The revision in the request that is out.
    pub(super) sent: Option<Revision>,
    /// A write sent from this moment on ends the doubt.
    pub(super) doubtful_until: Option<Instant>,
    pub(super) attempts: u32,
    /// Which share of the memory it counts to.
    pub(super) share: Share,
}

impl Task {
    /// What it occupies.
    pub(super) fn bytes(&self) -> usize {
        BYTES_PER_TASK + self.record.as_deref().map_or(0, bytes)
    }
}

fn bytes(record: &Record) -> usize {
    BYTES_PER_RECORD + record.text_bytes()
}
