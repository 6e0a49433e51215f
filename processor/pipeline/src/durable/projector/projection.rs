//! Decides what the projector of mode `Durable` does. Pure: it takes the moment, and what came from the ledger, from KV and
//! from the control record, as arguments, and answers with [`Action`]s, which its driver carries out and reports as
//! [`Done`]. So `durable/simulation` drives the very code that ships.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod answers;
mod sending;
mod term;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use taskpipeline_contract::TaskId;
use tokio::time::Instant;
use tracing::warn;

use crate::durable::bucket::Revision;
use crate::durable::control::holder::Held;
use crate::durable::control::loan::Asked;
use crate::durable::control::record::RENEWAL;
use crate::durable::ledger::cache::Known;
use crate::durable::ledger::feed::Change;
use crate::durable::names::{Names, Target};
use crate::durable::projector::deferred::Why;
use crate::durable::projector::jobs::{Done, Job, PAUSE};
use crate::durable::projector::lag::Lag;
use crate::durable::projector::progress::Progress;
use crate::durable::projector::rests::Rests;
use crate::durable::projector::shares::Limits;
use crate::durable::projector::unsettled::{Landed, Taken, Unsettled};
use crate::schedule::Flight;
use crate::schedule::{Schedule, longest_delay};
use crate::settings::Tuning;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use taskpipeline_kv::RequestBudget;

pub(crate) use self::term::{Leaving, Outside};

/// How many tasks are read again with one request when their doubt is over.
const READ_AGAIN: usize = 500;

/// How many are being read again at a time: what the answers hold counts only when they are there.
const MOST_READING: usize = 4 * READ_AGAIN;

/// How soon a renewal that NATS did not confirm is tried again.
const RENEW_AGAIN: Duration = Duration::from_millis(200);

/// What a projection is told once.
#[derive(Clone)]
pub(crate) struct Setup {
    /// How long after a request was sent it may still take effect.
    pub(crate) settle_after: Duration,
    /// How long a settled record lives that says nothing but that there is no task; for ever, if nothing.
    pub(crate) memory: Option<Duration>,
    /// How far behind what was read a renewal lets it read.
    pub(crate) read_ahead: u64,
    /// The KV namespace.
    pub(crate) target: Target,
    /// How much of each kind may wait in memory.
    pub(crate) limits: Limits,
    pub(crate) names: Arc<Names>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
}

/// Something to be done.
pub(crate) enum Action {
    /// Send a request to KV; its answer is to be told.
    Send(Flight),
    /// Begin this beside the others; its result is to be told.
    Begin(Job),
    /// Read what was left in NATS, after this revision.
    FollowLeft(Revision),
    /// Stop reading that.
    LeaveLeft,
    /// Forget everything that is being done, and read the changes after this revision.
    Restart(Revision),
}

/// The state of a term after a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Term {
    /// It does.
    GoesOn,
    /// Another replica has the control record.
    Lost,
}

/// One term of a projector: from when it takes the control record until it has it no more.
pub(crate) struct Projection {
    setup: Setup,
    tuning: Tuning,
    schedule: Schedule,
    held: Held,
    unsettled: Unsettled,
    /// Whether what was left in NATS is being read.
    following: bool,
    /// Changes that were read from there and not taken in yet.
    left: VecDeque<Change>,
    /// When tasks were written, where they rest for long.
    rests: Rests,
    /// Changes that may be taken in when the control record says so.
    ahead: VecDeque<Change>,
    /// The latest revision that was read, whether or not it was taken in.
    read: Revision,
    /// Settled records that are to be given their time to live, when those before them have theirs.
    to_expire: VecDeque<(TaskId, Known)>,
    expiring: bool,
    /// How many tasks are being read again.
    reading: usize,
    /// Whether tasks that waited in NATS are being read.
    reading_deferred: bool,
    renewing: bool,
    renew_at: Instant,
    /// What a command asks for.
    asked: Option<Asked>,
    behind: u64,
    lag: Lag,
    progress: Progress,
    /// How many keys KV has answered for.
    answered: u64,
    /// When somebody will look whether it moves.
    look_at: Instant,
    actions: VecDeque<Action>,
}

/// At most a tenth of the budget goes into looking up what only KV knows.
pub(crate) fn tenth(budget: RequestBudget) -> RequestBudget {
    let requests = NonZeroU32::new(budget.requests.get() / 10).unwrap_or(NonZeroU32::MIN);
    RequestBudget { requests, ..budget }
}

