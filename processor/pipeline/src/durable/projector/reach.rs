//! Tracks how far the feed has read the changes of the ledger, and which tasks were settled ahead
//! of it. Pure.

use std::collections::{BTreeMap, HashMap};

use taskpipeline_contract::TaskId;

use crate::durable::bucket::Revision;

/// The position of the feed, and the tasks that were settled ahead of it.
#[derive(Debug)]
pub(super) struct Reach {
    /// The newest change that was read of any task.
    position: Revision,
    /// Tasks that were read again and settled at a revision that the feed has not reached. The feed
    /// still has older changes of them, which must not be written any more.
    ahead: HashMap<TaskId, Revision>,
    /// The same tasks in the order of revisions.
    in_order: BTreeMap<Revision, TaskId>,
}

impl Reach {
    /// Starts at a revision up to which everything was read, or need not be.
    pub(super) fn from(position: Revision) -> Self {
        Self { position, ahead: HashMap::new(), in_order: BTreeMap::new() }
    }

    pub(super) fn position(&self) -> Revision {
        self.position
    }

    /// Returns whether the feed still has changes of this task that are older than the settled one.
    pub(super) fn is_behind(&self, id: &TaskId) -> bool {
        self.ahead.contains_key(id)
    }

    /// Returns whether this change of the task was settled before the feed reached it.
    pub(super) fn is_settled_ahead(&self, id: &TaskId, revision: Revision) -> bool {
        self.ahead.get(id).is_some_and(|seen| revision <= *seen)
    }

    /// Records that the task is settled at this revision.
    pub(super) fn settled(&mut self, id: &TaskId, at: Revision) {
        if at > self.position {
            self.ahead.insert(id.clone(), at);
            self.in_order.insert(at, id.clone());
        }
    }

    /// Moves the feed to this revision.
    pub(super) fn move_to(&mut self, revision: Revision) {
        self.position = self.position.max(revision);
        while let Some(first) = self.in_order.first_entry().filter(|first| *first.key() <= revision) {
            let (seen, id) = first.remove_entry();
            if self.ahead.get(&id) == Some(&seen) {
                self.ahead.remove(&id);
            }
        }
    }

    /// Returns whether no task was settled ahead of the feed.
    #[cfg(test)]
    pub(super) fn is_level(&self) -> bool {
        self.ahead.is_empty() && self.in_order.is_empty()
    }
}
