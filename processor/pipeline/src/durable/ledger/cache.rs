//! Caches the records that this replica last saw, so that most events need no read.
//!
//! The cache is limited in bytes. Its records may be old, which the compare-and-set of every write
//! detects.

use std::sync::Arc;

use foldhash::fast::RandomState;
use quick_cache::Weighter;
use quick_cache::sync::{Cache as Bounded, DefaultLifecycle};
use taskpipeline_contract::TaskId;

use crate::durable::ledger::Revision;
use crate::durable::ledger::record::Record;

/// The most bytes of cached records.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// The bytes of an entry besides its texts.
const BYTES_PER_ENTRY: usize = 700;

/// The record of a task in the ledger, and its revision.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) record: Arc<Record>,
    pub(crate) revision: Revision,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<TaskId, Known> for Bytes {
    fn weight(&self, id: &TaskId, known: &Known) -> u64 {
        u64::try_from(BYTES_PER_ENTRY + id.as_str().len() + known.record.text_bytes()).unwrap_or(u64::MAX)
    }
}

/// The records that this replica last saw. They may be old.
pub(crate) struct Cache(Bounded<TaskId, Known, Bytes, RandomState>);

impl Cache {
    pub(crate) fn new() -> Self {
        Self::of(MOST_BYTES)
    }

    /// A cache with this limit in bytes.
    pub(crate) fn of(bytes: u64) -> Self {
        let entries = usize::try_from(bytes).unwrap_or(usize::MAX) / (BYTES_PER_ENTRY + 100);
        Self(Bounded::with(entries, bytes, Bytes, RandomState::default(), DefaultLifecycle::default()))
    }

    pub(crate) fn get(&self, id: &TaskId) -> Option<Known> {
        self.0.get(id)
    }

    pub(crate) fn put(&self, id: &TaskId, known: Known) {
        self.0.insert(id.clone(), known);
    }

    pub(crate) fn forget(&self, id: &TaskId) {
        self.0.remove(id);
    }

    pub(crate) fn forget_all(&self) {
        self.0.clear();
    }
}