impl Projection {
    /// Begins a term.
    pub(crate) fn new(
        setup: Setup,
        tuning: Tuning,
        mut schedule: Schedule,
        rests: Rests,
        held: Held,
        now: Instant,
    ) -> Self {
        schedule.resume(held.spare, now);
        let settled = held.control.settled;
        let unsettled = Unsettled::new(&setup.limits, settled, held.doubt, setup.settle_after, now);
        let renew_at = held.since + RENEWAL;
        Self {
            setup,
            tuning,
            schedule,
            held,
            unsettled,
            following: false,
            left: VecDeque::new(),
            rests,
            ahead: VecDeque::new(),
            read: settled,
            to_expire: VecDeque::new(),
            expiring: false,
            reading: 0,
            reading_deferred: false,
            renewing: false,
            renew_at,
            asked: None,
            behind: 0,
            lag: Lag::default(),
            progress: Progress::new(now),
            answered: 0,
            look_at: now,
            actions: VecDeque::new(),
        }
    }

    /// What outlives a term.
    pub(crate) fn into_parts(self) -> (Schedule, Rests) {
        (self.schedule, self.rests)
    }

    /// Does what is due, and sends what can be sent, unless it is to stop.
    pub(crate) fn turn(&mut self, stopping: bool, now: Instant) {
        self.schedule.wake(now);
        self.read_doubtful_again(now);
        self.read_deferred(now);
        self.follow_left();
        self.take_in_left(now);
        self.expire();
        // A replica that drains does not renew once nothing is in flight: with a slow NATS the next renewal would always be due,
        // and the replica would never leave.
        if !stopping || self.schedule.in_flight() > 0 {
            self.renew(now);
        }
        if !stopping && self.may_send(now) {
            self.lend(now);
            self.send_what_can_be_sent(now);
        }
    }

    fn begin(&mut self, job: Job) {
        self.actions.push_back(Action::Begin(job));
    }

    /// The next thing to be done.
    pub(crate) fn action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether nothing is under way that has to end before the control record is let go.
    pub(crate) fn may_leave(&self) -> bool {
        self.schedule.in_flight() == 0 && !self.renewing
    }

    /// Whether it has room for changes of the ledger.
    pub(crate) fn wants_changes(&self) -> bool {
        self.unsettled.has_room() && self.ahead.is_empty()
    }

    /// The next changes of the ledger.
    pub(crate) fn changes(&mut self, changes: impl IntoIterator<Item = Change>, now: Instant) {
        self.ahead.extend(changes);
        self.take_in_what_may_be(now);
    }

    /// The settings have changed. What waits to be tried again waits no longer than it would under the new ones.
    pub(crate) fn retune(&mut self, tuning: Tuning, now: Instant) {
        self.schedule.retune(&tuning, tenth(tuning.request_budget), now);
        let dice = self.schedule.throw();
        let written = now + tuning.min_write_interval;
        let unsettled = &self.unsettled;
        let latest = |id: &TaskId, failed: bool| {
            let attempts = unsettled.attempts(id);
            let delay = tuning.retry.delay_after(attempts, dice).filter(|_| attempts > 0);
            if failed { now + delay.unwrap_or_else(|| longest_delay(&tuning, dice)) } else { written }
        };
        self.schedule.writes.hasten(latest);
        self.schedule.reads.hasten(latest);
        self.unsettled.hasten(Why::Rest, written);
        self.unsettled.hasten(Why::Retry, now + longest_delay(&tuning, dice));
        self.tuning = tuning;
    }

    /// By when to take the next turn, if nothing happens before.
    pub(crate) fn next_wake(&self, stopping: bool, now: Instant) -> Instant {
        let renew = if self.renewing { None } else { Some(self.renew_at) };
        let soon = now + PAUSE;
        // Where there is no room for what is due, an answer makes it.
        let due = self.unsettled.next_due().filter(|_| self.may_read_again());
        let deferred = self.unsettled.next_deferred().filter(|_| self.may_read_deferred());
        // What is due to be sent, and may not be sent, waits for a renewal, which wakes the driver. Until then it would stay due,
        // and the driver would not sleep at all.
        let send = self.schedule.next_wake().filter(|_| !stopping && self.may_send(now));
        [renew, send, due, deferred].into_iter().flatten().fold(soon, Instant::min)
    }

