//! Decides which keys need a request, in which order, and when. Pure: ids and times, no values and
//! no I/O.
//!
//! A key keeps the place that it got when it first became dirty. It is never in two requests at
//! once, and rests between two requests. So a task that changes all the time neither starves nor
//! delays others.

use std::collections::{BTreeMap, HashMap, VecDeque};

use foldhash::fast::RandomState;
use taskpipeline_contract::TaskId;
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The key waits in `ready`.
    Ready,
    /// The key is in a request; `again`: it has changed since.
    InFlight { again: bool },
    /// The key rests in `resting`; `dirty`: it is ready afterwards; `failed`: it rests because its
    /// request failed.
    Resting { dirty: bool, failed: bool },
}

/// The queue of one kind of request.
#[derive(Debug, Default)]
pub(crate) struct KeyQueue {
    states: HashMap<TaskId, State, RandomState>,
    /// In the order in which the keys became dirty. A withdrawn id may still be here; its state
    /// shows that.
    ready: VecDeque<TaskId>,
    ready_count: usize,
    /// Keys with the same end of rest stay in their order. As a rule these are all keys of one
    /// request.
    resting: BTreeMap<Instant, Vec<TaskId>>,
}

impl KeyQueue {
    /// Marks that this key needs a request.
    pub(crate) fn mark(&mut self, id: &TaskId) {
        match self.states.get_mut(id) {
            None => self.enqueue(id.clone()),
            Some(State::Ready) => {}
            Some(State::InFlight { again }) => *again = true,
            Some(State::Resting { dirty, .. }) => *dirty = true,
        }
    }

    /// Marks that this key needs no request any more. A request in flight continues.
    pub(crate) fn withdraw(&mut self, id: &TaskId) {
        match self.states.get_mut(id) {
            Some(State::Ready) => {
                self.states.remove(id);
                self.ready_count -= 1;
            }
            Some(State::InFlight { again }) => *again = false,
            Some(State::Resting { dirty, .. }) => *dirty = false,
            None => {}
        }
    }

    /// Takes the first `most` keys. Each stays in flight until it is settled or retried.
    pub(crate) fn take(&mut self, most: usize) -> Vec<TaskId> {
        let mut taken = Vec::with_capacity(most.min(self.ready_count));
        while taken.len() < most {
            let Some(id) = self.ready.pop_front() else { break };
            if let Some(state @ State::Ready) = self.states.get_mut(&id) {
                *state = State::InFlight { again: false };
                self.ready_count -= 1;
                taken.push(id);
            }
        }
        taken
    }

    /// Ends the request of a key. The key rests until `until`, and is then ready if it has changed.
    pub(crate) fn settle(&mut self, id: &TaskId, until: Instant) {
        if let Some(State::InFlight { again }) = self.states.get(id) {
            self.rest(id, until, State::Resting { dirty: *again, failed: false });
        }
    }

    /// Ends the request of a key that failed. The key is ready at `until`.
    pub(crate) fn retry(&mut self, id: &TaskId, until: Instant) {
        if let Some(State::InFlight { .. }) = self.states.get(id) {
            self.rest(id, until, State::Resting { dirty: true, failed: true });
        }
    }

    /// Marks that this key needs a request, but not before `until`, because it was written a short
    /// time ago.
    pub(crate) fn mark_resting(&mut self, id: &TaskId, until: Instant) {
        if !self.states.contains_key(id) {
            self.rest(id, until, State::Resting { dirty: true, failed: false });
        }
    }

    /// Returns whether this key rests.
    pub(crate) fn is_resting(&self, id: &TaskId) -> bool {
        matches!(self.states.get(id), Some(State::Resting { .. }))
    }

    /// Forgets a key whose request is done; somebody else knows when it may have the next.
    pub(crate) fn forget(&mut self, id: &TaskId) {
        if let Some(State::InFlight { .. }) = self.states.get(id) {
            self.states.remove(id);
        }
    }

    /// Moves every key whose rest is over. Returns those that need no request and are forgotten.
    pub(crate) fn wake(&mut self, now: Instant) -> Vec<TaskId> {
        let mut forgotten = Vec::new();
        while let Some(first) = self.resting.first_entry().filter(|first| *first.key() <= now) {
            for id in first.remove() {
                match self.states.get(&id) {
                    Some(State::Resting { dirty: true, .. }) => self.enqueue(id),
                    Some(State::Resting { dirty: false, .. }) => {
                        self.states.remove(&id);
                        forgotten.push(id);
                    }
                    _ => {}
                }
            }
        }
        forgotten
    }

