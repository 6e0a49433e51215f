//! The projector of mode `Durable`: one replica at a time brings KV to what the ledger says. That it is the only
//! one cannot be promised; that KV ends up as the ledger says does not depend on it.
//!
//! Here the parts meet the clock and the network: the [`Feed`] of changes, [`Unsettled`] that knows what is
//! settled, [`Dispatch`] that decides what is sent when, and the control record with its [`Holder`].

mod waiting;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State as NatsState;
use async_nats::jetstream::Context;
use taskpipeline_contract::{Task, TaskId, TaskKey};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{enabled, error, info, warn};

use super::bucket::Revision;
use super::cache::Known;
use super::control::{MAY_SEND, RENEWAL};
use super::crash;
use super::dead_letters::DeadLetters;
use super::deferred::{IdHash, Why};
use super::feed::{Change, Feed};
use super::holder::{Held, Holder, Renewal, now};
use super::lag::Lag;
use super::ledger::{Ledger, LedgerError};
use super::loan::Asked;
use super::names::Names;
use super::progress::{Course, Progress, Signs, Stall};
use super::record::{Due, Record, Settler};
use super::rests::Rests;
use super::shares::Share;
use super::unsettled::{Landed, Taken, Unsettled};
use super::{deadline, stopped};
use crate::config::Tuning;
use crate::kv::{Budget, BulkApi, Failure, Puts, RequestBudget};
use crate::pipeline::dead_letters::{Letter, Reason};
use crate::pipeline::projector::{Answered, Batch, Dispatch, Request, Verdict, delay_after, longest_delay};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::{Metrics, Operation};

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

/// How often it is looked whether the projector moves.
const LOOK: Duration = Duration::from_secs(1);

/// How long a replica that has stalled leaves the control record to others.
const AFTER_A_STALL: Duration = Duration::from_secs(10);

/// How many records are given their time to live at a time: thousands of deletes land at once.
const EXPIRE: usize = 1_000;