    /// Takes in what was read, as far as the control record says that it is. When that is soon used up it is renewed
    /// at once, so that nobody waits for it.
    fn take_in_what_may_be(&mut self, now: Instant) {
        let reading = self.held.control.reading;
        self.read = self.ahead.back().map_or(self.read, |last| self.read.max(last.known.revision));
        while self.ahead.front().is_some_and(|change| change.known.revision <= reading) {
            let Some(change) = self.ahead.pop_front() else { break };
            self.take_in(change, now);
        }
        if reading.0.saturating_sub(self.read.0) <= self.setup.read_ahead / 2 {
            self.renew_at = self.renew_at.min(now);
        }
    }

    fn take_in(&mut self, change: Change, now: Instant) {
        let Change { id, known, behind } = change;
        self.behind = behind;
        // Our own doing: it was settled before it was given its time to live, and nothing came between.
        if known.record.expires_by.as_ref().is_some_and(|by| *by == self.settler()) {
            self.unsettled.passed(&id, known.revision);
            return;
        }
        let rests_until = self.rests_long_until(&id, now);
        if self.unsettled.read(&id, known, rests_until, now) == Taken::In {
            self.route(&id, now);
        }
    }

    /// However many tasks there are: only by being read again do they get fewer.
    fn may_read_again(&self) -> bool {
        self.unsettled.has_room_to_come_back() && self.reading < MOST_READING
    }

    fn read_doubtful_again(&mut self, now: Instant) {
        if !self.may_read_again() {
            return;
        }
        let ids = self.unsettled.take_doubtful(READ_AGAIN, now);
        if ids.is_empty() {
            return;
        }
        self.read(ids);
    }

    fn read(&mut self, ids: Vec<TaskId>) {
        self.reading += ids.len();
        self.begin(Job::Read(ids));
    }

    /// Something was done.
    pub(crate) fn done(&mut self, done: Done, now: Instant) -> Term {
        match done {
            Done::Renewed(renewal, asked) => {
                self.renewing = false;
                self.asked = asked;
                return self.renewed(renewal, now);
            }
            Done::Lent => {}
            Done::Expired(expired) => {
                self.expiring = false;
                expired.iter().for_each(|(id, revision)| self.unsettled.settle(id, *revision));
            }
            Done::Buried(id, revision) => self.unsettled.buried(&id, revision, now),
            // The change comes by the feed, when there is room for it; what waited for it need not wait here.
            Done::Joined(id, Ok(Some(replaced))) => self.unsettled.settle(&id, replaced),
            // Another was first, and its change comes too; or the record is gone.
            Done::Joined(id, Ok(None)) => self.read(vec![id]),
            Done::ReadAt(due, found) => self.was_read_at(due, found, now),
            Done::Joined(id, Err(_)) => self.route(&id, now),
            Done::Read(ids, Ok(mut known)) => {
                self.reading -= ids.len();
                for id in ids {
                    match known.remove(&id) {
                        // Changed meanwhile, and later than may be sent yet.
                        Some(known) if known.revision > self.held.control.reading => {
                            self.read = self.read.max(known.revision);
                            self.renew_at = self.renew_at.min(now);
                            self.unsettled.give_back(vec![id], now + RENEW_AGAIN);
                        }
                        Some(known) => {
                            self.unsettled.read_again(&id, known);
                            if self.unsettled.record(&id).is_some() {
                                self.route(&id, now);
                            } else {
                                // A replica of the stream has answered that is behind.
                                self.unsettled.give_back(vec![id], now + RENEW_AGAIN);
                            }
                        }
                        None => self.unsettled.settle(&id, Revision(u64::MAX)),
                    }
                }
            }
            Done::Read(ids, Err(error)) => {
                self.reading -= ids.len();
                warn!(tasks = ids.len(), %error, "cannot read tasks from the ledger again");
                self.unsettled.give_back(ids, now + PAUSE);
            }
        }
        Term::GoesOn
    }

    /// Shows itself in the metrics.
    pub(crate) fn show(&mut self, now: Instant) {
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let metrics = &self.setup.metrics;
        metrics.unsettled_tasks.set(i64::try_from(self.unsettled.len()).unwrap_or(i64::MAX));
        metrics.deferred_tasks.set(i64::try_from(self.unsettled.deferred()).unwrap_or(i64::MAX));
        metrics.changes_behind.set(gauge(self.behind));
        metrics.rests_forgotten.inc_by(self.rests.take_forgotten());
        let age = self.lag.see(self.read, self.unsettled.settled(), now);
        self.setup.health.set_oldest_change(age);
        self.schedule.show(now);
    }
}
