//! Ledger, control record and projectors against a model of the world, in any interleaving of what can go wrong:
//! answers that are lost, requests that land late or never, processes that are killed, stopped or cut off, two
//! projectors at a time. Pure: the model's clock, its ledger and its KV are values here; what is tested are
//! [`Unsettled`], [`Control`], [`Claimant`], [`Record`] and the key queue. [`Projector`] puts them together as
//! `projector.rs` does, with the network taken out, and has to be kept like it.
//!
//! What must hold: once the faults are over, KV is what a replay of the events says (see `fold_reference`), and
//! nothing is left in memory. Until then, as long as no former holder has sent anything, what is recorded as
//! settled is so, and nothing that is still out can undo it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use taskpipeline_contract::{CorrelationId, EventData, Task, TaskId, TaskKey};
use tokio::time::Instant;

use super::bucket::Revision;
use super::cache::Known;
use super::control::{Claim, Claimant, Control, Doubt, LEASE, MAY_SEND, RENEWAL, Settled};
use super::deferred::{IdHash, Why};
use super::names::Target;
use super::record::{Due, Record, Settler};
use super::rests::Rests;
use super::shares::{Limits, Share};
use super::unsettled::{Landed, Taken, Unsettled};
use crate::config::Tuning;
use crate::kv::{Budget, BulkApi, Failure, PutBody, RequestBudget};
use crate::pipeline::fold::Version;
use crate::pipeline::fold_reference::{Happened, at, base, data, replay};
use crate::pipeline::projector::Dispatch;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

const TASKS: usize = 3;
const REPLICAS: usize = 3;

/// Small, so that tasks wait for each other and requests overlap.
const MOST_KEYS: usize = 2;
const MOST_IN_FLIGHT: usize = 3;

const SETTLE_AFTER: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// So long that what changes again in its rest waits in NATS.
const MIN_WRITE_INTERVAL: Duration = Duration::from_secs(4);
/// As in `projector/waiting.rs`.
const SOON: Duration = Duration::from_secs(2);
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RENEW_AGAIN: Duration = Duration::from_millis(200);
/// So few that holders have to wait for their next renewal.
const READ_AHEAD: u64 = 2;
const TICK: Duration = Duration::from_millis(250);

/// The longest that a process is stopped or cut off, and that an event waits to be folded.
const LONGEST_AWAY: Duration = Duration::from_secs(20);
const MAX_AGE: Duration = Duration::from_secs(90);
const MEMORY: Duration = Duration::from_secs(100);

/// So many cases, unless `PROPTEST_CASES` says another number.
fn cases(cases: u32) -> Config {
    let asked = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() { asked } else { Config { cases, ..asked } }
}

/// The one KV namespace of the model.
fn settler(term: u64) -> Settler {
    Settler::Of { target: Target::new("http://kv"), term }
}

fn task(n: usize) -> TaskId {
    TaskId::new(format!("task-{n}")).unwrap()
}

// What has happened, and what may happen next.

/// What is true, whatever the pipeline makes of it.
#[derive(Clone, Debug)]
struct Truth {
    known_to_kv: BTreeSet<TaskId>,
    events: Vec<Happened>,
    /// What is drawn where no step says it.
    seed: u64,
}

impl Truth {
    fn expected(&self, id: &TaskId) -> Option<Task> {
        let before = self.known_to_kv.contains(id).then(|| base(id));
        let own: Vec<_> = self.events.iter().filter(|event| event.data.task_id() == id).cloned().collect();
        replay(before.as_ref(), &own)
    }
}

/// When a request takes effect whose outcome nobody will tell.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Now,
    /// After so many hundredths of the time that is left to it.
    Later(u32),
    Never,
}

#[derive(Clone, Copy, Debug)]
enum Reply {
    Landed,
    /// All but the first key.
    Partly,
    NothingDone,
    InDoubt(Fate),
}

#[derive(Clone, Debug)]
enum Step {
    /// An event enters the stream; `held`: it is folded later, after newer ones.
    Event {
        data: EventData,
        held: bool,
    },
    Fold(Index),
    FoldAgain(Index),
    /// The feed reads so many changes, and the projector takes in so many.
    Feed(usize, usize, usize),
    Send(usize),
    /// A read or write of the ledger gets on.
    Beside(usize, Index),
    Tick(usize),
    /// KV applies a request that is out, and does not answer yet.
    Apply(Index),
    Answer(Index, Reply),
    Advance(u64),
    /// `in_request`: when all that is left to do is to send it.
    Stop {
        replica: usize,
        in_request: bool,
    },
    /// `slept`: its clock stood still too.
    Continue {
        replica: usize,
        slept: bool,
    },
    CutOff(usize),
    Reconnect(usize),
    /// The next renewal is done or not, and its ack is lost.
    LoseAck {
        replica: usize,
        done: bool,
    },
    Kill(usize, Fate),
    Drain {
        replica: usize,
        patient: bool,
    },
}

impl Step {
    /// With the replica that is meant.
    fn at(mut self, which: impl Fn(usize) -> usize) -> Self {
        match &mut self {
            Self::Feed(p, ..)
            | Self::Send(p)
            | Self::Beside(p, _)
            | Self::Tick(p)
            | Self::Stop { replica: p, .. }
            | Self::Continue { replica: p, .. }
            | Self::CutOff(p)
            | Self::Reconnect(p)
            | Self::LoseAck { replica: p, .. }
            | Self::Kill(p, _)
            | Self::Drain { replica: p, .. } => *p = which(*p),
            Self::Event { .. }
            | Self::Fold(_)
            | Self::FoldAgain(_)
            | Self::Apply(_)
            | Self::Answer(..)
            | Self::Advance(_) => {}
        }
        self
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![1 => Just(Fate::Never), 1 => Just(Fate::Now), 4 => (40..=100_u32).prop_map(Fate::Later)]
}

fn step() -> BoxedStrategy<Step> {
    // One past the last is the one that projects.
    let replica = || (0..2 * REPLICAS).prop_map(|p| p.min(REPLICAS));
    let reply = prop_oneof![
        8 => Just(Reply::Landed),
        1 => Just(Reply::Partly),
        1 => Just(Reply::NothingDone),
        3 => fate().prop_map(Reply::InDoubt),
    ];
    let event = (0..TASKS).prop_flat_map(|n| data(task(n)));
    prop_oneof![
        14 => (event, proptest::bool::weighted(0.2)).prop_map(|(data, held)| Step::Event { data, held }),
        2 => any::<Index>().prop_map(Step::Fold),
        1 => any::<Index>().prop_map(Step::FoldAgain),
        14 => (replica(), 0..6_usize, 0..6_usize).prop_map(|(p, fetch, take)| Step::Feed(p, fetch, take)),
        14 => replica().prop_map(Step::Send),
        8 => (replica(), any::<Index>()).prop_map(|(p, which)| Step::Beside(p, which)),
        4 => replica().prop_map(Step::Tick),
        3 => any::<Index>().prop_map(Step::Apply),
        12 => (any::<Index>(), reply).prop_map(|(which, reply)| Step::Answer(which, reply)),
        14 => (1..16_u64).prop_map(Step::Advance),
        1 => (replica(), any::<bool>()).prop_map(|(replica, in_request)| Step::Stop { replica, in_request }),
        1 => (replica(), any::<bool>()).prop_map(|(replica, slept)| Step::Continue { replica, slept }),
        1 => replica().prop_map(Step::CutOff),
        1 => replica().prop_map(Step::Reconnect),
        1 => (replica(), any::<bool>()).prop_map(|(replica, done)| Step::LoseAck { replica, done }),
        1 => (replica(), fate()).prop_map(|(p, fate)| Step::Kill(p, fate)),
        1 => (replica(), any::<bool>()).prop_map(|(replica, patient)| Step::Drain { replica, patient }),
    ]
    .boxed()
}

impl ReferenceStateMachine for Truth {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        let known = proptest::collection::btree_set((0..TASKS).prop_map(task), 0..TASKS);
        (known, any::<u64>())
            .prop_map(|(known_to_kv, seed)| Self { known_to_kv, events: Vec::new(), seed })
            .boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        step()
    }

