//! The ledger of mode `Core`: the state of each task that is dirty, in a request, or at rest after one, in
//! memory only. Pure: it folds and remembers, and knows nothing of requests.

use std::collections::HashMap;

use taskpipeline_contract::{Event, TaskId};

use super::ingest::{Accepted, Carried};
use crate::pipeline::fold::TaskState;

/// How many bytes may wait here for KV. What comes then waits in the subscription's buffer.
const MOST_BYTES: usize = 512 * 1024 * 1024;

/// What an event occupies besides its payload: the decoded fields, its place in maps and queues.
const BYTES_PER_EVENT: usize = 1_024;

/// One task as far as this replica knows it.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) state: TaskState,
    /// The events that have not landed, in the order they came.
    carried: Vec<Carried>,
    /// How many of them, from the front, the request that is out covers.
    sent: usize,
    /// How many requests for them have failed.
    pub(super) attempts: u32,
}

impl Entry {
    /// The events that the request now sent will carry: all there are.
    pub(super) fn send(&mut self) -> &[Carried] {
        self.sent = self.carried.len();
        &self.carried
    }

    /// Whether every event has landed or ended otherwise.
    pub(super) fn is_idle(&self) -> bool {
        self.carried.is_empty()
    }

    /// The events in the request that is out.
    pub(super) fn in_request(&self) -> &[Carried] {
        &self.carried[..self.sent]
    }
}

/// All tasks that this replica has in hand.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Boxed, for a map that grows holds its places twice.
    entries: HashMap<TaskId, Box<Entry>>,
    bytes: usize,
    carried: usize,
}

impl Ledger {
    /// Folds an event into its task, and answers which that is.
    pub(super) fn apply(&mut self, accepted: Accepted) -> TaskId {
        let Accepted { event: Event { correlation_id, data }, version, received } = accepted;
        let id = data.task_id().clone();
        let entry = self.entries.entry(id.clone()).or_default();
        entry.state.fold(version, received.at, &data);
        self.bytes += weight(&received.payload);
        self.carried += 1;
        if entry.carried.is_empty() {
            // Most tasks have one event at a time, and a `Vec` begins with room for four.
            entry.carried.reserve_exact(1);
        }
        entry.carried.push(Carried { correlation_id, received });
        id
    }

    /// Whether another event may be taken in.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < MOST_BYTES
    }

    /// How many events have not landed.
    pub(super) fn carried(&self) -> usize {
        self.carried
    }

    /// How many tasks are in memory.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, id: &TaskId) -> Option<&Entry> {
        self.entries.get(id).map(|entry| &**entry)
    }

    pub(super) fn get_mut(&mut self, id: &TaskId) -> Option<&mut Entry> {
        self.entries.get_mut(id).map(|entry| &mut **entry)
    }

    /// The events of the request that is out have reached their end, good or bad: they are taken off the
    /// task, which stays.
    pub(super) fn take_sent(&mut self, id: &TaskId) -> Vec<Carried> {
        let Some(entry) = self.entries.get_mut(id) else { return Vec::new() };
        entry.attempts = 0;
        let rest = entry.carried.split_off(std::mem::take(&mut entry.sent));
        let taken = std::mem::replace(&mut entry.carried, rest);
        self.let_go(&taken);
        taken
    }

    /// Forgets the task; answers the events that had not landed.
    pub(super) fn remove(&mut self, id: &TaskId) -> Vec<Carried> {
        let carried = self.entries.remove(id).map(|entry| entry.carried).unwrap_or_default();
        self.let_go(&carried);
        carried
    }

    /// Forgets a task that nobody waits for.
    pub(super) fn forget_if_idle(&mut self, id: &TaskId) {
        if self.get(id).is_some_and(Entry::is_idle) {
            self.entries.remove(id);
        }
    }

    /// Every event that has not landed, when there is no more time for them.
    pub(super) fn take_all(&mut self) -> Vec<Carried> {
        let entries = std::mem::take(&mut self.entries);
        (self.bytes, self.carried) = (0, 0);
        entries.into_values().flat_map(|entry| entry.carried).collect()
    }

    fn let_go(&mut self, gone: &[Carried]) {
        self.carried -= gone.len();
        self.bytes -= gone.iter().map(|carried| weight(&carried.received.payload)).sum::<usize>();
    }
}

fn weight(payload: &[u8]) -> usize {
    payload.len() + BYTES_PER_EVENT
}
