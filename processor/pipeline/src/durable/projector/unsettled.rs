//! The tasks whose newest state KV may lack. Pure: it takes changes, sent requests and outcomes. It returns what is
//! settled, and what must be written again and when.
//!
//! A task is unsettled from the first change that KV may lack. It is settled when a write of its newest state has landed
//! and nothing older can land any more. A request with an unknown outcome may take effect during the *settle time*. Until
//! then its tasks are *in doubt*, and afterwards they are written once more.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use taskpipeline_contract::TaskId;
use tokio::time::Instant;

use crate::durable::bucket::Revision;
use crate::durable::control::record::{Doubt, Settled};
use crate::durable::ledger::cache::Known;
use crate::durable::ledger::record::{Due, Record};
use crate::durable::projector::deferred::{Deferral, Deferred, IdHash, Why};
use crate::durable::projector::reach::Reach;
use crate::durable::projector::shares::{Limits, Occupied, Share};

use self::task::Task;

/// The state of a task after a write has landed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Landed {
    /// The task has changed since: another write follows.
    Changed,
    /// The task must be written once more after its doubt.
    InDoubt,
    /// The task is settled.
    Settled,
}

/// The outcome of a change that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The change must be handled, unless it is older than the known one.
    In,
    /// The share of its task is full, so the task waits in NATS.
    Left,
}

/// The range of look-ups that wait in NATS.
#[derive(Clone, Copy, Debug)]
struct LeftLookUps {
    /// No look-up before this revision.
    from: Revision,
    /// No look-up after this revision.
    last: Revision,
}

/// All unsettled tasks: those in memory, those in doubt, and those that wait in NATS.
#[derive(Debug)]
pub(crate) struct Unsettled {
    settle_after: Duration,
    /// The doubt about requests of the last holder, and when it ends.
    inherited: Option<(Doubt, Instant)>,
    tasks: HashMap<TaskId, Task, RandomState>,
    lows: BTreeSet<Revision>,
    /// In the order in which their doubts end.
    doubts: VecDeque<(Instant, TaskId)>,
    /// The bytes of the tasks in memory.
    occupied: Occupied,
    /// The tasks that wait in NATS.
    deferred: Deferred,
    left_look_ups: Option<LeftLookUps>,
    /// How far the changes were read.
    reach: Reach,
}

impl Unsettled {
    /// Starts with everything up to `settled` settled. `doubt`: what the last holder may have sent.
    pub(crate) fn new(
        limits: &Limits,
        settled: Revision,
        doubt: Option<Doubt>,
        settle_after: Duration,
        now: Instant,
    ) -> Self {
        Self {
            settle_after,
            inherited: doubt.map(|doubt| (doubt, now + settle_after)),
            tasks: HashMap::default(),
            lows: BTreeSet::new(),
            doubts: VecDeque::new(),
            occupied: Occupied::new(limits),
            deferred: Deferred::default(),
            left_look_ups: None,
            reach: Reach::from(settled),
        }
    }

    /// Returns whether there is room for another change.
    pub(crate) fn has_room(&self) -> bool {
        self.occupied.has_room(Share::Write) && self.deferred.has_room()
    }

    /// Returns whether another task may wait for this.
    pub(crate) fn has_room_for(&self, share: Share) -> bool {
        self.occupied.has_room(share)
    }

    /// Returns whether a task that was left in NATS, or whose doubt is over, may return. Only this makes them fewer.
    pub(crate) fn has_room_to_come_back(&self) -> bool {
        self.occupied.has_room_to_come_back()
    }

    /// The number of unsettled tasks, without look-ups that wait in NATS.
    pub(crate) fn len(&self) -> usize {
        self.tasks.len() + self.deferred.len()
    }

    /// The revision up to which every record is settled.
    pub(crate) fn settled(&self) -> Revision {
        let lowest = self.lows.first().copied();
        let left = self.left_look_ups.map(|left| left.from);
        let lowest = [lowest, self.deferred.lowest(), left].into_iter().flatten().min();
        lowest
            .map_or(self.reach.position(), |low| Revision(low.0.saturating_sub(1)).min(self.reach.position()))
    }

    /// The settled revision, and the revision up to which nothing older can take effect.
    ///
    /// Until the doubt about requests of the last holder is over, the latter does not pass the value of that holder.
    pub(crate) fn known_settled(&self, now: Instant) -> Settled {
        let settled = self.settled();
        let sure = match self.inherited {
            Some((doubt, until)) if now < until => doubt.settled.min(settled),
            _ => settled,
        };
        Settled { settled, sure }
    }

    /// The accounts that are not zero although no task is unsettled; empty if all is well.
    #[cfg(test)]
    pub(crate) fn accounts(&self) -> String {
        match (self.occupied.total(), self.lows.len()) {
            (0, 0) => String::new(),
            (bytes, lows) => format!("{bytes} bytes and {lows} places are taken by no task"),
        }
    }

