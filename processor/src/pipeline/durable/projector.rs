//! The projector of mode `Durable`: one replica at a time brings KV to what the ledger says. That it is the only
//! one cannot be promised; that KV ends up as the ledger says does not depend on it.
//!
//! Here the parts meet the clock and the network: the [`Feed`] of changes, [`Unsettled`] that knows what is
//! settled, [`Dispatch`] that decides what is sent when, and the control record with its [`Holder`].

mod answers;
mod sending;
mod term;
mod waiting;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use taskpipeline_contract::TaskId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, warn};

use super::bucket::Revision;
use super::cache::Known;
use super::control::RENEWAL;
use super::dead_letters::DeadLetters;
use super::deferred::{IdHash, Why};
use super::feed::{Change, Feed};
use super::holder::{Held, Holder, Renewal};
use super::lag::Lag;
use super::ledger::{Ledger, LedgerError};
use super::loan::Asked;
use super::names::Names;
use super::progress::Progress;
use super::rests::Rests;
use super::unsettled::{Landed, Taken, Unsettled};
use super::{deadline, stopped};
use crate::config::Tuning;
use crate::kv::{Budget, BulkApi, RequestBudget};
use crate::pipeline::projector::{Dispatch, longest_delay};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

use self::waiting::{FoundAt, next_left};

/// How many changes are taken in between two looks at what can be sent.
const TAKE_IN: usize = 256;

/// How many tasks are read again with one request when their doubt is over.
const READ_AGAIN: usize = 500;

/// How many are being read again at a time: what the answers hold counts only when they are there.
const MOST_READING: usize = 4 * READ_AGAIN;

/// The pause before something that NATS did not take is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// How soon a renewal that NATS did not confirm is tried again.
const RENEW_AGAIN: Duration = Duration::from_millis(200);

/// How long a replica that has stalled leaves the control record to others.
const AFTER_A_STALL: Duration = Duration::from_secs(10);

/// What the projector of a replica needs, whether or not it is its turn.
pub(super) struct Parts<K> {
    pub(super) kv: K,
    pub(super) tuning: Tuning,
    /// The settings as they are changed.
    pub(super) changes: watch::Receiver<Tuning>,
    pub(super) settle_after: Duration,
    /// How long a settled record lives that says nothing but that there is no task; for ever, if nothing.
    pub(super) memory: Option<Duration>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) holder: Holder,
    pub(super) letters: DeadLetters,
    pub(super) names: Arc<Names>,
    pub(super) jetstream: Context,
    pub(super) connections: watch::Receiver<u64>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
}

/// See the module's head.
pub(super) struct Projector<K> {
    parts: Parts<K>,
    dispatch: Dispatch<K>,
    held: Held,
    unsettled: Unsettled,
    feed: Feed,
    /// Reads the look-ups that were left in NATS, where there are any.
    second: Option<Feed>,
    /// What that one has read, as far as it was not taken in.
    left: VecDeque<Change>,
    /// When tasks were written, where they rest for long.
    rests: Rests,
    /// Changes that may be taken in when the control record says so.
    ahead: VecDeque<Change>,
    /// The latest revision that was read, whether or not it was taken in.
    read: Revision,
    /// What is done beside: reads and writes of the ledger, dead letters, the renewal.
    beside: JoinSet<Done>,
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
}

/// What was done beside.
enum Done {
    /// And what a command asks for.
    Renewed(Renewal, Option<Asked>),
    /// Requests were lent to a command.
    Lent,
    /// These records were given their time to live, or need not be.
    Expired(Vec<(TaskId, Revision)>),
    /// What KV knew of a task is recorded, in place of this revision; or it was no news; or it could not be.
    Joined(TaskId, Result<Option<Revision>, LedgerError>),
    /// These were read again.
    Read(Vec<TaskId>, Result<HashMap<TaskId, Known>, LedgerError>),
    /// The records of tasks that waited in NATS were read.
    ReadAt(Vec<(IdHash, Revision)>, FoundAt),
    /// A task that KV refuses is a dead letter now.
    Buried(TaskId, Revision),
}

