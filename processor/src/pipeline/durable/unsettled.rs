//! The tasks whose state in the ledger is not known to be KV's. Pure: changes, sendings and outcomes in;
//! what is settled, what is to be written again and when, out.
//!
//! A task is unsettled from the first change that KV may lack until a write of its newest state has landed and
//! nothing older can land after it. A request whose outcome is unknown may take effect for some time (the
//! *settle time*); until then its tasks stay *in doubt*, and are written once more after it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use taskpipeline_contract::TaskId;
use tokio::time::Instant;

use super::bucket::Revision;
use super::cache::Known;
use super::control::{Doubt, Settled};
use super::record::Record;

/// How many bytes may be in memory here, of tasks and of their records that wait for KV or are on the way to it:
/// enough for two requests of 10,000 tasks on their way and one that fills meanwhile.
const MOST_BYTES: usize = 28 * 1024 * 1024;

/// How many bytes more there may be of records that are read again for their doubt.
const FOR_DOUBTS: usize = MOST_BYTES / 8;

/// What a task occupies without its record: here, in the queue, and its id.
const BYTES_PER_TASK: usize = 300;

/// What a record occupies besides its texts.
const BYTES_PER_RECORD: usize = 400;

/// What follows from a landed write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Landed {
    /// Changed since: another write follows.
    Changed,
    /// To be written once more when its doubt is over.
    InDoubt,
    /// Settled.
    Settled,
}

#[derive(Debug)]
struct Task {
    /// The first change that KV may lack.
    low: Revision,
    /// The newest change that was seen.
    seen: Revision,
    /// What it says; not kept while nothing is to be written.
    record: Option<Arc<Record>>,
    /// The revision in the request that is out.
    sent: Option<Revision>,
    /// A write sent from this moment on ends the doubt.
    doubtful_until: Option<Instant>,
    attempts: u32,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Unsettled {
    settle_after: Duration,
    /// What the last holder may have sent is in doubt until this moment.
    inherited: Option<(Doubt, Instant)>,
    tasks: HashMap<TaskId, Task, RandomState>,
    lows: BTreeSet<Revision>,
    /// In the order in which their doubts end.
    doubts: VecDeque<(Instant, TaskId)>,
    /// Tasks that were read again, and settled, at a revision that the feed has not got to: what it still has of
    /// them is older, and must not be written any more.
    ahead: HashMap<TaskId, Revision>,
    /// The same in the order of revisions.
    ahead_in_order: BTreeMap<Revision, TaskId>,
    /// What the records occupy, and nothing else.
    bytes: usize,
    /// The newest change that was seen of any task.
    position: Revision,
}

impl Unsettled {
    /// Everything up to `settled` is settled. `doubt`: what may have been sent by another.
    pub(super) fn new(settled: Revision, doubt: Option<Doubt>, settle_after: Duration, now: Instant) -> Self {
        Self {
            settle_after,
            inherited: doubt.map(|doubt| (doubt, now + settle_after)),
            tasks: HashMap::default(),
            lows: BTreeSet::new(),
            doubts: VecDeque::new(),
            ahead: HashMap::new(),
            ahead_in_order: BTreeMap::new(),
            bytes: 0,
            position: settled,
        }
    }

    /// Whether another change may be taken in.
    pub(super) fn has_room(&self) -> bool {
        self.occupied() < MOST_BYTES
    }

    /// Whether the record of a task that is here already may be taken in again, however many tasks there are: only
    /// this way do they get fewer.
    pub(super) fn has_room_for_records(&self) -> bool {
        self.occupied() < MOST_BYTES + FOR_DOUBTS
    }

    fn occupied(&self) -> usize {
        self.bytes + self.tasks.len() * BYTES_PER_TASK
    }

    /// How many tasks are not settled.
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Every record with this revision or a lower one is settled.
    pub(super) fn settled(&self) -> Revision {
        self.lows.first().map_or(self.position, |low| Revision(low.0.saturating_sub(1)))
    }

    /// The same, and up to where nothing older can take effect: no further than it was known to the last holder,
    /// until the doubt about what that one sent is over.
    pub(super) fn known_settled(&self, now: Instant) -> Settled {
        let settled = self.settled();
        let sure = match self.inherited {
            Some((doubt, until)) if now < until => doubt.settled.min(settled),
            _ => settled,
        };
        Settled { settled, sure }
    }

    /// Whether a request sent so far may still do anything.
    pub(super) fn is_clean(&self, now: Instant) -> bool {
        self.inherited.is_none_or(|(_, until)| until <= now)
            && self.tasks.values().all(|task| task.sent.is_none() && task.doubtful_until.is_none())
    }