    /// Shortens rests: no key rests longer than `latest` says for it, and no rest becomes longer.
    ///
    /// The flag of `latest`: whether the key rests because its request failed.
    pub(crate) fn bring_forward(&mut self, latest: impl Fn(&TaskId, bool) -> Instant) {
        for (until, ids) in std::mem::take(&mut self.resting) {
            for id in ids {
                let Some(State::Resting { failed, .. }) = self.states.get(&id) else { continue };
                self.resting.entry(until.min(latest(&id, *failed))).or_default().push(id);
            }
        }
    }

    /// Ends the rest of a dirty key that rests until `until`. Does nothing if the key does not.
    pub(crate) fn rouse(&mut self, id: &TaskId, until: Instant) {
        if self.end_rest(id, until) {
            self.enqueue(id.clone());
        }
    }

    /// Like [`Self::rouse`], and the key is the next to be taken.
    pub(crate) fn rouse_as_next(&mut self, id: &TaskId, until: Instant) {
        if self.end_rest(id, until) {
            self.states.insert(id.clone(), State::Ready);
            self.ready.push_front(id.clone());
            self.ready_count += 1;
        }
    }

    /// Removes a dirty key from those that rest until `until`. Returns whether it was there.
    fn end_rest(&mut self, id: &TaskId, until: Instant) -> bool {
        if !matches!(self.states.get(id), Some(State::Resting { dirty: true, .. })) {
            return false;
        }
        let Some(ids) = self.resting.get_mut(&until) else { return false };
        let Some(place) = ids.iter().position(|other| other == id) else { return false };
        ids.remove(place);
        if ids.is_empty() {
            self.resting.remove(&until);
        }
        true
    }

