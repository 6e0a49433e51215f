//! The ledger of mode `Core`: the state of each task that is dirty, in a request, or at rest after
//! one. In memory only.
//!
//! Pure: it folds and remembers, and does not know requests.
//!
//! The ledger keeps an event as its message until the event has landed, because a dead letter needs
//! the whole message. If a task has one event, the ledger folds the event only when the event is
//! sent or has landed. That costs little, and its texts would otherwise be in memory twice. Several
//! events are folded as they come, so that each costs the same.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::HashMap;

use foldhash::fast::RandomState;
use taskpipeline_contract::{Event, EventKind, Task, TaskId};

use super::ingest::{Accepted, Carried};
use crate::fold::TaskState;

/// The most bytes that wait here for KV. Further events wait in the buffer of the subscription.
const MOST_BYTES: usize = 512 * 1024 * 1024;

/// The bytes of an event besides its payload: its place in maps and queues, its part of a request,
/// and its state while its task rests.
const BYTES_PER_EVENT: usize = 1_024;

/// One task as this replica knows it.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The state without the events that are not folded yet.
    state: Option<Box<TaskState>>,
    /// The events that have not landed, in the order of receipt.
    carried: Vec<Carried>,
    /// How many of `carried`, from the front, are folded: all, or all but the last.
    folded: usize,
    /// How many of `carried`, from the front, the request in flight covers.
    sent: usize,
    /// The number of failed requests for them.
    pub(super) attempts: u32,
}

impl Entry {
    /// Returns whether only updates are known, so that only KV can tell what they change.
    pub(super) fn needs_base(&self) -> bool {
        let is_update = |carried: &Carried| carried.received.kind == EventKind::Updated;
        self.state.as_ref().is_none_or(|state| state.needs_base())
            && self.carried[self.folded..].iter().all(is_update)
    }

    /// Adds the task as KV had it before any event.
    pub(super) fn join(&mut self, task: &Task) {
        self.state.get_or_insert_default().join(task);
    }

    /// The task after all its events, or `None` if it was deleted or never created.
    pub(super) fn visible(&self, id: &TaskId) -> Option<Task> {
        let mut state = self.state.as_deref().cloned().unwrap_or_default();
        fold(&mut state, &self.carried[self.folded..]);
        state.visible(id)
    }

    /// Folds the first `count` events, if they are not folded yet.
    fn fold_first(&mut self, count: usize) {
        if let Some(new) = self.carried.get(self.folded..count) {
            fold(self.state.get_or_insert_default(), new);
            self.folded = count;
        }
    }

    /// Marks all events as sent, and returns them.
    pub(super) fn send(&mut self) -> &[Carried] {
        self.sent = self.carried.len();
        &self.carried
    }

    /// Returns whether no event waits to land.
    pub(super) fn is_idle(&self) -> bool {
        self.carried.is_empty()
    }

    /// The events in the request in flight.
    pub(super) fn in_request(&self) -> &[Carried] {
        &self.carried[..self.sent]
    }
}

/// All tasks of this replica that are not finished.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Boxed, because a map that grows has its table in memory twice.
    entries: HashMap<TaskId, Box<Entry>, RandomState>,
    bytes: usize,
    carried: usize,
}

impl Ledger {
    /// Adds an event to its task, and returns the id of the task.
    pub(super) fn apply(&mut self, accepted: Accepted) -> TaskId {
        let Accepted { id, carried } = accepted;
        let entry = self.entries.entry(id.clone()).or_default();
        self.bytes += weight(&carried.received.payload);
        self.carried += 1;
        if entry.carried.is_empty() {
            // Most tasks have one event at a time, and a `Vec` starts with room for four.
            entry.carried.reserve_exact(1);
        }
        entry.carried.push(carried);
        if entry.carried.len() > 1 {
            entry.fold_first(entry.carried.len());
        }
        id
    }

    /// Returns whether there is room for another event.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < MOST_BYTES
    }

    /// The number of events that have not landed.
    pub(super) fn carried(&self) -> usize {
        self.carried
    }

    /// The number of tasks in memory.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, id: &TaskId) -> Option<&Entry> {
        self.entries.get(id).map(|entry| &**entry)
    }

    pub(super) fn get_mut(&mut self, id: &TaskId) -> Option<&mut Entry> {
        self.entries.get_mut(id).map(|entry| &mut **entry)
    }

    /// Removes the events of the finished request from the task, and returns them. The task stays.
    pub(super) fn take_sent(&mut self, id: &TaskId) -> Vec<Carried> {
        let Some(entry) = self.entries.get_mut(id) else { return Vec::new() };
        entry.attempts = 0;
        let sent = std::mem::take(&mut entry.sent);
        entry.fold_first(sent);
        entry.folded -= sent;
        let rest = entry.carried.split_off(sent);
        let taken = std::mem::replace(&mut entry.carried, rest);
        self.release(&taken);
        taken
    }

    /// Forgets the task, and returns the events that had not landed.
    pub(super) fn remove(&mut self, id: &TaskId) -> Vec<Carried> {
        let carried = self.entries.remove(id).map(|entry| entry.carried).unwrap_or_default();
        self.release(&carried);
        carried
    }

    /// Forgets a task without waiting events.
    pub(super) fn forget_if_idle(&mut self, id: &TaskId) {
        if self.get(id).is_some_and(Entry::is_idle) {
            self.entries.remove(id);
        }
    }

    /// Removes and returns every event that has not landed, at the end of the grace.
    pub(super) fn take_all(&mut self) -> Vec<Carried> {
        let entries = std::mem::take(&mut self.entries);
        (self.bytes, self.carried) = (0, 0);
        entries.into_values().flat_map(|entry| entry.carried).collect()
    }

    fn release(&mut self, gone: &[Carried]) {
        self.carried -= gone.len();
        self.bytes -= gone.iter().map(|carried| weight(&carried.received.payload)).sum::<usize>();
    }
}