    /// A change was read from the ledger, in the order of revisions.
    pub(super) fn changed(&mut self, id: &TaskId, known: Known, now: Instant) {
        let Known { record, revision } = known;
        let is_old = self.ahead.get(id).is_some_and(|seen| revision <= *seen);
        self.move_to(revision);
        if is_old {
            return;
        }
        let bytes = bytes(&record);
        if let Some(task) = self.tasks.get_mut(id) {
            // Read again for its doubt, it may be ahead of what the feed had read before.
            if revision < task.seen {
                return;
            }
            task.seen = revision;
            self.bytes -= task.record.replace(record).as_deref().map_or(0, self::bytes);
        } else {
            let doubtful_until = self
                .inherited
                .filter(|(doubt, until)| now < *until && doubt.is_about(revision, record.follows))
                .map(|(_, until)| until);
            let record = Some(record);
            self.lows.insert(revision);
            self.tasks.insert(
                id.clone(),
                Task { low: revision, seen: revision, record, sent: None, doubtful_until, attempts: 0 },
            );
        }
        self.bytes += bytes;
    }

    /// A change was read that says what was settled before.
    pub(super) fn passed(&mut self, id: &TaskId, revision: Revision) {
        self.move_to(revision);
        self.settle(id, revision);
    }

    /// What the newest change says, if it has to be written or was sent.
    pub(super) fn record(&self, id: &TaskId) -> Option<&Arc<Record>> {
        self.tasks.get(id)?.record.as_ref()
    }

    /// The newest change and its revision.
    pub(super) fn known(&self, id: &TaskId) -> Option<Known> {
        let task = self.tasks.get(id)?;
        Some(Known { record: Arc::clone(task.record.as_ref()?), revision: task.seen })
    }

    /// How many writes of the task have failed in a row.
    pub(super) fn attempts(&self, id: &TaskId) -> u32 {
        self.tasks.get(id).map_or(0, |task| task.attempts)
    }

    /// What the record says now is sent.
    pub(super) fn sent(&mut self, id: &TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.sent = Some(task.seen);
        }
    }

    /// What was sent at this moment has landed. A settled task stays until [`Self::settle`].
    pub(super) fn landed(&mut self, id: &TaskId, sent_at: Instant) -> Landed {
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
                self.bytes -= task.record.take().as_deref().map_or(0, bytes);
                let at = self.doubts.partition_point(|(other, _)| *other <= until);
                self.doubts.insert(at, (until, id.clone()));
                Landed::InDoubt
            }
            None => Landed::Settled,
        }
    }

    /// The request failed. `in_doubt`: it may take effect all the same. Answers how often it has failed in a row.
    pub(super) fn failed(&mut self, id: &TaskId, in_doubt: bool, now: Instant) -> u32 {
        let Some(task) = self.tasks.get_mut(id) else { return 1 };
        task.sent = None;
        task.attempts += 1;
        if in_doubt {
            task.doubtful_until = task.doubtful_until.max(Some(now + self.settle_after));
        }
        task.attempts
    }

    /// Failed attempts are counted anew.
    pub(super) fn forgive(&mut self, id: &TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.attempts = 0;
        }
    }

    /// The request that was out is over for good, and nothing of it can land any more.
    pub(super) fn ended(&mut self, id: &TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            (task.sent, task.doubtful_until, task.attempts) = (None, None, 0);
        }
    }

    /// KV has what the ledger has, unless it was changed since; then it stays here.
    pub(super) fn settle(&mut self, id: &TaskId, up_to: Revision) {
        if self.tasks.get(id).is_none_or(|task| task.seen > up_to) {
            return;
        }
        if let Some(task) = self.tasks.remove(id) {
            self.lows.remove(&task.low);
            self.bytes -= task.record.as_deref().map_or(0, bytes);
            if task.seen > self.position {
                self.ahead.insert(id.clone(), task.seen);
                self.ahead_in_order.insert(task.seen, id.clone());
            }
        }
    }

    /// The feed has got to this revision.
    fn move_to(&mut self, revision: Revision) {
        self.position = self.position.max(revision);
        while let Some(first) = self.ahead_in_order.first_entry().filter(|first| *first.key() <= revision) {
            let (seen, id) = first.remove_entry();
            if self.ahead.get(&id) == Some(&seen) {
                self.ahead.remove(&id);
            }
        }
    }

    /// Tasks to be written once more now, at most so many: their records are to be read again.
    pub(super) fn take_doubtful(&mut self, most: usize, now: Instant) -> Vec<TaskId> {
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
    pub(super) fn give_back(&mut self, ids: Vec<TaskId>, at: Instant) {
        for id in ids {
            self.doubts.push_front((at, id));
        }
    }

    /// When the next doubt is over.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.doubts.front().map(|(until, _)| *until)
    }

    /// A record that was read again for its doubt, and is to be written.
    pub(super) fn read_again(&mut self, id: &TaskId, known: Known) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        if task.record.is_none() && task.seen <= known.revision {
            // Its change comes by the feed too, and is then no news.
            task.seen = known.revision;
            self.bytes += bytes(&known.record);
            task.record = Some(known.record);
        }
    }
}