    /// Returns whether no request sent so far can take effect any more.
    pub(crate) fn is_clean(&self, now: Instant) -> bool {
        self.inherited.is_none_or(|(_, until)| until <= now)
            && self.tasks.values().all(|task| task.sent.is_none() && task.doubtful_until.is_none())
            && self.deferred.is_clean()
    }

    /// Takes in a change of the ledger, in the order of revisions, unless its task would have to wait without room.
    ///
    /// `rests_until`: when the task may be written again, if that is long from now.
    pub(crate) fn read(
        &mut self,
        id: &TaskId,
        known: Known,
        rests_until: Option<Instant>,
        now: Instant,
    ) -> Taken {
        if self.tasks.contains_key(id) || self.reach.is_behind(id) {
            self.changed(id, known, now);
            return Taken::In;
        }
        let revision = known.revision;
        if self.deferred.contains(id) {
            self.reach.move_to(revision);
            let Some(deferral) = self.deferred.changed(id, revision) else { return Taken::Left };
            self.come_back(id, &deferral, known);
            return Taken::In;
        }
        let looked_up = known.record.is_to_be_looked_up();
        if looked_up && (self.left_look_ups.is_some() || !self.has_room_for(Share::LookUp)) {
            self.reach.move_to(revision);
            let left = LeftLookUps { from: revision, last: revision };
            self.left_look_ups.get_or_insert(left).last = revision;
            return Taken::Left;
        }
        let rests_until = rests_until.filter(|_| !looked_up && !self.has_room_for(Share::Rest));
        // A task that never existed is not written, and waits for nothing.
        let Some(at) = rests_until.filter(|_| known.record.due(id) != Due::Nothing) else {
            self.changed(id, known, now);
            return Taken::In;
        };
        self.reach.move_to(revision);
        let doubtful_until = self.inherited_by(revision, known.record.follows, now);
        let (low, seen, why) = (revision, revision, Why::Rest);
        self.deferred.add(id, Deferral { low, seen, at, why, doubtful_until, attempts: 0 });
        Taken::Left
    }

    /// Takes in a change that [`Self::read`] has left, or a later one. Returns whether its task must be looked up now.
    ///
    /// Returns `None` while there is no room for it.
    pub(crate) fn read_left(&mut self, id: &TaskId, known: &Known, now: Instant) -> Option<bool> {
        let Some(left) = self.left_look_ups else { return Some(false) };
        let revision = known.revision;
        let is_ours = revision <= self.reach.position()
            && known.record.is_to_be_looked_up()
            && !self.tasks.contains_key(id)
            && !self.reach.is_behind(id)
            && !self.deferred.contains(id);
        if is_ours && !self.has_room_for(Share::LookUp) {
            return None;
        }
        if is_ours {
            self.changed(id, known.clone(), now);
            self.wait_for(id, Share::LookUp);
        }
        self.left_look_ups = (revision < left.last).then_some(LeftLookUps { from: revision.plus(1), ..left });
        Some(is_ours)
    }

    /// The revision at which the waiting look-ups in NATS begin, or `None`.
    pub(crate) fn left_from(&self) -> Option<Revision> {
        self.left_look_ups.map(|left| left.from)
    }

    /// Takes at most `most` due tasks that waited in NATS, with the revisions of their records.
    pub(crate) fn take_deferred(&mut self, most: usize, now: Instant) -> Vec<(IdHash, Revision)> {
        self.deferred.take_due(most, now)
    }

    /// Adds a record that was read. Returns whether its task is back in memory and must be handled.
    pub(crate) fn found_deferred(&mut self, hash: IdHash, id: &TaskId, known: Known, now: Instant) -> bool {
        let Some(deferral) = self.deferred.found(hash, known.revision, now) else { return false };
        self.come_back(id, &deferral, known);
        true
    }

    /// Handles a record that was replaced before it could be read.
    pub(crate) fn missed_deferred(&mut self, hash: IdHash, revision: Revision, now: Instant) {
        self.deferred.missed(hash, revision, now);
    }

    /// Makes tasks due again whose records could not be read.
    pub(crate) fn unread_deferred(&mut self, hashes: impl IntoIterator<Item = IdHash>, at: Instant) {
        hashes.into_iter().for_each(|hash| self.deferred.again(hash, at));
    }

    /// Ends each wait in NATS for this reason at `latest` at the latest.
    pub(crate) fn bring_forward(&mut self, why: Why, latest: Instant) {
        self.deferred.bring_forward(why, latest);
    }

    /// When the next task that waits in NATS is due.
    pub(crate) fn next_deferred(&self) -> Option<Instant> {
        self.deferred.next_due()
    }