    fn apply(mut truth: Self, step: &Step) -> Self {
        if let Step::Event { data, .. } = step {
            let n = truth.events.len();
            let version = Version::new(1, u64::try_from(n).unwrap() + 1);
            truth.events.push(Happened { nth: n, version, at: at(n), data: data.clone() });
        }
        truth
    }
}

// The world: the bucket, KV, and what is on the way to it.

struct Entry {
    known: Known,
    expires_at: Option<Duration>,
}

/// The bucket: one sequence for the records and the control record.
#[derive(Default)]
struct Bucket {
    newest: Revision,
    records: BTreeMap<TaskId, Entry>,
    control: Option<(Control, Revision)>,
}

impl Bucket {
    fn write(&mut self, id: &TaskId, mut record: Record, expires_at: Option<Duration>) {
        self.newest.0 += 1;
        record.follows = self.records.get(id).map_or(Revision::default(), |entry| entry.known.revision);
        let known = Known { record: Arc::new(record), revision: self.newest };
        self.records.insert(id.clone(), Entry { known, expires_at });
    }

    fn fold(&mut self, event: &Happened) {
        let (id, correlation_id) = (event.data.task_id(), CorrelationId::new("c").unwrap());
        let new = Record::of(event.version, event.at, correlation_id, &event.data);
        let merged = match self.records.get(id) {
            None => new,
            Some(entry) => {
                let mut merged = Record::clone(&entry.known.record);
                if !merged.merge(&new) {
                    return;
                }
                merged
            }
        };
        self.write(id, merged, None);
    }

    fn set_control(&mut self, control: &Control, expected: Revision) -> Option<Revision> {
        let found = self.control.as_ref().map_or(Revision::default(), |(_, revision)| *revision);
        if found != expected {
            return None;
        }
        self.newest.0 += 1;
        self.control = Some((control.clone(), self.newest));
        Some(self.newest)
    }

    /// The records that still are of these revisions.
    fn at(&self, due: &[(IdHash, Revision)]) -> HashMap<Revision, (TaskId, Known)> {
        let at = |revision| {
            let (id, entry) = self.records.iter().find(|(_, entry)| entry.known.revision == revision)?;
            Some((revision, (id.clone(), entry.known.clone())))
        };
        due.iter().filter_map(|(_, revision)| at(*revision)).collect()
    }

    /// The newest changes after this revision, in their order.
    fn changes(&self, after: Revision) -> Vec<(TaskId, Known)> {
        let mut changes: Vec<_> = self
            .records
            .iter()
            .filter(|(_, entry)| entry.known.revision > after)
            .map(|(id, entry)| (id.clone(), entry.known.clone()))
            .collect();
        changes.sort_by_key(|(_, known)| known.revision);
        changes
    }
}

/// A request to KV that is out, or that nobody waits for any more.
struct Request {
    owner: u64,
    /// What it writes, with nothing for a delete.
    writes: Vec<(TaskId, Option<Task>)>,
    reads: Vec<TaskId>,
    sent: Duration,
    /// The same by its sender's clock.
    sent_at: Instant,
    applied: bool,
    /// Its sender was stopped before it could send it.
    stuck: bool,
    /// Nobody waits for it, and it takes effect then, if ever.
    lost: Option<Option<Duration>>,
}

impl Request {
    fn may_apply(&self, now: Duration) -> bool {
        !self.applied && !self.stuck && now < self.sent + SETTLE_AFTER
    }
}

struct Replica {
    uid: u64,
    clock: Instant,
    stopped: Option<Duration>,
    cut_off: Option<Duration>,
    lost_ack: Option<bool>,
    /// It has sent something as a former holder, and has not handed it over.
    spoils: bool,
    role: Role,
}

enum Role {
    Waiting { seen: Option<(Revision, Instant)> },
    Projecting(Box<Projector>),
    HandingOver(Revision),
}

impl Replica {
    fn new(uid: u64, clock: Instant) -> Self {
        let role = Role::Waiting { seen: None };
        Self { uid, clock, stopped: None, cut_off: None, lost_ack: None, spoils: false, role }
    }

    fn name(&self) -> String {
        format!("replica-{}", self.uid)
    }

    fn runs(&self) -> bool {
        self.stopped.is_none()
    }

    fn is_connected(&self) -> bool {
        self.runs() && self.cut_off.is_none()
    }
}

struct World {
    now: Duration,
    bucket: Bucket,
    kv: BTreeMap<TaskId, Task>,
    requests: Vec<Request>,
    replicas: Vec<Replica>,
    uids: u64,
    dice: u64,
    /// Events that wait to be folded, and since when.
    held: VecDeque<(Happened, Duration)>,
    /// Events that were folded, and when they entered the stream.
    folded: Vec<(Happened, Duration)>,
    /// A former holder has sent something.
    ghosts: bool,
}

// One replica's projector: `projector.rs` without the network.

/// Stands in for KV where no request is made.
#[derive(Clone)]
struct Nowhere;

impl BulkApi for Nowhere {
    async fn bulk_put(&self, _: PutBody) -> Result<HashSet<String>, Failure> {
        std::future::pending().await
    }

    async fn bulk_delete(&self, _: &[TaskKey]) -> Result<HashSet<String>, Failure> {
        std::future::pending().await
    }

    async fn bulk_get(&self, _: &[TaskKey]) -> Result<HashMap<String, Option<String>>, Failure> {
        std::future::pending().await
    }
}

/// One task of each kind may wait in memory; the next ones wait in NATS.
fn limits() -> Limits {
    let one = 1;
    Limits {
        write: 1_000_000,
        others: [
            (Share::LookUp, one),
            (Share::Rest, one),
            (Share::Retry, one),
            (Share::Doubt, one),
            (Share::Letter, one),
        ],
    }
}

/// For its two queues alone.
fn dispatch() -> Dispatch<Nowhere> {
    static SHARED: OnceLock<(Arc<Metrics>, Arc<Health>)> = OnceLock::new();
    let (metrics, health) =
        SHARED.get_or_init(|| (Arc::new(Metrics::new().unwrap()), Arc::new(Health::default())));
    let reads = Budget::new(RequestBudget::default(), Instant::now());
    Dispatch::new(Nowhere, &Tuning::default(), reads, Arc::clone(metrics), Arc::clone(health))
}

