//! Decides what the projector of mode `Durable` does. Pure: it takes the time, and news of the
//! ledger, KV and the control record.
//!
//! It returns [`Action`]s. Its driver carries them out and reports the results as [`Done`]. So
//! `durable/simulation` drives the same code that ships.

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
use crate::durable::control::holder::Lease;
use crate::durable::control::loan::LoanRequest;
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

/// The most tasks in one read after their doubt is over.
const READ_AGAIN: usize = 500;

/// The most tasks in such reads at a time. The records in the answers count as memory only when
/// they arrive.
const MOST_READING: usize = 4 * READ_AGAIN;

/// The delay before a renewal that NATS did not confirm is tried again.
const RENEW_AGAIN: Duration = Duration::from_millis(200);

/// The parameters of a projection, which stay the same.
#[derive(Clone)]
pub(crate) struct Setup {
    /// How long a request may still take effect after it was sent.
    pub(crate) settle_after: Duration,
    /// How long the settled record of a missing task lives; `None` means indefinitely.
    pub(crate) memory: Option<Duration>,
    /// How many revisions a renewal lets the projection read ahead.
    pub(crate) read_ahead: u64,
    pub(crate) target: Target,
    /// The memory for each kind of waiting task.
    pub(crate) limits: Limits,
    pub(crate) names: Arc<Names>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
}

/// Something that the driver must do.
pub(crate) enum Action {
    /// Send a request to KV, and report its answer.
    Send(Flight),
    /// Start this job beside the others, and report its result.
    Begin(Job),
    /// Read the look-ups that were left in NATS, after this revision.
    FollowLeft(Revision),
    /// Stop reading the look-ups that were left in NATS.
    LeaveLeft,
    /// Forget all jobs and requests, and read the changes after this revision.
    Restart(Revision),
}

/// Whether the term continues after a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Term {
    /// The term continues.
    GoesOn,
    /// Another replica has the control record.
    Lost,
}

/// One term of a projector: from taking the control record until it is lost or released.
pub(crate) struct Projection {
    setup: Setup,
    tuning: Tuning,
    schedule: Schedule,
    held: Lease,
    unsettled: Unsettled,
    /// Whether look-ups that were left in NATS are being read.
    following: bool,
    /// Changes of look-ups that were left in NATS, read and not taken in yet.
    left: VecDeque<Change>,
    /// When tasks were last written, if `minWriteInterval` is long.
    rests: Rests,
    /// Changes beyond the revision that the control record allows.
    ahead: VecDeque<Change>,
    /// The last revision that was read, whether or not it was taken in.
    read: Revision,
    /// Settled records that wait for their time to live, behind those that are getting it.
    to_expire: VecDeque<(TaskId, Known)>,
    expiring: bool,
    /// The number of tasks that are being read after their doubt.
    reading: usize,
    /// Whether tasks that waited in NATS are being read.
    reading_deferred: bool,
    renewing: bool,
    renew_at: Instant,
    /// The open request of a command for a part of the budget.
    asked: Option<LoanRequest>,
    behind: u64,
    lag: Lag,
    progress: Progress,
    /// The number of keys that KV has answered for.
    answered: u64,
    /// When to check the next time whether the projector makes progress.
    look_at: Instant,
    actions: VecDeque<Action>,
}

/// A tenth of the budget, the part for reads of KV.
pub(crate) fn tenth(budget: RequestBudget) -> RequestBudget {
    let requests = NonZeroU32::new(budget.requests.get() / 10).unwrap_or(NonZeroU32::MIN);
    RequestBudget { requests, ..budget }
}

impl Projection {
    pub(crate) fn new(
        setup: Setup,
        tuning: Tuning,
        mut schedule: Schedule,
        rests: Rests,
        held: Lease,
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

    /// The parts that continue after a term.
    pub(crate) fn into_parts(self) -> (Schedule, Rests) {
        (self.schedule, self.rests)
    }

    /// Does everything that is due, and sends what can be sent, unless it is stopping.
    pub(crate) fn turn(&mut self, stopping: bool, now: Instant) {
        self.schedule.wake(now);
        self.read_doubtful_again(now);
        self.read_deferred(now);
        self.follow_left();
        self.take_in_left(now);
        self.expire();
        // A replica that drains does not renew once nothing is in flight. With a slow NATS the next
        // renewal would always be due, and the replica would never leave.
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

    /// The next action for the driver.
    pub(crate) fn action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns whether nothing is in progress that must end before the control record is released.
    pub(crate) fn may_leave(&self) -> bool {
        self.schedule.in_flight() == 0 && !self.renewing
    }

    /// Returns whether there is room for changes of the ledger.
    pub(crate) fn wants_changes(&self) -> bool {
        self.unsettled.has_room() && self.ahead.is_empty()
    }

    /// Adds the next changes of the ledger.
    pub(crate) fn changes(&mut self, changes: impl IntoIterator<Item = Change>, now: Instant) {
        self.ahead.extend(changes);
        self.take_in_what_may_be(now);
    }

    /// Applies changed settings. Tasks that wait for a retry wait no longer than under the new
    /// settings.
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
        self.schedule.writes.bring_forward(latest);
        self.schedule.reads.bring_forward(latest);
        self.unsettled.bring_forward(Why::Rest, written);
        self.unsettled.bring_forward(Why::Retry, now + longest_delay(&tuning, dice));
        self.tuning = tuning;
    }

    /// When to take the next turn if nothing happens before.
    pub(crate) fn next_wake(&self, stopping: bool, now: Instant) -> Instant {
        let renew = if self.renewing { None } else { Some(self.renew_at) };
        let soon = now + PAUSE;
        // Without room for due tasks, only an answer makes room.
        let due = self.unsettled.next_due().filter(|_| self.may_read_again());
        let deferred = self.unsettled.next_deferred().filter(|_| self.may_read_deferred());
        // Due tasks that may not be sent wait for a renewal, which wakes the driver. As a reason to wake they would keep the driver
        // from sleeping.
        let send = self.schedule.next_wake().filter(|_| !stopping && self.may_send(now));
        [renew, send, due, deferred].into_iter().flatten().fold(soon, Instant::min)
    }

    /// Takes in the changes that the control record allows. If the allowance is nearly used up,
    /// renews the record at once, so that nothing waits for it.
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
        // This projector wrote the change itself: it gave a settled record its time to live, with
        // nothing in between.
        if known.record.expires_by.as_ref().is_some_and(|by| *by == self.settler()) {
            self.unsettled.passed(&id, known.revision);
            return;
        }
        let rests_until = self.rests_long_until(&id, now);
        if self.unsettled.read(&id, known, rests_until, now) == Taken::In {
            self.route(&id, now);
        }
    }

    /// Returns whether tasks may be read again, however many there are. Only this makes them fewer.
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

    /// Adds the result of a job.
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
            // The feed brings the change when there is room. Then nothing waits for the old record
            // any more.
            Done::Joined(id, Ok(Some(replaced))) => self.unsettled.settle(&id, replaced),
            // Another replica was first, and its change comes too; or the record is gone.
            Done::Joined(id, Ok(None)) => self.read(vec![id]),
            Done::ReadAt(due, found) => self.was_read_at(due, found, now),
            Done::Joined(id, Err(_)) => self.route(&id, now),
            Done::Read(ids, Ok(mut known)) => {
                self.reading -= ids.len();
                for id in ids {
                    match known.remove(&id) {
                        // The task has changed meanwhile, beyond the revision that may be sent yet.
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
                                // The server that answered is behind.
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

    /// Updates the metrics.
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
