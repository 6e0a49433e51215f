//! Records as this replica last saw them, so that most events need no read. Bounded in bytes; what it says may
//! be old, which the compare-and-set of every write finds out.

use std::sync::Arc;

use foldhash::fast::RandomState;
use quick_cache::Weighter;
use quick_cache::sync::{Cache as Bounded, DefaultLifecycle};
use taskpipeline_contract::TaskId;

use crate::durable::ledger::Revision;
use crate::durable::ledger::record::Record;

/// How many bytes of records may be kept.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// What an entry occupies besides its texts.
const BYTES_PER_ENTRY: usize = 700;

/// What the ledger holds for a task.
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

/// Records as this replica last saw them, bounded in bytes. They may be old.
pub(crate) struct Cache(Bounded<TaskId, Known, Bytes, RandomState>);

impl Cache {
    pub(crate) fn new() -> Self {
        Self::of(MOST_BYTES)
    }

    /// Of so many bytes.
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