/// As `holder::Held`.
#[derive(Clone)]
struct Held {
    control: Control,
    revision: Revision,
    since: Instant,
}

/// What is done beside; first what is to be done, then what has come of it.
enum Beside {
    Renew { since: Instant, settled: Settled, reading: Revision },
    Read(Vec<TaskId>),
    WasRead(Vec<TaskId>, HashMap<TaskId, Known>),
    ReadAt(Vec<(IdHash, Revision)>),
    WasReadAt(Vec<(IdHash, Revision)>, HashMap<Revision, (TaskId, Known)>),
    Join(TaskId, Option<Task>),
    Joined(TaskId, Option<Revision>),
    Expire(TaskId, Known),
    Expired(TaskId, Revision),
}

/// The next request: what it writes, with nothing for a delete; or what it reads.
type Sending = (Vec<(TaskId, Option<Task>)>, Vec<TaskId>);

struct Projector {
    held: Held,
    unsettled: Unsettled,
    /// As far as anything was read.
    read: Revision,
    position: Revision,
    fetched: VecDeque<(TaskId, Known)>,
    /// How far the second feed has read, where there is one.
    second: Option<Revision>,
    left: VecDeque<(TaskId, Known)>,
    rests: Rests,
    reading_deferred: bool,
    dispatch: Dispatch<Nowhere>,
    set_aside: VecDeque<Vec<TaskId>>,
    beside: VecDeque<Beside>,
    renewing: bool,
    renew_at: Instant,
    stopping: bool,
}

impl Projector {
    fn new(held: Held, doubt: Option<Doubt>, now: Instant) -> Self {
        let settled = held.control.settled;
        Self {
            unsettled: Unsettled::within(&limits(), settled, doubt, SETTLE_AFTER, now),
            second: None,
            left: VecDeque::new(),
            rests: Rests::new(now),
            reading_deferred: false,
            read: settled,
            position: settled,
            fetched: VecDeque::new(),
            dispatch: dispatch(),
            set_aside: VecDeque::new(),
            beside: VecDeque::new(),
            renewing: false,
            renew_at: held.since + RENEWAL,
            stopping: false,
            held,
        }
    }

    fn fetch(&mut self, bucket: &Bucket, most: usize) {
        for (id, known) in bucket.changes(self.position).into_iter().take(most) {
            self.position = known.revision;
            self.fetched.push_back((id, known));
        }
    }

    fn take_in(&mut self, most: usize, now: Instant) {
        for _ in 0..most {
            let reading = self.held.control.reading;
            self.read = self.fetched.front().map_or(self.read, |(_, known)| self.read.max(known.revision));
            let Some((id, known)) = self.fetched.pop_front_if(|(_, known)| known.revision <= reading) else {
                self.renew_at = if self.fetched.is_empty() { self.renew_at } else { self.renew_at.min(now) };
                return;
            };
            if known.record.expires_by == Some(settler(self.held.control.term)) {
                self.unsettled.passed(&id, known.revision);
                continue;
            }
            let rests_until = self.rests_until(&id, now).filter(|until| *until > now + SOON);
            if self.unsettled.read(&id, known, rests_until, now) == Taken::In {
                self.route(&id, now);
            }
        }
    }

    /// The second feed reads so many.
    fn follow_left(&mut self, bucket: &Bucket, most: usize, now: Instant) {
        if self.second.is_none() {
            self.second = self.unsettled.left_from().map(|from| Revision(from.0 - 1));
        }
        if let Some(position) = self.second {
            for (id, known) in bucket.changes(position).into_iter().take(most) {
                self.second = Some(known.revision);
                self.left.push_back((id, known));
            }
        }
        while let Some((id, known)) = self.left.front() {
            let Some(is_ours) = self.unsettled.read_left(id, known, now) else { return };
            let (id, _) = self.left.pop_front().unwrap();
            if is_ours {
                self.route(&id, now);
            }
        }
        if self.unsettled.left_from().is_none() {
            self.second = None;
        }
    }

    fn rests_until(&self, id: &TaskId, now: Instant) -> Option<Instant> {
        let known = self.dispatch.writes.contains(id);
        self.rests.until(id, MIN_WRITE_INTERVAL, now).filter(|_| !known)
    }

    fn mark_write(&mut self, id: &TaskId, now: Instant) {
        match self.rests_until(id, now) {
            Some(until) if until > now + SOON && !self.unsettled.has_room_for(Share::Rest) => {
                self.unsettled.defer(id, until, Why::Rest);
            }
            Some(until) => {
                self.dispatch.writes.mark_resting(id, until);
                self.unsettled.wait_for(id, if until > now + SOON { Share::Rest } else { Share::Write });
            }
            None => {
                self.dispatch.writes.mark(id);
                let waits = matches!(self.unsettled.share(id), Some(Share::Rest | Share::Retry));
                if !(waits && self.dispatch.writes.is_resting(id)) {
                    self.unsettled.wait_for(id, Share::Write);
                }
            }
        }
    }

    fn retry_later(&mut self, id: &TaskId, at: Instant) {
        if self.unsettled.has_room_for(Share::Retry) {
            self.dispatch.writes.retry(id, at);
            self.unsettled.wait_for(id, Share::Retry);
        } else {
            self.dispatch.writes.forget(id);
            self.unsettled.defer(id, at, Why::Retry);
        }
    }

    fn was_read_at(
        &mut self,
        due: Vec<(IdHash, Revision)>,
        mut found: HashMap<Revision, (TaskId, Known)>,
        now: Instant,
    ) {
        self.reading_deferred = false;
        for (hash, revision) in due {
            match found.remove(&revision) {
                Some((id, known)) => {
                    if self.unsettled.found_deferred(hash, &id, known, now) {
                        self.route(&id, now);
                    }
                }
                None => self.unsettled.missed_deferred(hash, revision, now),
            }
        }
    }