/// How often a record is tried to be given its time to live, before it is left in the ledger for good.
const EXPIRE_TRIES: usize = 5;

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

    /// Looks whether it moves, and says so if it does not. Answers whether another should try.
    fn has_given_up(&mut self) -> bool {
        let now = Instant::now();
        if now < self.look_at {
            return false;
        }
        self.look_at = now + LOOK;
        let broken = self.feed.broken().or_else(|| self.second.as_ref().and_then(Feed::broken));
        let connection = self.parts.jetstream.client().connection_state();
        let signs = Signs {
            position: (self.read, self.unsettled.settled(), self.answered),
            may_work: connection == NatsState::Connected && self.may_send(),
            unread: broken.is_some(),
            waits: self.dispatch.has_ready() || !self.unsettled.has_room_for(Share::Write),
            excused: self.dispatch.is_excused(now),
        };
        let (stall, gives_up) = match self.progress.see(&signs, now) {
            Course::Well => {
                self.parts.health.set_stalled(None);
                return false;
            }
            Course::Stalled(stall) => (stall, false),
            Course::GivesUp(stall) => (stall, true),
        };
        let why = match (stall, broken) {
            (Stall::Unread, Some(broken)) => format!(
                "the ledger's changes cannot be read: {broken}. Check the limits and permissions of the NATS account"
            ),
            _ => "changes wait and none is written, for no known reason. Please report this as a bug"
                .to_owned(),
        };
        if self.parts.health.stalled().as_deref() != Some(&*why) {
            error!(reason = why, "the projector does not move");
        }
        if gives_up {
            self.parts.metrics.projector_stalls.inc();
            error!("gave up writing to KV, for another replica to try");
        }
        self.parts.health.set_stalled(Some(why));
        gives_up
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

    /// Whether this replica can be sure enough that no other projects.
    fn may_send(&self) -> bool {
        self.held.since.elapsed() < MAY_SEND
    }

    fn next_wake(&self) -> Instant {
        let renew = if self.renewing { None } else { Some(self.renew_at) };
        let soon = Instant::now() + PAUSE;
        // Where there is no room for what is due, an answer makes it.
        let due = self.unsettled.next_due().filter(|_| self.may_read_again());
        let deferred = self.unsettled.next_deferred().filter(|_| self.may_read_deferred());
        [renew, self.dispatch.next_wake(), due, deferred].into_iter().flatten().fold(soon, Instant::min)
    }

    fn renew(&mut self) {
        if self.renewing || Instant::now() < self.renew_at {
            return;
        }
        self.renewing = true;
        let (holder, held, settled, read) = (
            self.parts.holder.clone(),
            self.held.clone(),
            self.unsettled.known_settled(Instant::now()),
            self.read,
        );
        self.beside.spawn(async move {
            let renewal = holder.renew(held, settled, read).await;
            Done::Renewed(renewal, holder.asked().await)
        });
    }

    /// Answers whether the record is lost.
    fn renewed(&mut self, renewal: Renewal) -> bool {
        match renewal {
            Renewal::Held(held) => {
                self.renew_at = held.since + RENEWAL;
                self.held = held;
                self.take_in_what_may_be();
            }
            Renewal::Restarted(held) => {
                warn!("a former holder has handed over what came after change {}", held.control.settled.0);
                let (settled, now) = (held.control.settled, Instant::now());
                self.unsettled = Unsettled::new(settled, held.doubt, self.parts.settle_after, now);
                self.feed = feed(&self.parts, settled);
                self.second = None;
                self.left.clear();
                self.ahead.clear();
                self.read = settled;
                self.dispatch.restart();
                self.beside = JoinSet::new();
                self.to_expire.clear();
                (self.expiring, self.reading, self.reading_deferred) = (false, 0, false);
                self.renew_at = held.since + RENEWAL;
                self.held = held;
            }
            Renewal::Lost => return true,
            Renewal::Unknown(what) => {
                warn!("that this replica writes to KV cannot be recorded: {what}");
                self.renew_at = Instant::now() + RENEW_AGAIN;
            }
        }
        false
    }

    /// What a command has asked for comes before the next request.
    fn lend(&mut self) {
        let Some(asked) = self.asked.take() else { return };
        match self.dispatch.lend(asked.loan.wanted) {
            0 => self.asked = Some(asked),
            requests => {
                let holder = self.parts.holder.clone();
                self.beside.spawn(async move {
                    holder.grant(asked, requests).await;
                    Done::Lent
                });
            }
        }
    }

    async fn release(&mut self) {
        let clean = self.dispatch.in_flight() == 0 && self.unsettled.is_clean(Instant::now());
        let spare = self.dispatch.spare();
        let settled = self.unsettled.known_settled(Instant::now());
        self.parts.holder.release(self.held.clone(), settled, clean, spare).await;
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

    /// Queues a task for what has to be done about it.
    fn route(&mut self, id: &TaskId) {
        let Some(record) = self.unsettled.record(id) else { return };
        match record.due(id) {
            Due::Put(_) | Due::Delete => {
                if self.dispatch.reads.contains(id) {
                    // The read is not needed any more, and its failed attempts are not the write's.
                    self.dispatch.reads.withdraw(id);
                    self.unsettled.forgive(id);
                }
                self.mark_write(id);
            }
            Due::LookUp => {
                self.dispatch.writes.withdraw(id);
                self.dispatch.reads.mark(id);
                self.unsettled.wait_for(id, Share::LookUp);
            }
            Due::Nothing => {
                self.dispatch.reads.withdraw(id);
                self.dispatch.writes.withdraw(id);
                if !self.dispatch.writes.is_in_flight(id) {
                    self.unsettled.ended(id);
                    self.finish(id);
                }
            }
        }
    }

    fn send_what_can_be_sent(&mut self) {
        while let Some(batch) = self.dispatch.next_batch(self.unsettled.has_room()) {
            match batch {
                Batch::Write(ids) => self.send_write(ids),
                Batch::Read(ids) => {
                    ids.iter().for_each(|id| self.announce(Operation::Get, id));
                    self.dispatch.send(Request::Get(ids));
                }
            }
        }
    }

    /// Takes the values now, at the last moment, and sends puts; what is to be deleted waits for others like it,
    /// unless there is nothing else.
    fn send_write(&mut self, mut ids: Vec<TaskId>) {
        let mut puts = Puts::default();
        let mut gone = Vec::new();
        while !ids.is_empty() {
            for id in ids {
                match self.unsettled.record(&id).map(|record| record.due(&id)) {
                    Some(Due::Put(task)) => puts.push(&task),
                    Some(Due::Delete) => gone.push(id),
                    // Nothing is ever deleted because nothing is known of it.
                    _ => self.dispatch.writes.settle(&id, Instant::now()),
                }
            }
            let room = if puts.is_empty() { 0 } else { self.dispatch.room_beside(puts.ids().len()) };
            ids = self.dispatch.more(room);
        }
        if !puts.is_empty() {
            for id in puts.ids() {
                self.unsettled.sent(id);
                self.announce(Operation::Put, id);
            }
            self.dispatch.delete_soon(gone);
            crash::point("sending");
            self.dispatch.send(Request::Put(puts));
        } else if !gone.is_empty() {
            for id in &gone {
                self.unsettled.sent(id);
                self.announce(Operation::Delete, id);
            }
            crash::point("sending");
            self.dispatch.send(Request::Delete(gone));
        }
    }

    fn announce(&self, operation: Operation, id: &TaskId) {
        if !enabled!(tracing::Level::INFO) {
            return;
        }
        let (key, verb) = (TaskKey::new(id.clone()), operation.verb());
        let (attempt, most) = (self.unsettled.attempts(id) + 1, self.parts.tuning.retry.max_attempts);
        let correlation_id = self.correlation_id(id);
        info!(correlation_id, %key, "{verb} {key}");
        info!(correlation_id, %key, attempt, "Attempt {attempt}/{most}");
    }

    fn correlation_id(&self, id: &TaskId) -> &str {
        self.unsettled.record(id).map_or("", |record| record.last.value.correlation_id.as_str())
    }

    fn settle(&mut self, answered: Answered) {
        crash::point("answered");
        let Answered { operation, sent, verdicts } = answered;
        self.answered += u64::try_from(verdicts.len()).unwrap_or(0);
        // One moment for all, so that what was written together rests together.
        let (dice, now) = (rand::random(), Instant::now());
        let rested = now + self.parts.tuning.min_write_interval;
        for (id, verdict) in verdicts {
            match verdict {
                Verdict::Landed => self.landed(operation, &id, sent, rested, now),
                Verdict::Read(value) => self.learned(&id, value.as_deref()),
                Verdict::TryAgain { failure, .. } if operation == Operation::Get => {
                    let Some(attempt) = self.unsettled.look_up_failed(&id) else {
                        // It is written meanwhile.
                        self.dispatch.reads.settle(&id, now);
                        continue;
                    };
                    let at = self.failed(&id, &failure, attempt, dice);
                    self.dispatch.reads.retry(&id, at);
                }
                Verdict::TryAgain { failure, in_doubt, named } => {
                    let attempt = self.unsettled.failed(&id, in_doubt, now);
                    let at = self.failed(&id, &failure, attempt, dice);
                    if named {
                        self.retry_later(&id, at);
                    } else {
                        self.dispatch.queue(operation).retry(&id, at);
                    }
                }
                Verdict::Refused(what) => {
                    // Nothing of it was written.
                    self.dispatch.writes.settle(&id, now);
                    self.bury(&id, Reason::RefusedByKv, &what);
                }
                Verdict::Unexplained(what) => {
                    let delay = self.dispatch.wait_refused(operation, &id, &self.parts.tuning, dice);
                    let (correlation_id, seconds) = (self.correlation_id(&id), delay.as_secs_f64());
                    warn!(correlation_id, "Refused, which proves nothing: {what}; next in {seconds:.1} s");
                }
            }
        }
        crash::point("settled");
    }

    fn landed(&mut self, operation: Operation, id: &TaskId, sent: Instant, rested: Instant, now: Instant) {
        if let Some(record) = self.unsettled.record(id) {
            self.parts.metrics.landed(age(record));
            if enabled!(tracing::Level::INFO) {
                let (key, correlation_id) = (TaskKey::new(id.clone()), self.correlation_id(id));
                info!(correlation_id, %key, "{} {key} successful", operation.verb());
            }
        }
        let landed = self.unsettled.landed(id, sent);
        self.rest_after(id, &landed, rested, now);
        if landed == Landed::Settled {
            self.finish(id);
        }
    }

    /// Nothing is left to be done in KV: a record that says nothing but that there is no task may expire.
    fn finish(&mut self, id: &TaskId) {
        let Some(known) = self.unsettled.known(id) else { return };
        let revision = known.revision;
        let lives_on = matches!(known.record.due(id), Due::Put(_));
        if self.parts.memory.is_none() || lives_on || known.record.expires_by.is_some() {
            self.unsettled.settle(id, revision);
            return;
        }
        self.to_expire.push_back((id.clone(), known));
    }

    /// Who this projector is in the records that it lets expire.
    fn settler(&self) -> Settler {
        Settler::Of { target: self.parts.holder.target.clone(), term: self.held.control.term }
    }

    /// Gives the next settled records their time to live.
    fn expire(&mut self) {
        let Some(memory) = self.parts.memory.filter(|_| !self.expiring && !self.to_expire.is_empty()) else {
            return;
        };
        let memory = self.held.time_to_live(memory);
        self.expiring = true;
        let mut records: Vec<_> = self.to_expire.drain(..self.to_expire.len().min(EXPIRE)).collect();
        let (ledger, settler) = (Arc::clone(&self.parts.ledger), self.settler());
        self.beside.spawn(async move {
            let expired = records.iter().map(|(id, known)| (id.clone(), known.revision)).collect();
            for _ in 0..EXPIRE_TRIES {
                let (left, error) = ledger.expire(records, &settler, memory).await;
                let Some(error) = error else { break };
                warn!(
                    "the records of {} deleted tasks cannot be given their time to live: {error}",
                    left.len()
                );
                tokio::time::sleep(PAUSE).await;
                records = left;
            }
            Done::Expired(expired)
        });
    }

    /// KV has said what it knows of a task that updates are waiting for.
    fn learned(&mut self, id: &TaskId, value: Option<&str>) {
        crash::point("looked-up");
        self.dispatch.reads.settle(id, Instant::now());
        self.unsettled.forgive(id);
        let known = match value.map(serde_json::from_str::<Task>) {
            Some(Ok(task)) => Some(task),
            None => None,
            Some(Err(error)) => {
                let detail = format!("the value of tasks:{id} in KV is not a task: {error}");
                return self.bury(id, Reason::UnreadableInKv, &detail);
            }
        };
        self.join(id, known, None);
    }

    /// Records what KV knew, after the letter that tells what is lost by it.
    fn join(&mut self, id: &TaskId, known: Option<Task>, letter: Option<Letter>) {
        let (ledger, letters, id) = (Arc::clone(&self.parts.ledger), self.parts.letters.clone(), id.clone());
        let (metrics, correlation_id) =
            (Arc::clone(&self.parts.metrics), self.correlation_id(&id).to_owned());
        self.beside.spawn(async move {
            if let Some(letter) = letter {
                store(&letters, &letter).await;
            }
            let recorded = ledger.join(&id, known.as_ref()).await;
            crash::point("joined");
            match &recorded {
                Ok(Some(_)) if known.is_none() => {
                    metrics.updates_unknown.inc();
                    warn!(correlation_id, "The task tasks:{id} does not exist; its update changes nothing");
                }
                Ok(_) => {}
                Err(error) => {
                    warn!("what KV knows of tasks:{id} cannot be recorded: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Done::Joined(id, recorded)
        });
    }

    /// A task that KV does not take, or whose value in KV is none, becomes a dead letter.
    fn bury(&mut self, id: &TaskId, reason: Reason, detail: &str) {
        let attempts = self.unsettled.attempts(id);
        let Some(known) = self.unsettled.known(id) else { return };
        if reason == Reason::RefusedByKv {
            self.unsettled.refused(id);
            if !self.unsettled.has_room_for(Share::Letter) {
                let dice = rand::random();
                let later = Instant::now() + longest_delay(&self.parts.tuning, dice);
                return self.unsettled.defer(id, later, Why::Retry);
            }
            self.unsettled.wait_for(id, Share::Letter);
        }
        warn!(correlation_id = self.correlation_id(id), "Dead letter ({}): {detail}", reason.as_str());
        let letter = Letter::of_task(&self.parts.names, id, &known, reason, detail, attempts.max(1));
        if reason == Reason::UnreadableInKv {
            return self.join(id, None, Some(letter));
        }
        let (letters, id, revision) = (self.parts.letters.clone(), id.clone(), known.revision);
        self.beside.spawn(async move {
            store(&letters, &letter).await;
            Done::Buried(id, revision)
        });
    }

    /// One more failed attempt. Answers when the next one is due. When they are used up the task waits for
    /// the longest delay, and they are counted anew: nothing is given up.
    fn failed(&mut self, id: &TaskId, failure: &Failure, attempt: u32, dice: f64) -> Instant {
        let tuning = &self.parts.tuning;
        let most = tuning.retry.max_attempts;
        let used_up = delay_after(tuning, attempt, failure, dice).is_none();
        let delay =
            delay_after(tuning, attempt, failure, dice).unwrap_or_else(|| longest_delay(tuning, dice));
        let (correlation_id, seconds) = (self.correlation_id(id), delay.as_secs_f64());
        warn!(correlation_id, attempt, "Attempt {attempt}/{most} failed: {failure}; next in {seconds:.1} s");
        self.parts.metrics.retries.inc();
        if used_up {
            self.parts.metrics.attempts_used_up.inc();
            self.unsettled.forgive(id);
        }
        Instant::now() + delay
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
    Feed::after(after, parts.jetstream.clone(), Arc::clone(&parts.names), parts.connections.clone())
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

/// Stores a letter, however long it takes: what it tells of is settled only then.
async fn store(letters: &DeadLetters, letter: &Letter) {
    while let Err(error) = letters.store(letter).await {
        warn!("{error}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// How long ago the stream took in the event that changed the task last.
fn age(record: &Record) -> Duration {
    let at = record.last.value.at.to_unix_millis();
    Duration::from_millis(u64::try_from(now().saturating_sub(at)).unwrap_or(0))
}