/// How a term ends.
enum Ended {
    Drained,
    Lost,
    /// It did not move though work waited.
    Stalled,
}

/// Projects whenever it is this replica's turn, until `stop` names the moment by which it has to end.
pub(super) async fn run<K: BulkApi>(parts: Parts<K>, mut stop: watch::Receiver<Option<Instant>>) {
    let reads = Budget::new(tenth(parts.tuning.request_budget), Instant::now());
    let mut dispatch = Dispatch::new(
        parts.kv.clone(),
        &parts.tuning,
        reads,
        Arc::clone(&parts.metrics),
        Arc::clone(&parts.health),
    );
    let mut parts = parts;
    let mut rests = Rests::new(Instant::now());
    loop {
        let Some(held) = parts.holder.acquire(&mut stop).await else { return };
        parts.metrics.projector_active.set(1);
        let mut projector = Projector::new(parts, dispatch, rests, held);
        projector.retune();
        let ended = projector.project(&mut stop).await;
        projector.parts.metrics.projector_active.set(0);
        projector.parts.metrics.unsettled_tasks.set(0);
        projector.parts.metrics.deferred_tasks.set(0);
        projector.parts.metrics.changes_behind.set(0);
        projector.parts.metrics.oldest_change_age.set(0.0);
        match ended {
            Ended::Drained => return,
            Ended::Lost => {}
            Ended::Stalled => {
                projector.dispatch.abort();
                projector.release().await;
                // What they lack may be there in a moment: they must not take it while nobody reads them.
                drop((projector.feed, projector.second));
                (parts, dispatch, rests) = (projector.parts, projector.dispatch, projector.rests);
                dispatch.restart();
                tokio::select! {
                    // Others go first.
                    () = tokio::time::sleep(AFTER_A_STALL) => continue,
                    () = stopped(&mut stop) => return,
                }
            }
        }
        warn!("another replica writes to KV now");
        let handover = projector.parts.holder.hand_over(&projector.held);
        tokio::select! {
            () = handover => {}
            () = deadline(&mut stop) => return,
        }
        (parts, dispatch, rests) = (projector.parts, projector.dispatch, projector.rests);
        dispatch.restart();
    }
}

/// At most a tenth of the budget goes into looking up what only KV knows.
fn tenth(budget: RequestBudget) -> RequestBudget {
    let requests = std::num::NonZeroU32::new(budget.requests.get() / 10).unwrap_or(std::num::NonZeroU32::MIN);
    RequestBudget { requests, ..budget }
}

impl<K: BulkApi> Projector<K> {
    fn new(parts: Parts<K>, mut dispatch: Dispatch<K>, rests: Rests, held: Held) -> Self {
        dispatch.resume(held.spare);
        let (settled, now) = (held.control.settled, Instant::now());
        let unsettled = Unsettled::new(settled, held.doubt, parts.settle_after, now);
        let feed = feed(&parts, settled);
        let renew_at = held.since + RENEWAL;
        Self {
            parts,
            dispatch,
            held,
            unsettled,
            feed,
            second: None,
            left: VecDeque::new(),
            rests,
            ahead: VecDeque::new(),
            read: settled,
            beside: JoinSet::new(),
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
        }
    }