    fn route(&mut self, id: &TaskId, now: Instant) {
        let Some(record) = self.unsettled.record(id) else { return };
        match record.due(id) {
            Due::Put(_) | Due::Delete => {
                if self.dispatch.reads.contains(id) {
                    self.dispatch.reads.withdraw(id);
                    self.unsettled.forgive(id);
                }
                self.mark_write(id, now);
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

    fn send(&mut self, now: Instant) -> Option<Sending> {
        let ids = match self.set_aside.pop_front() {
            Some(ids) => ids,
            None if self.dispatch.writes.ready() > 0 => self.dispatch.writes.take(MOST_KEYS),
            None if self.dispatch.reads.ready() > 0 => {
                return Some((Vec::new(), self.dispatch.reads.take(MOST_KEYS)));
            }
            None => return None,
        };
        let (mut tasks, mut gone) = (Vec::new(), Vec::new());
        for id in ids {
            match self.unsettled.record(&id).map(|record| record.due(&id)) {
                Some(Due::Put(task)) => tasks.push((id, Some(task))),
                Some(Due::Delete) => gone.push((id, None)),
                _ => self.dispatch.writes.settle(&id, now),
            }
        }
        if tasks.is_empty() {
            tasks = gone;
        } else if !gone.is_empty() {
            self.set_aside.push_front(gone.into_iter().map(|(id, _)| id).collect());
        }
        tasks.iter().for_each(|(id, _)| self.unsettled.sent(id));
        (!tasks.is_empty()).then_some((tasks, Vec::new()))
    }

    fn landed(&mut self, id: &TaskId, sent_at: Instant, now: Instant) {
        let rested = now + MIN_WRITE_INTERVAL;
        self.rests.written(id, MIN_WRITE_INTERVAL, now);
        match self.unsettled.landed(id, sent_at) {
            Landed::Changed if self.unsettled.has_room_for(Share::Rest) => {
                self.dispatch.writes.settle(id, rested);
                self.unsettled.wait_for(id, Share::Rest);
            }
            Landed::Changed => {
                self.dispatch.writes.forget(id);
                self.unsettled.defer(id, rested, Why::Rest);
            }
            Landed::InDoubt => {
                self.dispatch.writes.forget(id);
                if !self.unsettled.has_room_for(Share::Doubt) {
                    self.unsettled.defer_in_doubt(id);
                }
            }
            Landed::Settled => {
                self.dispatch.writes.forget(id);
                self.finish(id);
            }
        }
    }

    fn finish(&mut self, id: &TaskId) {
        let Some(known) = self.unsettled.known(id) else { return };
        let lives_on = matches!(known.record.due(id), Due::Put(_));
        if lives_on || known.record.expires_by.is_some() {
            self.unsettled.settle(id, known.revision);
        } else {
            self.beside.push_back(Beside::Expire(id.clone(), known));
        }
    }

    fn tick(&mut self, now: Instant) {
        self.dispatch.writes.wake(now);
        self.dispatch.reads.wake(now);
        let ids = self.unsettled.take_doubtful(3, now);
        if !ids.is_empty() {
            self.beside.push_back(Beside::Read(ids));
        }
        let due = if self.reading_deferred { Vec::new() } else { self.unsettled.take_deferred(3, now) };
        if !due.is_empty() {
            self.reading_deferred = true;
            self.beside.push_back(Beside::ReadAt(due));
        }
        if !self.renewing && now >= self.renew_at {
            self.renewing = true;
            let reading = self.read.plus(READ_AHEAD);
            self.beside.push_back(Beside::Renew {
                since: now,
                settled: self.unsettled.known_settled(now),
                reading,
            });
        }
    }

    fn was_read(&mut self, ids: Vec<TaskId>, mut known: HashMap<TaskId, Known>, now: Instant) {
        for id in ids {
            match known.remove(&id) {
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
                        self.unsettled.give_back(vec![id], now + RENEW_AGAIN);
                    }
                }
                None => self.unsettled.settle(&id, Revision(u64::MAX)),
            }
        }
    }
}

/// What has become of the control record.
enum Renewal {
    Held(Held),
    Restarted(Held),
    Lost,
    Unknown,
}

impl World {
    fn new(truth: &Truth) -> Self {
        let epoch = Instant::now();
        Self {
            now: Duration::ZERO,
            bucket: Bucket::default(),
            kv: truth.known_to_kv.iter().map(|id| (id.clone(), base(id))).collect(),
            requests: Vec::new(),
            replicas: (0..REPLICAS as u64).map(|uid| Replica::new(uid, epoch)).collect(),
            uids: REPLICAS as u64,
            dice: truth.seed,
            held: VecDeque::new(),
            folded: Vec::new(),
            ghosts: false,
        }
    }

    fn wall(&self) -> i64 {
        i64::try_from(self.now.as_millis()).unwrap() + 1_000_000
    }

    fn draw_fate(&mut self) -> Fate {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match (self.dice >> 33) % 5 {
            0 => Fate::Never,
            1 => Fate::Now,
            _ => Fate::Later(u32::try_from(40 + (self.dice >> 40) % 61).unwrap()),
        }
    }

    fn projector(&mut self, p: usize) -> Option<(&mut Projector, Instant)> {
        let replica = &mut self.replicas[p];
        let clock = replica.clock;
        match &mut replica.role {
            Role::Projecting(projector) if replica.stopped.is_none() => Some((projector, clock)),
            _ => None,
        }
    }

    // KV.

    fn apply(&mut self, which: usize, but_first: bool) {
        let request = &mut self.requests[which];
        request.applied = true;
        for (id, value) in request.writes.iter().skip(usize::from(but_first)) {
            match value {
                Some(task) => self.kv.insert(id.clone(), task.clone()),
                None => self.kv.remove(id),
            };
        }
    }

    /// Nobody waits for its answer any more.
    fn lose(&mut self, which: usize, fate: Fate) {
        let now = self.now;
        let request = &mut self.requests[which];
        let end = request.sent + SETTLE_AFTER;
        let at = match fate {
            _ if !request.may_apply(now) => None,
            Fate::Now => Some(now),
            Fate::Later(hundredths) => {
                Some((now + (end - now) * hundredths / 100).min(end - Duration::from_millis(1)))
            }
            Fate::Never => None,
        };
        request.lost = Some(at);
        self.apply_what_is_late();
    }

    fn lose_all_of(&mut self, owner: u64, fate: Option<Fate>) {
        self.requests.retain(|request| !(request.owner == owner && request.stuck));
        for which in 0..self.requests.len() {
            if self.requests[which].owner == owner && self.requests[which].lost.is_none() {
                let fate = fate.unwrap_or_else(|| self.draw_fate());
                self.lose(which, fate);
            }
        }
    }

    fn apply_what_is_late(&mut self) {
        for which in 0..self.requests.len() {
            let request = &self.requests[which];
            let is_due = request.lost.flatten().is_some_and(|at| at <= self.now);
            if is_due && !request.applied {
                self.apply(which, false);
            }
        }
    }

    fn send(&mut self, p: usize, stuck: bool) {
        let uid = self.replicas[p].uid;
        let out = self.requests.iter().filter(|request| request.owner == uid && request.lost.is_none());
        if out.count() >= MOST_IN_FLIGHT {
            return;
        }
        let Some((projector, now)) = self.projector(p) else { return };
        if projector.stopping || now.duration_since(projector.held.since) >= MAY_SEND {
            return;
        }
        let Some((writes, reads)) = projector.send(now) else { return };
        let request = Request {
            owner: uid,
            writes,
            reads,
            sent: self.now,
            sent_at: now,
            applied: false,
            stuck,
            lost: None,
        };
        self.requests.push(request);
        self.note_ghost(p);
    }

    /// Whether what this replica has sent just now, it has sent as a former holder.
    fn note_ghost(&mut self, p: usize) {
        let replica = &mut self.replicas[p];
        let Role::Projecting(projector) = &replica.role else { return };
        let is_held = |(control, _): &(Control, Revision)| control.is_held_by(&projector.held.control);
        let is_out =
            |request: &Request| request.owner == replica.uid && request.lost.is_none() && !request.stuck;
        if !self.bucket.control.as_ref().is_some_and(is_held) && self.requests.iter().any(is_out) {
            replica.spoils = true;
            self.ghosts = true;
        }
    }