    /// The number of tasks that wait in NATS, without look-ups.
    pub(crate) fn deferred(&self) -> usize {
        self.deferred.len()
    }

    fn come_back(&mut self, id: &TaskId, deferral: &Deferral, known: Known) {
        let Deferral { low, doubtful_until, attempts, .. } = *deferral;
        let Known { record, revision } = known;
        let record = Some(record);
        let share = Share::Write;
        let task = Task { low, seen: revision, record, sent: None, doubtful_until, attempts, share };
        self.occupied.add(share, task.bytes());
        self.lows.insert(low);
        self.tasks.insert(id.clone(), task);
    }

    /// Counts a task to another share.
    pub(crate) fn wait_for(&mut self, id: &TaskId, share: Share) {
        if let Some(task) = self.tasks.get_mut(id)
            && task.share != share
        {
            self.occupied.remove(task.share, task.bytes());
            task.share = share;
            self.occupied.add(share, task.bytes());
        }
    }

    /// The share of a task.
    pub(crate) fn share(&self, id: &TaskId) -> Option<Share> {
        self.tasks.get(id).map(|task| task.share)
    }

    /// Leaves a task that is in no request in NATS until `at`.
    pub(crate) fn defer(&mut self, id: &TaskId, at: Instant, why: Why) {
        let Some(task) = self.tasks.remove(id) else { return };
        self.occupied.remove(task.share, task.bytes());
        self.lows.remove(&task.low);
        let Task { low, seen, doubtful_until, attempts, .. } = task;
        self.deferred.add(id, Deferral { low, seen, at, why, doubtful_until, attempts });
    }

    /// Leaves a task that landed in doubt in NATS until the doubt is over.
    pub(crate) fn defer_in_doubt(&mut self, id: &TaskId) {
        if let Some(until) = self.tasks.get(id).and_then(|task| task.doubtful_until) {
            self.defer(id, until, Why::Doubt);
        }
    }

    /// When the doubt of a new change ends that the last holder may have sent, or `None`.
    fn inherited_by(&self, revision: Revision, follows: Revision, now: Instant) -> Option<Instant> {
        let (doubt, until) = self.inherited?;
        (now < until && doubt.is_about(revision, follows)).then_some(until)
    }

    /// Adds a change of the ledger, in the order of revisions.
    pub(crate) fn changed(&mut self, id: &TaskId, known: Known, now: Instant) {
        let Known { record, revision } = known;
        let is_old = self.reach.is_settled_ahead(id, revision);
        self.reach.move_to(revision);
        if is_old {
            return;
        }
        if let Some(task) = self.tasks.get_mut(id) {
            // The read after a doubt may be ahead of what the feed had read before.
            if revision < task.seen {
                return;
            }
            task.seen = revision;
            self.occupied.remove(task.share, task.bytes());
            task.record = Some(record);
            self.occupied.add(task.share, task.bytes());
        } else {
            let doubtful_until = self.inherited_by(revision, record.follows, now);
            let (low, seen, record, share) = (revision, revision, Some(record), Share::Write);
            let task = Task { low, seen, record, sent: None, doubtful_until, attempts: 0, share };
            self.occupied.add(share, task.bytes());
            self.lows.insert(low);
            self.tasks.insert(id.clone(), task);
        }
    }

    /// Passes a change that repeats what was settled before.
    pub(crate) fn passed(&mut self, id: &TaskId, revision: Revision) {
        self.reach.move_to(revision);
        self.settle(id, revision);
    }

    /// The newest record of a task that must be written or was sent.
    pub(crate) fn record(&self, id: &TaskId) -> Option<&Arc<Record>> {
        self.tasks.get(id)?.record.as_ref()
    }

    /// The newest change and its revision.
    pub(crate) fn known(&self, id: &TaskId) -> Option<Known> {
        let task = self.tasks.get(id)?;
        Some(Known { record: Arc::clone(task.record.as_ref()?), revision: task.seen })
    }

    /// The number of writes of the task that have failed in a row.
    pub(crate) fn attempts(&self, id: &TaskId) -> u32 {
        self.tasks.get(id).map_or(0, |task| task.attempts)
    }

    /// Records that the present record is sent.
    pub(crate) fn sent(&mut self, id: &TaskId) {
        self.wait_for(id, Share::Write);
        if let Some(task) = self.tasks.get_mut(id) {
            task.sent = Some(task.seen);
        }
    }

