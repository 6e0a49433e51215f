//! Tasks that wait in NATS because their share of the memory is full. Pure.
//!
//! For each task only the revision of its record and the time to read it are kept. A hash of the id
//! finds the task, so that an entry takes some 100 bytes however long the id is. The hash has 128
//! bits and a seed of the process, so that no two ids collide, not even by intent.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::LazyLock;

use foldhash::quality::RandomState;
use taskpipeline_contract::TaskId;
use tokio::time::Instant;

use crate::durable::bucket::Revision;

/// The most deferred tasks: some 25 MB. Beyond this the projector reads no further.
const MOST: usize = 229_000;

/// The hash of one id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IdHash([u64; 2]);

impl IdHash {
    pub(crate) fn of(id: &TaskId) -> Self {
        static SEEDS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);
        Self([SEEDS[0].hash_one(id.as_str()), SEEDS[1].hash_one(id.as_str())])
    }
}

/// Why a task waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// For the end of its rest: a newer change must wait as long.
    Rest,
    /// For its next attempt, or for its dead letter: a newer change must wait as long.
    Retry,
    /// For the end of a doubt after its write: a newer change may be written at once.
    Doubt,
}

/// The state that the projector keeps of a task that waits in NATS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deferral {
    /// The first change that KV may lack.
    pub(crate) low: Revision,
    /// The newest change that was read.
    pub(crate) seen: Revision,
    /// When to read the record.
    pub(crate) at: Instant,
    pub(crate) why: Why,
    /// When the doubt ends. A write that is sent later settles the task.
    pub(crate) doubtful_until: Option<Instant>,
    /// How many writes of the task have failed in a row.
    pub(crate) attempts: u32,
}

#[derive(Debug)]
struct Entry {
    deferral: Deferral,
    /// Whether its record is being read.
    reading: bool,
}

/// The tasks that wait in NATS.
#[derive(Debug, Default)]
pub(crate) struct Deferred {
    entries: HashMap<IdHash, Entry, foldhash::fast::RandomState>,
    /// When to read each task. A task that was moved may still be at its former time, too.
    due: BTreeMap<Instant, Vec<IdHash>>,
    /// The lowest `low`, or a lower bound.
    lowest: Option<Revision>,
    /// The number of removals since `lowest` was computed.
    gone: usize,
}

impl Deferred {
    /// Returns whether there is room for another task.
    pub(crate) fn has_room(&self) -> bool {
        self.entries.len() < MOST
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether no request for any of these tasks may still take effect.
    pub(crate) fn is_clean(&self) -> bool {
        let certain = |entry: &Entry| entry.deferral.doubtful_until.is_none();
        self.entries.values().all(certain)
    }

    /// A revision below which no deferred change is.
    pub(crate) fn lowest(&self) -> Option<Revision> {
        self.lowest
    }

    /// Returns whether this task, or one with the same hash, waits here.
    pub(crate) fn contains(&self, id: &TaskId) -> bool {
        // Most often there are none, and an unneeded hash of an id costs time.
        !self.entries.is_empty() && self.entries.contains_key(&IdHash::of(id))
    }

    /// Defers a task that is not here yet.
    pub(crate) fn add(&mut self, id: &TaskId, deferral: Deferral) {
        let hash = IdHash::of(id);
        self.lowest = Some(self.lowest.map_or(deferral.low, |lowest| lowest.min(deferral.low)));
        self.due.entry(deferral.at).or_default().push(hash);
        self.entries.insert(hash, Entry { deferral, reading: false });
    }

    /// Records a newer change of a task. If the task need not wait any more, removes and returns
    /// its entry.
    pub(crate) fn changed(&mut self, id: &TaskId, revision: Revision) -> Option<Deferral> {
        let hash = IdHash::of(id);
        let entry = self.entries.get_mut(&hash)?;
        entry.deferral.seen = entry.deferral.seen.max(revision);
        (entry.deferral.why == Why::Doubt).then(|| self.remove(hash)).flatten()
    }

    /// Takes at most `most` due tasks, with the revisions of their records.
    pub(crate) fn take_due(&mut self, most: usize, now: Instant) -> Vec<(IdHash, Revision)> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(mut first) = self.due.first_entry().filter(|first| *first.key() <= now)
        {
            let at = *first.key();
            let Some(hash) = first.get_mut().pop() else {
                first.remove();
                continue;
            };
            if let Some(entry) = self.entries.get_mut(&hash)
                && !entry.reading
                && entry.deferral.at <= at
            {
                entry.reading = true;
                taken.push((hash, entry.deferral.seen));
            }
        }
        taken
    }