    fn answer(&mut self, which: usize, reply: Reply) {
        let request = &self.requests[which];
        let Some(p) = self.replicas.iter().position(|replica| replica.uid == request.owner) else { return };
        if !self.replicas[p].runs() || request.lost.is_some() || request.stuck {
            return;
        }
        let can_land = request.applied || request.may_apply(self.now);
        let reply = match reply {
            Reply::Landed | Reply::Partly if !can_land => Reply::InDoubt(Fate::Never),
            Reply::Partly if request.applied => Reply::Landed,
            Reply::NothingDone if request.applied => Reply::InDoubt(Fate::Never),
            reply => reply,
        };
        let partly = matches!(reply, Reply::Partly);
        if matches!(reply, Reply::Landed | Reply::Partly) && !self.requests[which].applied {
            self.apply(which, partly);
        }
        if let Reply::InDoubt(fate) = reply {
            self.lose(which, fate);
        }
        let request = &self.requests[which];
        let (sent_at, writes, reads) = (request.sent_at, request.writes.clone(), request.reads.clone());
        let values: Vec<_> = reads.iter().map(|id| self.kv.get(id).cloned()).collect();
        if !matches!(reply, Reply::InDoubt(_)) {
            self.requests.remove(which);
        }
        let Some((projector, now)) = self.projector(p) else { return };
        for (n, (id, _)) in writes.iter().enumerate() {
            match reply {
                Reply::Landed => projector.landed(id, sent_at, now),
                Reply::Partly if n > 0 => projector.landed(id, sent_at, now),
                Reply::Partly | Reply::NothingDone | Reply::InDoubt(_) => {
                    projector.unsettled.failed(id, matches!(reply, Reply::InDoubt(_)), now);
                    match reply {
                        Reply::Partly if writes.len() > 1 => projector.retry_later(id, now + RETRY_AFTER),
                        _ => projector.dispatch.writes.retry(id, now + RETRY_AFTER),
                    }
                }
            }
        }
        for (id, value) in reads.iter().zip(values) {
            if let Reply::Landed = reply {
                projector.dispatch.reads.settle(id, now);
                projector.unsettled.forgive(id);
                projector.beside.push_back(Beside::Join(id.clone(), value));
            } else {
                match projector.unsettled.look_up_failed(id) {
                    Some(_) => projector.dispatch.reads.retry(id, now + RETRY_AFTER),
                    None => projector.dispatch.reads.settle(id, now),
                }
            }
        }
    }

    // The ledger.

    fn fold_held(&mut self, which: usize) {
        if let Some((event, since)) = self.held.remove(which) {
            self.bucket.fold(&event);
            self.folded.push((event, since));
        }
    }

    /// One thing that a projector does beside is done, or its end noted.
    fn beside(&mut self, p: usize, which: usize) {
        if !self.replicas[p].is_connected() {
            return;
        }
        let memory_ends = self.now + MEMORY;
        let Some((projector, now)) = self.projector(p) else { return };
        let Some(beside) = projector.beside.remove(which) else { return };
        let term = projector.held.control.term;
        let done = match beside {
            Beside::Renew { since, settled, reading } => return self.renew(p, since, settled, reading),
            Beside::WasRead(ids, known) => return projector.was_read(ids, known, now),
            Beside::WasReadAt(due, found) => return projector.was_read_at(due, found, now),
            Beside::Joined(id, Some(replaced)) => return projector.unsettled.settle(&id, replaced),
            Beside::Joined(id, None) => Beside::Read(vec![id]),
            Beside::ReadAt(due) => {
                let found = self.bucket.at(&due);
                Beside::WasReadAt(due, found)
            }
            Beside::Expired(id, revision) => return projector.unsettled.settle(&id, revision),
            Beside::Read(ids) => {
                let records = &self.bucket.records;
                let known =
                    ids.iter().filter_map(|id| Some((id.clone(), records.get(id)?.known.clone()))).collect();
                Beside::WasRead(ids, known)
            }
            Beside::Join(id, value) => {
                let known = self.bucket.records.get(&id).map(|entry| Record::clone(&entry.known.record));
                let joined = known.and_then(|mut record| record.join(value.as_ref()).then_some(record));
                let replaced = self.bucket.records.get(&id).map(|entry| entry.known.revision);
                let replaced = replaced.filter(|_| joined.is_some());
                joined.into_iter().for_each(|record| self.bucket.write(&id, record, None));
                Beside::Joined(id, replaced)
            }
            Beside::Expire(id, known) => {
                let found = self.bucket.records.get(&id).map(|entry| entry.known.revision);
                if found == Some(known.revision) {
                    let record = Record { expires_by: Some(settler(term)), ..Record::clone(&known.record) };
                    self.bucket.write(&id, record, Some(memory_ends));
                }
                Beside::Expired(id, known.revision)
            }
        };
        if let Some((projector, _)) = self.projector(p) {
            projector.beside.push_back(done);
        }
    }

    // The control record: `holder.rs` without the network.

    fn write_control(&mut self, control: &Control, expected: Revision) -> Option<Revision> {
        let written = self.bucket.set_control(control, expected);
        if written.is_some() && !self.ghosts {
            self.check_settled(control.settled);
        }
        written
    }

    fn renew(&mut self, p: usize, since: Instant, settled: Settled, reading: Revision) {
        let lost_ack = self.replicas[p].lost_ack.take();
        let wall = self.wall();
        let Role::Projecting(projector) = &self.replicas[p].role else { return };
        let held = projector.held.clone();
        let wanted = held.control.renewed(settled, reading, wall);
        let written = if lost_ack == Some(false) { None } else { self.write_control(&wanted, held.revision) };
        let renewal = match written {
            Some(revision) if lost_ack.is_none() => Renewal::Held(Held { control: wanted, revision, since }),
            _ => self.look_after(&held, &wanted, since),
        };
        let replica = &mut self.replicas[p];
        let (uid, now) = (replica.uid, replica.clock);
        let Role::Projecting(projector) = &mut replica.role else { return };
        projector.renewing = false;
        match renewal {
            Renewal::Held(held) => {
                projector.renew_at = held.since + RENEWAL;
                projector.held = held;
            }
            Renewal::Restarted(held) => {
                let stopping = projector.stopping;
                let doubt = Doubt { settled: held.control.sure, up_to: held.control.reading };
                **projector = Projector { stopping, ..Projector::new(held, Some(doubt), now) };
                self.lose_all_of(uid, None);
            }
            Renewal::Lost => {
                let settled = projector.held.control.settled;
                replica.role = Role::HandingOver(settled);
            }
            Renewal::Unknown => projector.renew_at = now + RENEW_AGAIN,
        }
    }