fn bytes(record: &Record) -> usize {
    BYTES_PER_RECORD + record.text_bytes()
}

#[cfg(test)]
mod tests {
    use taskpipeline_contract::{CorrelationId, EventData, Timestamp};

    use super::*;
    use crate::pipeline::fold::Version;

    #[test]
    fn what_the_feed_still_has_of_a_task_that_was_settled_ahead_of_it_is_not_written() {
        let (now, settle_after) = (Instant::now(), Duration::from_secs(30));
        let mut unsettled = Unsettled::new(Revision(0), Some(EVERYTHING), settle_after, now);
        let id = TaskId::new("a").unwrap();
        let known = |revision| {
            let (version, cause) = (Version::new(1, revision), CorrelationId::new("c").unwrap());
            let record = Record::of(version, Timestamp::UNIX_EPOCH, cause, &EventData::Deleted(id.clone()));
            Known { record: Arc::new(record), revision: Revision(revision) }
        };
        unsettled.changed(&id, known(1), now);
        unsettled.sent(&id);
        assert_eq!(unsettled.landed(&id, now), Landed::InDoubt);
        let later = now + settle_after;
        assert_eq!(unsettled.take_doubtful(9, later), std::slice::from_ref(&id));
        unsettled.read_again(&id, known(52));
        unsettled.sent(&id);
        assert_eq!(unsettled.landed(&id, later), Landed::Settled);
        unsettled.settle(&id, Revision(52));
        assert_eq!(unsettled.settled(), Revision(1));
        for old in [45, 52] {
            unsettled.changed(&id, known(old), later);
            assert!(unsettled.record(&id).is_none(), "{old} was to be written");
        }
        assert_eq!(unsettled.settled(), Revision(52));
        assert!(unsettled.ahead.is_empty() && unsettled.ahead_in_order.is_empty());
        unsettled.changed(&id, known(60), later);
        assert!(unsettled.record(&id).is_some());
    }

    #[test]
    fn what_the_last_holder_cannot_have_sent_is_written_once() {
        let (now, settle_after) = (Instant::now(), Duration::from_secs(30));
        let doubt = Doubt { settled: Revision(10), up_to: Revision(20) };
        let mut unsettled = Unsettled::new(Revision(10), Some(doubt), settle_after, now);
        let mut landed = |revision, follows, at| {
            let id = TaskId::new(format!("task-{revision}")).unwrap();
            let (version, cause) = (Version::new(1, revision), CorrelationId::new("c").unwrap());
            let mut record =
                Record::of(version, Timestamp::UNIX_EPOCH, cause, &EventData::Deleted(id.clone()));
            record.follows = Revision(follows);
            unsettled.changed(&id, Known { record: Arc::new(record), revision: Revision(revision) }, at);
            unsettled.sent(&id);
            unsettled.landed(&id, at)
        };
        assert_eq!(landed(15, 0, now), Landed::InDoubt);
        assert_eq!(landed(25, 15, now), Landed::InDoubt);
        assert_eq!(landed(26, 0, now), Landed::Settled);
        assert_eq!(landed(27, 9, now), Landed::Settled);
        assert_eq!(landed(30, 15, now + settle_after), Landed::Settled);
    }

    const EVERYTHING: Doubt = Doubt { settled: Revision(0), up_to: Revision(u64::MAX) };

    #[test]
    fn as_many_tasks_in_doubt_as_there_may_be_do_not_keep_themselves_from_being_written_again() {
        let (now, settle_after) = (Instant::now(), Duration::from_secs(30));
        let mut unsettled = Unsettled::new(Revision(0), Some(EVERYTHING), settle_after, now);
        let mut revision = 0;
        while unsettled.has_room() {
            revision += 1;
            let id = TaskId::new(format!("task-{revision}")).unwrap();
            let cause = CorrelationId::new("c").unwrap();
            let record = Record::of(
                Version::new(1, revision),
                Timestamp::UNIX_EPOCH,
                cause,
                &EventData::Deleted(id.clone()),
            );
            unsettled.changed(&id, Known { record: Arc::new(record), revision: Revision(revision) }, now);
            unsettled.sent(&id);
            assert_eq!(unsettled.landed(&id, now), Landed::InDoubt);
        }
        assert_eq!(unsettled.bytes, 0, "no record is kept in memory, so it is their number that fills it");
        assert!(unsettled.len() > 90_000, "{}", unsettled.len());
        assert!(unsettled.has_room_for_records());
        assert_eq!(unsettled.take_doubtful(500, now + settle_after).len(), 500);
        assert_eq!(unsettled.settled(), Revision(0));
    }
}
