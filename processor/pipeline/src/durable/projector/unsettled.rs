//! The tasks whose state in the ledger is not known to be KV's. Pure: changes, sendings and outcomes in;
//! what is settled, what is to be written again and when, out.
//!
//! A task is unsettled from the first change that KV may lack until a write of its newest state has landed and
//! nothing older can land after it. A request whose outcome is unknown may take effect for some time (the
//! *settle time*); until then its tasks stay *in doubt*, and are written once more after it.

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

/// What follows from a landed write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Landed {
    /// Changed since: another write follows.
    Changed,
    /// To be written once more when its doubt is over.
    InDoubt,
    /// Settled.
    Settled,
}

/// What became of a change that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is to be seen to, unless it is older than what is known of its task.
    In,
    /// Its share of the memory is full: it waits in NATS.
    Left,
}

/// Look-ups that wait in NATS.
#[derive(Clone, Copy, Debug)]
struct LeftLookUps {
    /// None before this one.
    from: Revision,
    /// None after this one.
    last: Revision,
}

/// All unsettled tasks: those in memory, those in doubt, and those that wait in NATS.
#[derive(Debug)]
pub(crate) struct Unsettled {
    settle_after: Duration,
    /// What the last holder may have sent is in doubt until this moment.
    inherited: Option<(Doubt, Instant)>,
    tasks: HashMap<TaskId, Task, RandomState>,
    lows: BTreeSet<Revision>,
    /// In the order in which their doubts end.
    doubts: VecDeque<(Instant, TaskId)>,
    /// What the tasks above occupy.
    occupied: Occupied,
    /// Tasks that wait in NATS.
    deferred: Deferred,
    left_look_ups: Option<LeftLookUps>,
    /// How far the changes were read.
    reach: Reach,
}

impl Unsettled {
    /// Everything up to `settled` is settled. `doubt`: what may have been sent by another.
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

    /// Whether another change may be taken in.
    pub(crate) fn has_room(&self) -> bool {
        self.occupied.has_room(Share::Write) && self.deferred.has_room()
    }

    /// Whether another task may wait for this.
    pub(crate) fn has_room_for(&self, share: Share) -> bool {
        self.occupied.has_room(share)
    }

    /// Whether a task that was left in NATS, or whose doubt is over, may come back, however many tasks there are: only
    /// this way do they get fewer.
    pub(crate) fn has_room_to_come_back(&self) -> bool {
        self.occupied.has_room_to_come_back()
    }

    /// How many tasks are not settled, as far as they are counted: look-ups that wait in NATS are not.
    pub(crate) fn len(&self) -> usize {
        self.tasks.len() + self.deferred.len()
    }

    /// Every record with this revision or a lower one is settled.
    pub(crate) fn settled(&self) -> Revision {
        let lowest = self.lows.first().copied();
        let left = self.left_look_ups.map(|left| left.from);
        let lowest = [lowest, self.deferred.lowest(), left].into_iter().flatten().min();
        lowest
            .map_or(self.reach.position(), |low| Revision(low.0.saturating_sub(1)).min(self.reach.position()))
    }

    /// The same, and up to where nothing older can take effect: no further than it was known to the last holder,
    /// until the doubt about what that one sent is over.
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

    /// Whether a request sent so far may still do anything.
    pub(crate) fn is_clean(&self, now: Instant) -> bool {
        self.inherited.is_none_or(|(_, until)| until <= now)
            && self.tasks.values().all(|task| task.sent.is_none() && task.doubtful_until.is_none())
            && self.deferred.is_clean()
    }

    /// A change was read from the ledger, in the order of revisions. It is taken in, unless it would have to wait and
    /// there is no room for that. `rests_until`: when its task may be written again, if that is long from now.
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
        // A task that never was is not to be written, and waits for nothing.
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

    /// The same change as [`Self::read`] has left, or one after it, was read again. Answers whether its task is to be looked
    /// up now; nothing, while there is no room for it.
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

    /// Where the look-ups begin that wait in NATS, if there are any.
    pub(crate) fn left_from(&self) -> Option<Revision> {
        self.left_look_ups.map(|left| left.from)
    }