    /// Records that the request sent at `sent_at` has landed. A settled task stays until [`Self::settle`].
    pub(crate) fn landed(&mut self, id: &TaskId, sent_at: Instant) -> Landed {
        let Some(task) = self.tasks.get_mut(id) else { return Landed::Settled };
        task.attempts = 0;
        let sent = task.sent.take().unwrap_or_default();
        if task.doubtful_until.is_some_and(|until| until <= sent_at) {
            task.doubtful_until = None;
        }
        match task.doubtful_until {
            _ if task.seen > sent => {
                if task.doubtful_until.is_none() {
                    // KV has everything up to the sent revision. The next change that it lacks is the newest.
                    self.lows.remove(&task.low);
                    task.low = task.seen;
                    self.lows.insert(task.low);
                }
                Landed::Changed
            }
            Some(until) => {
                self.occupied.remove(task.share, task.bytes());
                (task.record, task.share) = (None, Share::Doubt);
                self.occupied.add(task.share, task.bytes());
                let at = self.doubts.partition_point(|(other, _)| *other <= until);
                self.doubts.insert(at, (until, id.clone()));
                Landed::InDoubt
            }
            None => Landed::Settled,
        }
    }

    /// Records a failed request. `in_doubt`: it may still take effect. Returns the number of failures in a row.
    pub(crate) fn failed(&mut self, id: &TaskId, in_doubt: bool, now: Instant) -> u32 {
        let Some(task) = self.tasks.get_mut(id) else { return 1 };
        task.sent = None;
        task.attempts += 1;
        if in_doubt {
            task.doubtful_until = task.doubtful_until.max(Some(now + self.settle_after));
        }
        task.attempts
    }

    /// Records a failed look-up. Returns the failures in a row, or `None` if the task needs no look-up any more.
    pub(crate) fn look_up_failed(&mut self, id: &TaskId) -> Option<u32> {
        let task = self.tasks.get_mut(id).filter(|task| task.share == Share::LookUp)?;
        task.attempts += 1;
        Some(task.attempts)
    }

    /// Records that KV refused the last request. Returns whether it had the newest change. Older ones may still take effect.
    pub(crate) fn refused(&mut self, id: &TaskId) -> bool {
        self.tasks.get_mut(id).is_some_and(|task| task.sent.take() == Some(task.seen))
    }

    /// Settles a refused task after its letter is stored.
    ///
    /// While an older request is in doubt, the task waits in NATS for the end of the doubt, and is tried once more. A
    /// change that comes meanwhile must know of the doubt.
    pub(crate) fn buried(&mut self, id: &TaskId, up_to: Revision, now: Instant) {
        let Some(task) = self.tasks.get(id).filter(|task| task.seen <= up_to) else { return };
        match task.doubtful_until {
            Some(until) if until > now => self.defer(id, until, Why::Doubt),
            _ => self.settle(id, up_to),
        }
    }

    /// Counts the failed attempts from zero again.
    pub(crate) fn forgive(&mut self, id: &TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.attempts = 0;
        }
    }

    /// Ends the request in flight, of which nothing can land any more.
    pub(crate) fn ended(&mut self, id: &TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            (task.sent, task.doubtful_until, task.attempts) = (None, None, 0);
        }
    }

    /// Settles a task up to this revision. A task that has changed since stays here.
    pub(crate) fn settle(&mut self, id: &TaskId, up_to: Revision) {
        if self.tasks.get(id).is_none_or(|task| task.seen > up_to) {
            return;
        }
        if let Some(task) = self.tasks.remove(id) {
            self.lows.remove(&task.low);
            self.occupied.remove(task.share, task.bytes());
            self.reach.settled(id, task.seen);
        }
    }

    /// Takes at most `most` tasks whose doubt is over. Their records must be read again.
    pub(crate) fn take_doubtful(&mut self, most: usize, now: Instant) -> Vec<TaskId> {
        let mut due = Vec::new();
        while due.len() < most && self.doubts.front().is_some_and(|(until, _)| *until <= now) {
            let Some((_, id)) = self.doubts.pop_front() else { break };
            // A task with a record is written soon anyway. A task that landed twice in its doubt is here twice.
            if self.tasks.get(&id).is_some_and(|task| task.record.is_none()) && !due.contains(&id) {
                due.push(id);
            }
        }
        due
    }

    /// Makes tasks due again that could not be read.
    pub(crate) fn give_back(&mut self, ids: Vec<TaskId>, at: Instant) {
        for id in ids {
            self.doubts.push_front((at, id));
        }
    }

    /// When the next doubt ends.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.doubts.front().map(|(until, _)| *until)
    }

    /// Replaces a record with one that was read again, after a doubt or because the known one may be old.
    pub(crate) fn read_again(&mut self, id: &TaskId, known: Known) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let is_news = task.seen < known.revision || (task.record.is_none() && task.seen == known.revision);
        if is_news {
            // The feed brings this change too, and it is then not new. Or it came before an older one was taken in as a
            // look-up.
            task.seen = known.revision;
            self.occupied.remove(task.share, task.bytes());
            (task.record, task.share) = (Some(known.record), Share::Write);
            self.occupied.add(task.share, task.bytes());
        }
    }
}