    /// When the next task is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due.first_key_value().map(|(at, _)| *at)
    }

    /// Handles a record that was read. Removes and returns the entry of its task.
    ///
    /// Returns `None` if the task has changed since; then it is read once more.
    pub(crate) fn found(&mut self, hash: IdHash, revision: Revision, now: Instant) -> Option<Deferral> {
        if self.entries.get(&hash)?.deferral.seen != revision {
            self.again(hash, now);
            return None;
        }
        self.remove(hash)
    }

    /// Handles a record that was replaced: its task has changed, and the feed will bring the
    /// change.
    ///
    /// The task stays here only while it is in doubt, because the change must know of the doubt.
    pub(crate) fn missed(&mut self, hash: IdHash, revision: Revision, now: Instant) {
        let Some(entry) = self.entries.get(&hash) else { return };
        match entry.deferral.doubtful_until {
            // The feed has reached the change meanwhile.
            _ if entry.deferral.seen != revision => self.again(hash, now),
            Some(until) if until > now => self.again(hash, until),
            _ => drop(self.remove(hash)),
        }
    }

    /// Makes a task that could not be read due again at `at`.
    pub(crate) fn again(&mut self, hash: IdHash, at: Instant) {
        if let Some(entry) = self.entries.get_mut(&hash) {
            (entry.reading, entry.deferral.at) = (false, at);
            self.due.entry(at).or_default().push(hash);
        }
    }

    /// Ends each wait for this reason at `latest` at the latest.
    pub(crate) fn bring_forward(&mut self, why: Why, latest: Instant) {
        let later: Vec<_> =
            self.due.range((Excluded(latest), Unbounded)).flat_map(|(_, due)| due).copied().collect();
        for hash in later {
            let Some(entry) = self.entries.get_mut(&hash) else { continue };
            if entry.deferral.why == why && !entry.reading && entry.deferral.at > latest {
                entry.deferral.at = latest;
                self.due.entry(latest).or_default().push(hash);
            }
        }
    }

    fn remove(&mut self, hash: IdHash) -> Option<Deferral> {
        let entry = self.entries.remove(&hash)?;
        self.gone += 1;
        if self.entries.is_empty() {
            *self = Self::default();
        } else if self.gone > self.entries.len() / 8 + 64 {
            // Not at each removal, because it visits all entries.
            self.lowest = self.entries.values().map(|entry| entry.deferral.low).min();
            self.gone = 0;
        }
        Some(entry.deferral)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(n: u64) -> TaskId {
        TaskId::new(format!("task-{n}")).unwrap()
    }

    fn deferral(revision: u64, at: Instant) -> Deferral {
        let revision = Revision(revision);
        Deferral { low: revision, seen: revision, at, why: Why::Rest, doubtful_until: None, attempts: 0 }
    }

    #[test]
    fn what_is_due_is_read_once_and_leaves_with_the_record_that_was_seen_last() {
        let (mut deferred, now) = (Deferred::default(), Instant::now());
        let later = now + Duration::from_secs(9);
        deferred.add(&id(1), deferral(5, now));
        deferred.add(&id(2), deferral(7, later));
        assert_eq!(deferred.lowest(), Some(Revision(5)));
        let due = deferred.take_due(9, now);
        assert_eq!(due, [(IdHash::of(&id(1)), Revision(5))]);
        assert!(deferred.take_due(9, now).is_empty(), "it is being read");
        // The task has changed meanwhile, so the record that was read is old.
        assert_eq!(deferred.changed(&id(1), Revision(9)), None);
        assert_eq!(deferred.found(due[0].0, Revision(5), now), None);
        let due = deferred.take_due(9, now);
        assert_eq!(due, [(IdHash::of(&id(1)), Revision(9))]);
        let found = deferred.found(due[0].0, Revision(9), now).unwrap();
        assert_eq!((found.low, found.seen), (Revision(5), Revision(9)));
        assert_eq!(
            (deferred.len(), deferred.take_due(9, now).len(), deferred.next_due()),
            (1, 0, Some(later))
        );
    }

    #[test]
    fn a_newer_change_of_a_task_in_doubt_need_not_wait() {
        let (mut deferred, now) = (Deferred::default(), Instant::now());
        let until = Some(now + Duration::from_secs(30));
        deferred.add(&id(1), Deferral { why: Why::Doubt, doubtful_until: until, ..deferral(5, now) });
        let known = deferred.changed(&id(1), Revision(8)).unwrap();
        assert_eq!((known.low, known.seen, known.doubtful_until), (Revision(5), Revision(8), until));
        assert_eq!((deferred.len(), deferred.lowest()), (0, None));
    }

    #[test]
    fn a_task_whose_record_was_replaced_leaves_when_it_is_not_in_doubt_any_more() {
        let (mut deferred, now) = (Deferred::default(), Instant::now());
        let until = now + Duration::from_secs(30);
        deferred.add(&id(1), deferral(5, now));
        deferred.add(&id(2), Deferral { doubtful_until: Some(until), ..deferral(6, now) });
        deferred.add(&id(3), deferral(7, now));
        let due = deferred.take_due(9, now);
        // The change of the third task comes while its record is read.
        deferred.changed(&id(3), Revision(8));
        for (hash, revision) in due {
            deferred.missed(hash, revision, now);
        }
        assert!(!deferred.contains(&id(1)) && deferred.contains(&id(2)));
        let due = deferred.take_due(9, now);
        assert_eq!(due, [(IdHash::of(&id(3)), Revision(8))]);
        deferred.found(due[0].0, Revision(8), now).unwrap();
        assert!(deferred.take_due(9, now).is_empty());
        for (hash, revision) in deferred.take_due(9, until) {
            deferred.missed(hash, revision, until);
        }
        assert_eq!((deferred.len(), deferred.lowest()), (0, None));
    }

    #[test]
    fn shorter_settings_bring_all_turns_forward_and_the_lowest_follows_those_that_leave() {
        let (mut deferred, now) = (Deferred::default(), Instant::now());
        let hour = now + Duration::from_secs(3_600);
        for n in 0..1_000 {
            deferred.add(&id(n), deferral(n + 1, hour));
        }
        deferred.bring_forward(Why::Retry, now);
        assert!(deferred.take_due(900, now).is_empty());
        deferred.bring_forward(Why::Rest, now);
        let due = deferred.take_due(900, now);
        assert_eq!(due.len(), 900);
        for (hash, revision) in due {
            deferred.found(hash, revision, now).unwrap();
        }
        let left = deferred.entries.values().map(|entry| entry.deferral.low).min();
        assert!(deferred.lowest() <= left && deferred.len() == 100, "{:?} of {left:?}", deferred.lowest());
        let due = deferred.take_due(900, now);
        for (hash, revision) in due {
            deferred.found(hash, revision, now).unwrap();
        }
        assert_eq!((deferred.len(), deferred.lowest()), (0, None));
    }
}