    /// Tasks that waited in NATS and are to be read now, at most so many, with the revisions of their records.
    pub(crate) fn take_deferred(&mut self, most: usize, now: Instant) -> Vec<(IdHash, Revision)> {
        self.deferred.take_due(most, now)
    }

    /// The record at this revision was read. Answers whether its task is here again, to be seen to.
    pub(crate) fn found_deferred(&mut self, hash: IdHash, id: &TaskId, known: Known, now: Instant) -> bool {
        let Some(deferral) = self.deferred.found(hash, known.revision, now) else { return false };
        self.come_back(id, &deferral, known);
        true
    }

    /// The record of this revision was replaced.
    pub(crate) fn missed_deferred(&mut self, hash: IdHash, revision: Revision, now: Instant) {
        self.deferred.missed(hash, revision, now);
    }

    /// These could not be read.
    pub(crate) fn unread_deferred(&mut self, hashes: impl IntoIterator<Item = IdHash>, at: Instant) {
        hashes.into_iter().for_each(|hash| self.deferred.again(hash, at));
    }

    /// No task that waits in NATS for this waits longer than until then.
    pub(crate) fn hasten(&mut self, why: Why, latest: Instant) {
        self.deferred.hasten(why, latest);
    }

    /// When the next task that waits in NATS is to be read.
    pub(crate) fn next_deferred(&self) -> Option<Instant> {
        self.deferred.next_due()
    }

    /// How many tasks wait in NATS, as far as they are counted.
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

    /// What a task is counted to.
    pub(crate) fn share(&self, id: &TaskId) -> Option<Share> {
        self.tasks.get(id).map(|task| task.share)
    }

    /// Leaves a task in NATS that is in no request, until then.
    pub(crate) fn defer(&mut self, id: &TaskId, at: Instant, why: Why) {
        let Some(task) = self.tasks.remove(id) else { return };
        self.occupied.remove(task.share, task.bytes());
        self.lows.remove(&task.low);
        let Task { low, seen, doubtful_until, attempts, .. } = task;
        self.deferred.add(id, Deferral { low, seen, at, why, doubtful_until, attempts });
    }

    /// Leaves a task in NATS that has landed in doubt, until the doubt is over.
    pub(crate) fn defer_in_doubt(&mut self, id: &TaskId) {
        if let Some(until) = self.tasks.get(id).and_then(|task| task.doubtful_until) {
            self.defer(id, until, Why::Doubt);
        }
    }

    /// Until when a change is in doubt that was read just now, for what the last holder may have sent.
    fn inherited_by(&self, revision: Revision, follows: Revision, now: Instant) -> Option<Instant> {
        let (doubt, until) = self.inherited?;
        (now < until && doubt.is_about(revision, follows)).then_some(until)
    }