    /// When the next rest ends.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.resting.first_key_value().map(|(until, _)| *until)
    }

    /// Forgets the keys that need a request or are in one. Resting keys stay, because they were
    /// just written to KV.
    pub(crate) fn restart(&mut self) {
        self.states.retain(|_, state| matches!(state, State::Resting { .. }));
        self.states.values_mut().for_each(|state| *state = State::Resting { dirty: false, failed: false });
        self.ready.clear();
        self.ready_count = 0;
    }

    /// The number of keys that could go into a request now.
    pub(crate) fn ready(&self) -> usize {
        self.ready_count
    }

    /// Returns whether this key is in a request.
    pub(crate) fn is_in_flight(&self, id: &TaskId) -> bool {
        matches!(self.states.get(id), Some(State::InFlight { .. }))
    }

    /// Returns whether the queue knows this key.
    pub(crate) fn contains(&self, id: &TaskId) -> bool {
        self.states.contains_key(id)
    }

    fn enqueue(&mut self, id: TaskId) {
        self.states.insert(id.clone(), State::Ready);
        self.ready.push_back(id);
        self.ready_count += 1;
    }

    fn rest(&mut self, id: &TaskId, until: Instant, state: State) {
        self.states.insert(id.clone(), state);
        self.resting.entry(until).or_default().push(id.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(text: &str) -> TaskId {
        TaskId::new(text).unwrap()
    }

    fn names(ids: &[TaskId]) -> Vec<&str> {
        ids.iter().map(TaskId::as_str).collect()
    }

    #[test]
    fn a_hot_key_keeps_its_place() {
        let mut queue = KeyQueue::default();
        for name in ["a", "b", "a", "c", "a"] {
            queue.mark(&id(name));
        }
        assert_eq!(names(&queue.take(2)), ["a", "b"]);
        assert_eq!(names(&queue.take(2)), ["c"]);
    }

    #[test]
    fn a_key_in_flight_is_not_handed_out_again_until_it_has_rested() {
        let (mut queue, now) = (KeyQueue::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        queue.mark(&id("a"));
        assert_eq!(queue.take(9).len(), 1);
        queue.mark(&id("a"));
        assert!(queue.take(9).is_empty());
        queue.settle(&id("a"), later);
        assert!(queue.wake(now).is_empty());
        assert!(queue.take(9).is_empty());
        assert_eq!(queue.next_wake(), Some(later));
        assert!(queue.wake(later).is_empty());
        assert_eq!(names(&queue.take(9)), ["a"]);
    }

    #[test]
    fn a_key_that_did_not_change_is_forgotten_after_its_rest() {
        let (mut queue, now) = (KeyQueue::default(), Instant::now());
        queue.mark(&id("a"));
        queue.take(1);
        queue.settle(&id("a"), now);
        assert_eq!(names(&queue.wake(now)), ["a"]);
        assert!(!queue.contains(&id("a")));
    }

    #[test]
    fn retried_keys_come_back_together_and_in_order() {
        let (mut queue, now) = (KeyQueue::default(), Instant::now());
        for name in ["a", "b", "c"] {
            queue.mark(&id(name));
        }
        for id in queue.take(3) {
            queue.retry(&id, now + Duration::from_secs(3));
        }
        queue.wake(now + Duration::from_secs(3));
        assert_eq!(names(&queue.take(3)), ["a", "b", "c"]);
    }

    #[test]
    fn what_rests_can_be_hastened_and_never_held_back() {
        let (mut queue, now) = (KeyQueue::default(), Instant::now());
        let seconds = |n| now + Duration::from_secs(n);
        for name in ["a", "b", "c"] {
            queue.mark(&id(name));
        }
        queue.take(3);
        queue.retry(&id("a"), seconds(60));
        queue.retry(&id("b"), seconds(1));
        queue.settle(&id("c"), seconds(60));
        queue.bring_forward(|_, failed| if failed { seconds(5) } else { seconds(90) });
        assert_eq!(queue.next_wake(), Some(seconds(1)));
        queue.wake(seconds(5));
        assert_eq!(names(&queue.take(9)), ["b", "a"]);
        assert_eq!(queue.next_wake(), Some(seconds(60)));
    }

    #[test]
    fn a_key_that_is_roused_is_ready_once_and_the_others_of_its_moment_rest() {
        let (mut queue, now) = (KeyQueue::default(), Instant::now());
        let later = now + Duration::from_secs(9);
        for name in ["a", "b"] {
            queue.mark(&id(name));
        }
        for id in queue.take(2) {
            queue.retry(&id, later);
        }
        queue.rouse(&id("a"), now);
        assert_eq!(queue.ready(), 0, "it does not rest until then");
        queue.rouse(&id("a"), later);
        assert_eq!(names(&queue.take(9)), ["a"]);
        queue.settle(&id("a"), later + Duration::from_secs(1));
        queue.wake(later);
        assert_eq!(names(&queue.take(9)), ["b"]);
    }

    #[test]
    fn what_rests_goes_on_resting_when_all_else_is_forgotten() {
        let (mut queue, now) = (KeyQueue::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        for name in ["a", "b"] {
            queue.mark(&id(name));
        }
        queue.take(1);
        queue.settle(&id("a"), later);
        queue.restart();
        assert!(!queue.contains(&id("b")));
        queue.mark(&id("a"));
        queue.mark(&id("b"));
        assert_eq!(names(&queue.take(9)), ["b"]);
        queue.wake(later);
        assert_eq!(names(&queue.take(9)), ["a"]);
    }

    #[test]
    fn a_key_may_rest_for_a_write_that_the_queue_does_not_know_and_be_forgotten_after_its_request() {
        let (mut queue, now) = (KeyQueue::default(), Instant::now());
        let later = now + Duration::from_secs(60);
        queue.mark_resting(&id("a"), later);
        assert!(queue.is_resting(&id("a")) && queue.ready() == 0);
        queue.wake(later);
        assert_eq!(names(&queue.take(9)), ["a"]);
        queue.forget(&id("a"));
        assert!(!queue.contains(&id("a")) && queue.next_wake().is_none());
    }

    #[test]
    fn a_withdrawn_key_is_not_handed_out_and_may_come_back() {
        let mut queue = KeyQueue::default();
        queue.mark(&id("a"));
        queue.mark(&id("b"));
        queue.withdraw(&id("a"));
        assert_eq!(queue.ready(), 1);
        queue.mark(&id("a"));
        assert_eq!(names(&queue.take(9)), ["a", "b"], "its old place is as good as any");
        assert_eq!(queue.ready(), 0);
    }
}