    async fn project(&mut self, stop: &mut watch::Receiver<Option<Instant>>) -> Ended {
        let mut changes = Vec::with_capacity(TAKE_IN);
        let mut left = Vec::new();
        let mut stopping = false;
        let mut until = stop.clone();
        let mut out_of_time = Box::pin(async move { deadline(&mut until).await });
        loop {
            self.dispatch.wake();
            self.read_doubtful_again();
            self.read_deferred();
            self.follow_left();
            self.take_in_left();
            self.expire();
            self.renew();
            if stopping && self.dispatch.in_flight() == 0 && !self.renewing {
                self.release().await;
                return Ended::Drained;
            }
            if !stopping && self.may_send() {
                self.lend();
                self.send_what_can_be_sent();
            }
            if !stopping && self.has_given_up() {
                return Ended::Stalled;
            }
            self.show();
            let wake_at = self.next_wake();
            tokio::select! {
                () = self.feed.next(&mut changes, TAKE_IN),
                    if !stopping && self.unsettled.has_room() && self.ahead.is_empty() =>
                {
                    self.ahead.extend(changes.drain(..));
                    self.take_in_what_may_be();
                }
                () = next_left(&mut self.second, &mut left, TAKE_IN), if !stopping && self.may_read_left() => {
                    self.left.extend(left.drain(..));
                    self.take_in_left();
                }
                Some(answer) = self.dispatch.answer() => match answer {
                    Ok(answered) => self.settle(answered),
                    Err(error) => {
                        error!("a request to KV fell over: {error}");
                        return Ended::Lost;
                    }
                },
                Some(done) = self.beside.join_next() => match done {
                    Ok(Done::Renewed(renewal, asked)) => {
                        self.renewing = false;
                        self.asked = asked;
                        if self.renewed(renewal) {
                            return Ended::Lost;
                        }
                    }
                    Ok(done) => self.note(done),
                    Err(error) => {
                        error!("a part of the projector fell over: {error}");
                        return Ended::Lost;
                    }
                },
                Ok(()) = self.parts.changes.changed() => self.retune(),
                () = tokio::time::sleep_until(wake_at) => {}
                () = stopped(stop), if !stopping => stopping = true,
                () = &mut out_of_time => {
                    self.dispatch.abort();
                    self.release().await;
                    return Ended::Drained;
                }
            }
        }
    }

    /// The settings have changed. What waits to be tried again waits no longer than it would under the new ones.
    fn retune(&mut self) {
        let tuning = self.parts.changes.borrow_and_update().clone();
        self.dispatch.retune(&tuning, tenth(tuning.request_budget));
        let (now, dice) = (Instant::now(), rand::random());
        let written = now + tuning.min_write_interval;
        let unsettled = &self.unsettled;
        let latest = |id: &TaskId, failed: bool| {
            let attempts = unsettled.attempts(id);
            let delay = tuning.retry.delay_after(attempts, dice).filter(|_| attempts > 0);
            if failed { now + delay.unwrap_or_else(|| longest_delay(&tuning, dice)) } else { written }
        };
        self.dispatch.writes.hasten(latest);
        self.dispatch.reads.hasten(latest);
        self.unsettled.hasten(Why::Rest, written);
        self.unsettled.hasten(Why::Retry, now + longest_delay(&tuning, dice));
        self.parts.tuning = tuning;
    }

    fn next_wake(&self) -> Instant {
        let renew = if self.renewing { None } else { Some(self.renew_at) };
        let soon = Instant::now() + PAUSE;
        // Where there is no room for what is due, an answer makes it.
        let due = self.unsettled.next_due().filter(|_| self.may_read_again());
        let deferred = self.unsettled.next_deferred().filter(|_| self.may_read_deferred());
        [renew, self.dispatch.next_wake(), due, deferred].into_iter().flatten().fold(soon, Instant::min)
    }

    /// Takes in what was read, as far as the control record says that it is. When that is soon used up it is renewed
    /// at once, so that nobody waits for it.
    fn take_in_what_may_be(&mut self) {
        let reading = self.held.control.reading;
        self.read = self.ahead.back().map_or(self.read, |last| self.read.max(last.known.revision));
        while self.ahead.front().is_some_and(|change| change.known.revision <= reading) {
            let Some(change) = self.ahead.pop_front() else { break };
            self.take_in(change);
        }
        if !reading.is_far_ahead_of(self.read) {
            self.renew_at = self.renew_at.min(Instant::now());
        }
    }

    fn take_in(&mut self, change: Change) {
        let Change { id, known, behind } = change;
        self.behind = behind;
        // Our own doing: it was settled before it was given its time to live, and nothing came between.
        if known.record.expires_by.as_ref().is_some_and(|by| *by == self.settler()) {
            self.unsettled.passed(&id, known.revision);
            return;
        }
        let now = Instant::now();
        let rests_until = self.rests_long_until(&id, now);
        if self.unsettled.read(&id, known, rests_until, now) == Taken::In {
            self.route(&id);
        }
    }