    fn look_after(&mut self, held: &Held, wanted: &Control, since: Instant) -> Renewal {
        let Some((found, revision)) = self.bucket.control.clone() else { return Renewal::Lost };
        if found == *wanted {
            return Renewal::Held(Held { control: found, revision, since });
        }
        if !found.is_held_by(&held.control) {
            return Renewal::Lost;
        }
        if found == held.control {
            return Renewal::Unknown;
        }
        let control = found.restarted(self.wall());
        match self.write_control(&control, revision) {
            Some(revision) => Renewal::Restarted(Held { control, revision, since }),
            None => Renewal::Unknown,
        }
    }

    fn try_acquire(&mut self, p: usize) {
        let (wall, found) = (self.wall(), self.bucket.control.clone());
        let (name, since) = (self.replicas[p].name(), self.replicas[p].clock);
        let Role::Waiting { seen } = &mut self.replicas[p].role else { return };
        let revision = found.as_ref().map_or(Revision::default(), |(_, revision)| *revision);
        let unchanged_since = match seen {
            Some((known, at)) if *known == revision => *at,
            _ => {
                *seen = Some((revision, since));
                since
            }
        };
        let claimant = Claimant {
            replica: &name,
            unchanged_for: since.duration_since(unchanged_since),
            now: wall,
            newest: self.bucket.newest,
            ahead: READ_AHEAD,
            memory: Some(MEMORY),
        };
        let found = found.map(|(control, _)| control);
        assert!(!found.as_ref().is_some_and(|found| claimant.is_forgotten(found)), "nothing was thrown back");
        let Claim::Take { control, doubt, .. } = claimant.claim(found.as_ref()) else { return };
        if let Some(revision) = self.write_control(&control, revision) {
            let held = Held { control, revision, since };
            self.replicas[p].role = Role::Projecting(Box::new(Projector::new(held, doubt, since)));
        }
    }

    fn hand_over(&mut self, p: usize) {
        let Role::HandingOver(settled) = self.replicas[p].role else { return };
        if let Some((found, revision)) = self.bucket.control.clone() {
            self.write_control(&found.handed(settled), revision);
        }
        let uid = self.replicas[p].uid;
        self.lose_all_of(uid, None);
        self.replicas[p].spoils = false;
        self.replicas[p].role = Role::Waiting { seen: None };
    }

    /// It lets go, and its process ends; another starts in its place.
    fn release(&mut self, p: usize) {
        let wall = self.wall();
        let replica = &self.replicas[p];
        let uid = replica.uid;
        let Role::Projecting(projector) = &replica.role else { return };
        let recorded = projector.held.control.settled;
        let is_out = |request: &Request| request.owner == uid && request.lost.is_none();
        let clean = !self.requests.iter().any(is_out) && projector.unsettled.is_clean(replica.clock);
        let released =
            projector.held.control.released(projector.unsettled.known_settled(replica.clock), clean, 0, wall);
        let expected = projector.held.revision;
        let written = self.write_control(&released, expected);
        if written.is_none() {
            self.replicas[p].role = Role::HandingOver(recorded);
            self.hand_over(p);
        }
        self.replace(p, None);
    }

    fn replace(&mut self, p: usize, fate: Option<Fate>) {
        let (uid, clock) = (self.replicas[p].uid, self.replicas[p].clock);
        self.lose_all_of(uid, fate);
        self.replicas[p] = Replica::new(self.uids, clock);
        self.uids += 1;
    }

    // Time.

    fn tick(&mut self, p: usize) {
        if !self.replicas[p].runs() {
            return;
        }
        let (uid, connected) = (self.replicas[p].uid, self.replicas[p].is_connected());
        let is_out = |request: &Request| request.owner == uid && request.lost.is_none();
        let any_out = self.requests.iter().any(is_out);
        match &mut self.replicas[p].role {
            Role::Waiting { .. } if connected => self.try_acquire(p),
            Role::HandingOver(_) if connected => self.hand_over(p),
            Role::Waiting { .. } | Role::HandingOver(_) => {}
            Role::Projecting(_) => {
                let Some((projector, now)) = self.projector(p) else { return };
                projector.tick(now);
                if projector.stopping && !projector.renewing && !any_out && connected {
                    self.release(p);
                }
            }
        }
    }

    /// Time passes. What was begun beside before, is done; what was sent long ago, fails.
    fn advance(&mut self, time: Duration) {
        self.now += time;
        self.apply_what_is_late();
        let now = self.now;
        self.bucket.records.retain(|_, entry| entry.expires_at.is_none_or(|at| at > now));
        while self.held.front().is_some_and(|(_, since)| *since + LONGEST_AWAY < now) {
            self.fold_held(0);
        }
        for p in 0..self.replicas.len() {
            let replica = &mut self.replicas[p];
            if replica.cut_off.is_some_and(|since| since + LONGEST_AWAY < now) {
                replica.cut_off = None;
            }
            match replica.stopped {
                None => replica.clock += time,
                Some(since) if since + LONGEST_AWAY < now => self.go_on(p, false),
                Some(_) => {}
            }
            let (uid, clock) = (self.replicas[p].uid, self.replicas[p].clock);
            for which in (0..self.requests.len()).rev() {
                let request = &self.requests[which];
                let too_long = clock.duration_since(request.sent_at) >= REQUEST_TIMEOUT;
                if request.owner == uid && request.lost.is_none() && too_long {
                    let fate = self.draw_fate();
                    self.answer(which, Reply::InDoubt(fate));
                }
            }
            let begun = self.projector(p).map_or(0, |(projector, _)| projector.beside.len());
            (0..begun).for_each(|_| self.beside(p, 0));
            self.tick(p);
        }
        self.requests.retain(|request| {
            request
                .lost
                .is_none_or(|at| at.is_some() && !request.applied && now < request.sent + SETTLE_AFTER)
        });
    }

    fn go_on(&mut self, p: usize, slept: bool) {
        let Some(since) = self.replicas[p].stopped.take() else { return };
        let now = self.now;
        let replica = &mut self.replicas[p];
        if !slept {
            replica.clock += now - since;
        }
        let mut sends = false;
        for request in
            self.requests.iter_mut().filter(|request| request.owner == replica.uid && request.stuck)
        {
            (request.stuck, request.sent, sends) = (false, now, true);
        }
        if sends {
            self.note_ghost(p);
        }
    }

    /// The replica that a step means: where it means nobody, the one that projects.
    fn which(&self, p: usize) -> usize {
        let projects = |replica: &Replica| matches!(replica.role, Role::Projecting(_));
        if p < REPLICAS { p } else { self.replicas.iter().rposition(projects).unwrap_or(0) }
    }