/// Folds these events into the state.
fn fold(state: &mut TaskState, events: &[Carried]) {
    for Carried { version, received, .. } in events {
        // Only events that were decoded before get here.
        if let Ok(event) = Event::decode(received.kind, &received.payload) {
            state.fold(*version, received.at, &event.data);
        }
    }
}

fn weight(payload: &[u8]) -> usize {
    payload.len() + BYTES_PER_EVENT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::Version;

    /// Creates events of one task, each the next in the order of all.
    struct Events(Version);

    impl Events {
        fn next(&mut self, kind: EventKind, fields: &str) -> Accepted {
            self.0 = self.0.next();
            let payload = format!(r#"{{"correlationId": "c", "data": {{"id": "a"{fields}}}}}"#);
            Accepted::of(kind, self.0, payload)
        }

        fn create(&mut self) -> Accepted {
            self.next(EventKind::Created, r#", "title": "first", "description": "", "status": "pending""#)
        }

        fn rename(&mut self, title: &str) -> Accepted {
            self.next(EventKind::Updated, &format!(r#", "title": "{title}""#))
        }
    }

    fn title(ledger: &Ledger, id: &TaskId) -> Option<String> {
        Some(ledger.get(id)?.visible(id)?.title.to_string())
    }

    #[test]
    fn a_task_is_what_all_its_events_say_landed_or_not() {
        let (mut ledger, mut events) = (Ledger::default(), Events(Version::ZERO));
        let id = ledger.apply(events.create());
        ledger.apply(events.rename("second"));
        assert_eq!(title(&ledger, &id).unwrap(), "second");
        assert_eq!(ledger.get_mut(&id).unwrap().send().len(), 2);
        // Another event comes while the request is in flight.
        ledger.apply(events.rename("third"));
        assert_eq!(ledger.take_sent(&id).len(), 2);
        assert_eq!(title(&ledger, &id).unwrap(), "third");
        assert_eq!(ledger.get_mut(&id).unwrap().send().len(), 1);
        assert_eq!(ledger.take_sent(&id).len(), 1);
        // The landed state is known as long as the task is here.
        assert!(ledger.get(&id).unwrap().is_idle());
        ledger.apply(events.next(EventKind::Updated, r#", "status": "completed""#));
        assert_eq!(title(&ledger, &id).unwrap(), "third");
        assert_eq!((ledger.carried(), ledger.len()), (1, 1));
    }

    #[test]
    fn a_base_is_needed_for_updates_alone_whether_they_have_ended_or_not() {
        let (mut ledger, mut events) = (Ledger::default(), Events(Version::ZERO));
        let id = ledger.apply(events.rename("one"));
        assert!(ledger.get(&id).unwrap().needs_base());
        ledger.get_mut(&id).unwrap().send();
        ledger.apply(events.rename("two"));
        ledger.take_sent(&id);
        assert!(ledger.get(&id).unwrap().needs_base());
        ledger.apply(events.next(EventKind::Deleted, ""));
        assert!(!ledger.get(&id).unwrap().needs_base());
        assert_eq!(title(&ledger, &id), None);
        ledger.get_mut(&id).unwrap().send();
        ledger.take_sent(&id);
        assert!(!ledger.get(&id).unwrap().needs_base());
        ledger.apply(events.create());
        assert_eq!(title(&ledger, &id).unwrap(), "first");
    }

    #[test]
    fn no_more_than_one_event_of_a_task_waits_to_be_folded() {
        let (mut ledger, mut events) = (Ledger::default(), Events(Version::ZERO));
        let id = ledger.apply(events.create());
        let mut most = 0;
        for n in 0..20 {
            if n % 3 == 0 {
                ledger.get_mut(&id).unwrap().send();
            }
            if n % 4 == 0 {
                ledger.take_sent(&id);
            }
            ledger.apply(events.rename(&format!("title {n}")));
            let entry = ledger.get(&id).unwrap();
            most = most.max(entry.carried.len() - entry.folded);
            assert_eq!(title(&ledger, &id).unwrap(), format!("title {n}"));
        }
        assert_eq!(most, 1);
    }

    #[test]
    fn all_room_is_given_back_when_every_event_has_ended() {
        let (mut ledger, mut events) = (Ledger::default(), Events(Version::ZERO));
        let id = ledger.apply(events.create());
        ledger.get_mut(&id).unwrap().send();
        ledger.apply(events.rename("two"));
        ledger.take_sent(&id);
        assert_eq!(ledger.remove(&id).len(), 1);
        assert_eq!((ledger.bytes, ledger.carried, ledger.len()), (0, 0, 0));
    }

    #[test]
    fn an_event_that_waits_is_small() {
        let each = std::mem::size_of::<Entry>() + std::mem::size_of::<Carried>();
        assert!(each <= 192, "{each} bytes, 50,000 times and more where KV is slow");
    }
}