    /// A change was read from the ledger, in the order of revisions.
    pub(crate) fn changed(&mut self, id: &TaskId, known: Known, now: Instant) {
        let Known { record, revision } = known;
        let is_old = self.reach.is_settled_ahead(id, revision);
        self.reach.move_to(revision);
        if is_old {
            return;
        }
        if let Some(task) = self.tasks.get_mut(id) {
            // Read again for its doubt, it may be ahead of what the feed had read before.
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

    /// A change was read that says what was settled before.
    pub(crate) fn passed(&mut self, id: &TaskId, revision: Revision) {
        self.reach.move_to(revision);
        self.settle(id, revision);
    }

    /// What the newest change says, if it has to be written or was sent.
    pub(crate) fn record(&self, id: &TaskId) -> Option<&Arc<Record>> {
        self.tasks.get(id)?.record.as_ref()
    }

    /// The newest change and its revision.
    pub(crate) fn known(&self, id: &TaskId) -> Option<Known> {
        let task = self.tasks.get(id)?;
        Some(Known { record: Arc::clone(task.record.as_ref()?), revision: task.seen })
    }

    /// How many writes of the task have failed in a row.
    pub(crate) fn attempts(&self, id: &TaskId) -> u32 {
        self.tasks.get(id).map_or(0, |task| task.attempts)
    }

    /// What the record says now is sent.
    pub(crate) fn sent(&mut self, id: &TaskId) {
        self.wait_for(id, Share::Write);
        if let Some(task) = self.tasks.get_mut(id) {
            task.sent = Some(task.seen);
        }
    }

    /// What was sent at this moment has landed. A settled task stays until [`Self::settle`].
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
                    // KV has all up to what was sent; the next that it lacks has the newest revision.
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

    /// The request failed. `in_doubt`: it may take effect all the same. Answers how often it has failed in a row.
    pub(crate) fn failed(&mut self, id: &TaskId, in_doubt: bool, now: Instant) -> u32 {
        let Some(task) = self.tasks.get_mut(id) else { return 1 };
        task.sent = None;
        task.attempts += 1;
        if in_doubt {
            task.doubtful_until = task.doubtful_until.max(Some(now + self.settle_after));
        }
        task.attempts
    }

    /// A look-up failed. Answers how often in a row; nothing where the task is not to be looked up any more, and a write
    /// of it may be under way.
    pub(crate) fn look_up_failed(&mut self, id: &TaskId) -> Option<u32> {
        let task = self.tasks.get_mut(id).filter(|task| task.share == Share::LookUp)?;
        task.attempts += 1;
        Some(task.attempts)
    }

    /// KV refuses what was sent last. What was sent before it may still take effect. Answers whether that is what the newest
    /// change says.
    pub(crate) fn refused(&mut self, id: &TaskId) -> bool {
        self.tasks.get_mut(id).is_some_and(|task| task.sent.take() == Some(task.seen))
    }

    /// What KV refuses is seen to, and settled; but as long as something older is in doubt, the task waits for the end of
    /// that in NATS, and is tried once more: a change that comes meanwhile has to know of the doubt.
    pub(crate) fn buried(&mut self, id: &TaskId, up_to: Revision, now: Instant) {
        let Some(task) = self.tasks.get(id).filter(|task| task.seen <= up_to) else { return };
        match task.doubtful_until {
            Some(until) if until > now => self.defer(id, until, Why::Doubt),
            _ => self.settle(id, up_to),
        }
    }

    /// Failed attempts are counted anew.
    pub(crate) fn forgive(&mut self, id: &TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.attempts = 0;
        }
    }

    /// The request that was out is over for good, and nothing of it can land any more.
    pub(crate) fn ended(&mut self, id: &TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            (task.sent, task.doubtful_until, task.attempts) = (None, None, 0);
        }
    }

    /// KV has what the ledger has, unless it was changed since; then it stays here.
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

    /// Tasks to be written once more now, at most so many: their records are to be read again.
    pub(crate) fn take_doubtful(&mut self, most: usize, now: Instant) -> Vec<TaskId> {
        let mut due = Vec::new();
        while due.len() < most && self.doubts.front().is_some_and(|(until, _)| *until <= now) {
            let Some((_, id)) = self.doubts.pop_front() else { break };
            // One with a record is about to be written anyway; one that landed twice in its doubt stands here twice.
            if self.tasks.get(&id).is_some_and(|task| task.record.is_none()) && !due.contains(&id) {
                due.push(id);
            }
        }
        due
    }

    /// These could not be read: they are due again at once.
    pub(crate) fn give_back(&mut self, ids: Vec<TaskId>, at: Instant) {
        for id in ids {
            self.doubts.push_front((at, id));
        }
    }

    /// When the next doubt is over.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.doubts.front().map(|(until, _)| *until)
    }

    /// A record that was read again: for its doubt, or since what is here of it may be old.
    pub(crate) fn read_again(&mut self, id: &TaskId, known: Known) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let is_news = task.seen < known.revision || (task.record.is_none() && task.seen == known.revision);
        if is_news {
            // Its change comes by the feed too, and is then no news; or it came already, before an older one was taken in
            // as a look-up that had been left.
            task.seen = known.revision;
            self.occupied.remove(task.share, task.bytes());
            (task.record, task.share) = (Some(known.record), Share::Write);
            self.occupied.add(task.share, task.bytes());
        }
    }
}