    fn take(&mut self, step: Step, truth: &Truth) {
        match step.at(|p| self.which(p)) {
            Step::Event { held, .. } => {
                let event = truth.events.last().unwrap().clone();
                self.held.push_back((event, self.now));
                if !held {
                    self.fold_held(self.held.len() - 1);
                }
            }
            Step::Fold(which) if !self.held.is_empty() => self.fold_held(which.index(self.held.len())),
            Step::FoldAgain(which) if !self.folded.is_empty() => {
                let (event, since) = &self.folded[which.index(self.folded.len())];
                if *since + MAX_AGE > self.now {
                    self.bucket.fold(event);
                }
            }
            Step::Fold(_) | Step::FoldAgain(_) => {}
            Step::Feed(p, fetch, take) => {
                let connected = self.replicas[p].is_connected();
                let bucket = std::mem::take(&mut self.bucket);
                if let Some((projector, now)) = self.projector(p).filter(|(projector, _)| !projector.stopping)
                {
                    projector.fetch(&bucket, if connected { fetch } else { 0 });
                    projector.take_in(take, now);
                    projector.follow_left(&bucket, if connected { fetch } else { 0 }, now);
                }
                self.bucket = bucket;
            }
            Step::Send(p) => self.send(p, false),
            Step::Beside(p, which) => {
                let begun = self.projector(p).map_or(0, |(projector, _)| projector.beside.len());
                if begun > 0 {
                    self.beside(p, which.index(begun));
                }
            }
            Step::Tick(p) => self.tick(p),
            Step::Apply(which) if !self.requests.is_empty() => {
                let which = which.index(self.requests.len());
                if self.requests[which].lost.is_none() && self.requests[which].may_apply(self.now) {
                    self.apply(which, false);
                }
            }
            Step::Answer(which, reply) if !self.requests.is_empty() => {
                self.answer(which.index(self.requests.len()), reply);
            }
            Step::Apply(_) | Step::Answer(..) => {}
            Step::Advance(ticks) => (0..ticks).for_each(|_| self.advance(TICK)),
            Step::Stop { replica, in_request } if self.replicas[replica].runs() => {
                if in_request {
                    self.send(replica, true);
                }
                self.replicas[replica].stopped = Some(self.now);
            }
            Step::Stop { .. } => {}
            Step::Continue { replica, slept } => self.go_on(replica, slept),
            Step::CutOff(p) => {
                self.replicas[p].cut_off.get_or_insert(self.now);
            }
            Step::Reconnect(p) => self.replicas[p].cut_off = None,
            Step::LoseAck { replica, done } => self.replicas[replica].lost_ack = Some(done),
            // One that sends as a former holder and dies before it can say so: that is not promised.
            Step::Kill(p, fate) if !self.replicas[p].spoils => self.replace(p, Some(fate)),
            Step::Kill(..) => {}
            Step::Drain { replica: p, patient } => {
                let replica = &mut self.replicas[p];
                match &mut replica.role {
                    _ if replica.stopped.is_some() || replica.cut_off.is_some() => {}
                    Role::Waiting { .. } => self.replace(p, None),
                    Role::HandingOver(_) => {}
                    Role::Projecting(projector) if patient => projector.stopping = true,
                    Role::Projecting(_) => self.release(p),
                }
            }
        }
    }

    // What must hold.

    /// What is recorded as settled is so, and nothing that is still out can undo it.
    fn check_settled(&self, settled: Revision) {
        for (id, entry) in self.bucket.records.iter().filter(|(_, entry)| entry.known.revision <= settled) {
            let value = match entry.known.record.due(id) {
                Due::Put(task) => Some(task),
                Due::Delete | Due::Nothing => None,
                Due::LookUp => panic!("{id} waits for KV's answer, and counts as settled"),
            };
            assert_eq!(self.kv.get(id), value.as_ref(), "{id} counts as settled at {settled:?}");
            for request in self.requests.iter().filter(|request| request.may_apply(self.now)) {
                let may_land = request.lost.is_none_or(|at| at.is_some());
                for (_, other) in request.writes.iter().filter(|(of, _)| of == id && may_land) {
                    assert_eq!(*other, value, "{id} counts as settled, and a request may yet undo it");
                }
            }
        }
    }

    /// No more faults, and every step is done at once.
    fn recover(&mut self, time: Duration) {
        while !self.held.is_empty() {
            self.fold_held(0);
        }
        for p in 0..self.replicas.len() {
            self.go_on(p, false);
            self.replicas[p].cut_off = None;
            self.replicas[p].lost_ack = None;
        }
        let end = self.now + time;
        while self.now < end {
            self.advance(TICK);
            for p in 0..self.replicas.len() {
                let bucket = std::mem::take(&mut self.bucket);
                if let Some((projector, now)) = self.projector(p).filter(|(projector, _)| !projector.stopping)
                {
                    projector.fetch(&bucket, usize::MAX);
                    projector.take_in(100, now);
                    projector.follow_left(&bucket, usize::MAX, now);
                }
                self.bucket = bucket;
                (0..MOST_IN_FLIGHT).for_each(|_| self.send(p, false));
            }
            for which in (0..self.requests.len()).rev() {
                self.answer(which, Reply::Landed);
            }
        }
    }

    fn check_end(&self, truth: &Truth) {
        for id in (0..TASKS).map(task) {
            assert_eq!(self.kv.get(&id), truth.expected(&id).as_ref(), "{id}: left, KV; right, the replay");
        }
        let (control, _) = self.bucket.control.as_ref().expect("somebody projects");
        self.check_settled(control.settled);
        let newest = self.bucket.records.values().map(|entry| entry.known.revision).max().unwrap_or_default();
        assert!(control.settled >= newest, "{:?} of {newest:?} is settled", control.settled);
        let projecting = |replica: &Replica| matches!(replica.role, Role::Projecting(_));
        assert_eq!(self.replicas.iter().filter(|replica| projecting(replica)).count(), 1);
        assert!(self.requests.is_empty());
    }
}

/// Nothing is left of settled tasks: neither their bytes nor their places.
fn check_accounts(unsettled: &Unsettled) {
    if unsettled.len() == 0 {
        let shown = format!("{unsettled:?}");
        assert!(shown.contains("bytes: [0, 0, 0, 0, 0, 0]") && shown.contains("lows: {},"), "{shown}");
    }
    assert!(unsettled.has_room());
}

struct Pipeline;

impl StateMachineTest for Pipeline {
    type SystemUnderTest = World;
    type Reference = Truth;

    fn init_test(truth: &Truth) -> World {
        World::new(truth)
    }

    fn apply(mut world: World, truth: &Truth, step: Step) -> World {
        world.take(step, truth);
        world
    }

    fn check_invariants(world: &World, _: &Truth) {
        for replica in &world.replicas {
            if let Role::Projecting(projector) = &replica.role {
                check_accounts(&projector.unsettled);
            }
        }
    }