    /// However many tasks there are: only by being read again do they get fewer.
    fn may_read_again(&self) -> bool {
        self.unsettled.has_room_to_come_back() && self.reading < MOST_READING
    }

    fn read_doubtful_again(&mut self) {
        if !self.may_read_again() {
            return;
        }
        let ids = self.unsettled.take_doubtful(READ_AGAIN, Instant::now());
        if ids.is_empty() {
            return;
        }
        self.read(ids);
    }

    fn read(&mut self, ids: Vec<TaskId>) {
        let ledger = Arc::clone(&self.parts.ledger);
        self.reading += ids.len();
        self.beside.spawn(async move {
            let known = read_surely(&ledger, &ids).await;
            Done::Read(ids, known)
        });
    }

    fn note(&mut self, done: Done) {
        match done {
            Done::Renewed(..) | Done::Lent => {}
            Done::Expired(expired) => {
                self.expiring = false;
                expired.iter().for_each(|(id, revision)| self.unsettled.settle(id, *revision));
            }
            Done::Buried(id, revision) => self.unsettled.buried(&id, revision, Instant::now()),
            // The change comes by the feed, when there is room for it; what waited for it need not wait here.
            Done::Joined(id, Ok(Some(replaced))) => self.unsettled.settle(&id, replaced),
            // Another was first, and its change comes too; or the record is gone.
            Done::Joined(id, Ok(None)) => self.read(vec![id]),
            Done::ReadAt(due, found) => self.was_read_at(due, found),
            Done::Joined(id, Err(_)) => self.route(&id),
            Done::Read(ids, Ok(mut known)) => {
                self.reading -= ids.len();
                for id in ids {
                    match known.remove(&id) {
                        // Changed meanwhile, and later than may be sent yet.
                        Some(known) if known.revision > self.held.control.reading => {
                            self.read = self.read.max(known.revision);
                            self.renew_at = self.renew_at.min(Instant::now());
                            self.unsettled.give_back(vec![id], Instant::now() + RENEW_AGAIN);
                        }
                        Some(known) => {
                            self.unsettled.read_again(&id, known);
                            if self.unsettled.record(&id).is_some() {
                                self.route(&id);
                            } else {
                                // A replica of the stream has answered that is behind.
                                self.unsettled.give_back(vec![id], Instant::now() + RENEW_AGAIN);
                            }
                        }
                        None => self.unsettled.settle(&id, Revision(u64::MAX)),
                    }
                }
            }
            Done::Read(ids, Err(error)) => {
                self.reading -= ids.len();
                warn!("{} tasks cannot be read again: {error}", ids.len());
                self.unsettled.give_back(ids, Instant::now() + PAUSE);
            }
        }
    }

    fn show(&mut self) {
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let metrics = &self.parts.metrics;
        metrics.unsettled_tasks.set(i64::try_from(self.unsettled.len()).unwrap_or(i64::MAX));
        metrics.deferred_tasks.set(i64::try_from(self.unsettled.deferred()).unwrap_or(i64::MAX));
        metrics.changes_behind.set(gauge(self.behind));
        metrics.rests_forgotten.inc_by(self.rests.take_forgotten());
        let age = self.lag.see(self.read, self.unsettled.settled(), Instant::now());
        metrics.oldest_change_age.set(age.as_secs_f64());
        self.dispatch.show();
    }
}

fn feed<K>(parts: &Parts<K>, after: Revision) -> Feed {
    Feed::after(
        after,
        parts.jetstream.clone(),
        Arc::clone(&parts.names),
        parts.connections.clone(),
        parts.metrics.forged_answers.clone(),
    )
}

/// What the ledger holds for these tasks. That one has no record is believed only of the stream's leader:
/// another replica of the stream may be behind.
async fn read_surely(ledger: &Ledger, ids: &[TaskId]) -> Result<HashMap<TaskId, Known>, LedgerError> {
    let mut known = ledger.read(ids).await?;
    for id in ids {
        if !known.contains_key(id)
            && let Some(found) = ledger.newest(id).await?
        {
            known.insert(id.clone(), found);
        }
    }
    Ok(known)
}