    fn teardown(mut world: World, truth: Truth) {
        world.recover(LEASE + 3 * SETTLE_AFTER + Duration::from_secs(20));
        world.check_end(&truth);
        for replica in &world.replicas {
            if let Role::Projecting(projector) = &replica.role {
                assert_eq!(projector.unsettled.len(), 0);
                check_accounts(&projector.unsettled);
            }
        }
        // Deleted tasks are forgotten, and stay deleted.
        world.recover(MEMORY + Duration::from_secs(5));
        world.check_end(&truth);
    }
}

prop_state_machine! {
    #![proptest_config(cases(2_000))]
    #[test]
    fn after_all_faults_kv_is_the_replay_and_until_then_settled_is_settled(sequential 1..200 => Pipeline);
}

proptest! {
    #![proptest_config(cases(500))]
    #[test]
    fn a_task_that_changes_all_the_time_neither_starves_nor_is_starved(
        tasks in 1..12_usize,
        hot in proptest::collection::btree_set(0..12_usize, 0..6),
        rounds in proptest::collection::vec((any::<Index>(), prop::bool::weighted(0.3), 0..4_u64), 20..60),
    ) {
        let mut bucket = Bucket::default();
        let mut now = Instant::now();
        let control = Control {
            holder: None, term: 1, settled: Revision(0), sure: Revision(0), reading: Revision::last(), spare: 0,
            clean: true, beat: 0, renewed: 0,
        };
        let mut projector = Projector::new(Held { control, revision: Revision(1), since: now }, None, now);
        let mut waits: BTreeMap<TaskId, usize> = BTreeMap::new();
        let (mut sequence, mut in_flight) = (0, VecDeque::new());
        for (which, cold, delay) in rounds {
            let mut changes: Vec<_> = hot.iter().filter(|n| **n < tasks).copied().collect();
            changes.extend(cold.then(|| which.index(tasks)));
            for n in changes {
                sequence += 1;
                bucket.fold(&created(n, sequence));
                waits.entry(task(n)).or_default();
            }
            projector.fetch(&bucket, usize::MAX);
            projector.take_in(100, now);
            projector.tick(now);
            while let Some(beside) = projector.beside.pop_front() {
                if let Beside::ReadAt(due) = beside {
                    let found = bucket.at(&due);
                    projector.was_read_at(due, found, now);
                }
            }
            if let Some((writes, _)) = projector.send(now) {
                for (id, value) in &writes {
                    let newest = bucket.records[id].known.record.due(id);
                    prop_assert_eq!(Due::Put(value.clone().unwrap()), newest, "the value is read when it is sent");
                    waits.remove(id);
                }
                in_flight.push_back((writes, now));
            }
            waits.values_mut().for_each(|waits| *waits += 1);
            // All before it in the queue, its answer, its rest, and those that come back before it.
            let most = tasks.div_ceil(MOST_KEYS) + 4 + 14 + tasks.div_ceil(3);
            prop_assert!(waits.values().all(|waits| *waits <= most), "{:?} of {}", waits, most);
            now += Duration::from_millis(300);
            while in_flight.front().is_some_and(|(_, sent)| now.duration_since(*sent) >= Duration::from_millis(300 * delay)) {
                let (writes, sent_at) = in_flight.pop_front().unwrap();
                writes.iter().for_each(|(id, _)| projector.landed(id, sent_at, now));
            }
        }
    }
}

fn created(n: usize, version: u64) -> Happened {
    let Task { id, title, description, status, .. } = base(&task(n));
    let data = EventData::Created(taskpipeline_contract::NewTask { id, title, description, status });
    Happened { nth: usize::try_from(version).unwrap(), version: Version::new(1, version), at: at(0), data }
}

fn known(event: &Happened, revision: u64) -> Known {
    let record = Record::of(event.version, event.at, CorrelationId::new("c").unwrap(), &event.data);
    Known { record: Arc::new(record), revision: Revision(revision) }
}

fn everything() -> Doubt {
    Doubt { settled: Revision(0), up_to: Revision::last() }
}

#[test]
fn a_task_that_landed_twice_in_one_doubt_is_to_be_read_again_once() {
    let now = Instant::now();
    let mut unsettled = Unsettled::new(Revision(0), Some(everything()), SETTLE_AFTER, now);
    for revision in 1..=2 {
        unsettled.changed(&task(0), known(&created(0, revision), revision), now);
        unsettled.sent(&task(0));
        assert_eq!(unsettled.landed(&task(0), now), Landed::InDoubt);
    }
    // Asked for twice, it is found once, and taken for gone the second time.
    assert_eq!(unsettled.take_doubtful(9, now + SETTLE_AFTER), [task(0)]);
    assert!(unsettled.take_doubtful(9, now + SETTLE_AFTER).is_empty());
}

#[test]
fn what_the_feed_had_read_before_does_not_replace_what_was_read_again_since() {
    let now = Instant::now();
    let mut unsettled = Unsettled::new(Revision(0), Some(everything()), SETTLE_AFTER, now);
    unsettled.changed(&task(0), known(&created(0, 1), 1), now);
    unsettled.sent(&task(0));
    assert_eq!(unsettled.landed(&task(0), now), Landed::InDoubt);
    let later = now + SETTLE_AFTER;
    assert_eq!(unsettled.take_doubtful(9, later), [task(0)]);
    // Deleted as 7 and created again as 9: the doubt's read sees 9 before the feed gets to 7.
    let deleted = Happened { data: EventData::Deleted(task(0)), ..created(0, 2) };
    unsettled.read_again(&task(0), known(&created(0, 3), 9));
    unsettled.changed(&task(0), known(&deleted, 7), later);
    let found = unsettled.known(&task(0)).unwrap();
    assert_eq!(found.revision, Revision(9));
    assert_eq!(
        found.record.last.version,
        Version::new(1, 3),
        "or the delete is recorded in place of the create"
    );
}

/// It was about to send, and slept, its clock with it, until another had taken over and was done with its doubts.
#[test]
fn a_former_holder_that_is_drained_before_it_sees_what_it_is_hands_over_all_the_same() {
    let mut truth = Truth { known_to_kv: BTreeSet::new(), events: Vec::new(), seed: 0 };
    let mut world = World::new(&truth);
    let event = |truth: &mut Truth, title: &str| {
        let mut new = created(0, truth.events.len() as u64 + 1);
        if let EventData::Created(task) = &mut new.data {
            task.title = taskpipeline_contract::Title::new(title).unwrap();
        }
        truth.events.push(new.clone());
        Step::Event { data: new.data, held: false }
    };
    let old = event(&mut truth, "old");
    world.take(Step::Advance(1), &truth);
    world.take(old, &truth);
    world.take(Step::Feed(0, 9, 9), &truth);
    world.take(Step::Stop { replica: 0, in_request: true }, &truth);
    world.take(Step::Advance(20), &truth);
    let new = event(&mut truth, "new");
    world.take(new, &truth);
    let successor = world.which(REPLICAS);
    assert_ne!(successor, 0);
    for _ in 0..14 {
        world.take(Step::Feed(successor, 9, 9), &truth);
        world.take(Step::Send(successor), &truth);
        for which in (0..world.requests.len()).rev() {
            world.answer(which, Reply::Landed);
        }
        world.take(Step::Advance(4), &truth);
    }
    assert_eq!(world.kv.get(&task(0)), truth.expected(&task(0)).as_ref());
    world.take(Step::Continue { replica: 0, slept: true }, &truth);
    assert!(world.ghosts);
    let which = world.requests.iter().position(|request| request.owner == 0).unwrap();
    world.answer(which, Reply::Landed);
    assert_ne!(world.kv.get(&task(0)), truth.expected(&task(0)).as_ref(), "the old value has come last");
    world.take(Step::Drain { replica: 0, patient: true }, &truth);
    world.take(Step::Tick(0), &truth);
    world.recover(3 * SETTLE_AFTER);
    world.check_end(&truth);
}
