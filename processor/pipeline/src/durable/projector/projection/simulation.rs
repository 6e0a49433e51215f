//! [`Projection`] itself, in a world that can be simulated: several replicas with clocks of their own, a ledger, a control
//! record, KV. Whatever can go wrong happens in any order: answers are lost, requests land late or never, processes are
//! killed, stopped or cut off, two replicas project at a time. Nothing of the projector is written a second time here: the
//! world carries out its actions.
//!
//! What must hold: once the faults are over, KV is what a replay of the events says (see `fold_reference`), and
//! nothing is left in memory. Until then, as long as no former holder has sent anything, what is recorded as
//! settled is so, and nothing that is still out can undo it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::{Mutex, OnceLock};

use bytes::Bytes;
use futures_util::FutureExt;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use taskpipeline_contract::{CorrelationId, EventData, Task, TaskId};
use tokio::time::Instant;

use super::*;
use crate::dead_letters::Letter;
use crate::durable::bucket::lanes::Write;
use crate::durable::bucket::records::Records;
use crate::durable::bucket::{ReadError, Stored, WriteError};
use crate::durable::clock::Clock;
use crate::durable::control::holder::Holder;
use crate::durable::control::holder::Renewal;
use crate::durable::control::record::{Claimant, Control, Doubt, LEASE};
use crate::durable::control::register::Register;
use crate::durable::dead_letters::LetterError;
use crate::durable::ledger::Ledger;
use crate::durable::ledger::cache::Cache;
use crate::durable::ledger::record::{Due, Record};
use crate::durable::ledger::store::{LetterBox, Outcomes, Store};
use crate::durable::projector::jobs::{Done, Job};
use crate::durable::simulation::settings::limits;
use crate::fold::Version;
use crate::fold_reference::{Happened, at, base, data, replay};
use crate::schedule::{Answer, KeyOutcome, Request as KvRequest};
use crate::schedule::{AttemptId, Reply as KvReply};
use taskpipeline_kv::Operation;
use taskpipeline_kv::{Failure, Spare};

const TASKS: usize = 3;
const REPLICAS: usize = 3;

/// Small, so that tasks wait for each other and requests overlap.
const MOST_KEYS: u16 = 2;

const SETTLE_AFTER: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// So long that what changes again in its rest waits in NATS.
const MIN_WRITE_INTERVAL: Duration = Duration::from_secs(4);
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// So few that holders have to wait for their next renewal.
const READ_AHEAD: u64 = 2;
/// Of each replica's ledger: so few bytes that tasks are forgotten.
const CACHE: u64 = 2_000;
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
    /// The token is refused.
    Misconfigured,
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
    /// The feeds read so many changes.
    Feed(usize, usize),
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
    Fault(WriteFault),
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
            Self::Feed(p, _)
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
            | Self::Fault(_)
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
        1 => Just(Reply::Misconfigured),
        3 => fate().prop_map(Reply::InDoubt),
    ];
    let event = (0..TASKS).prop_flat_map(|n| data(task(n)));
    prop_oneof![
        14 => (event, proptest::bool::weighted(0.2)).prop_map(|(data, held)| Step::Event { data, held }),
        2 => any::<Index>().prop_map(Step::Fold),
        1 => any::<Index>().prop_map(Step::FoldAgain),
        14 => (replica(), 0..6_usize).prop_map(|(p, fetch)| Step::Feed(p, fetch)),
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
        2 => prop_oneof![
            Just(WriteFault::Busy),
            Just(WriteFault::Refused),
            any::<bool>().prop_map(|done| WriteFault::LostAck { done }),
        ]
        .prop_map(Step::Fault),
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
    /// The same as it was written.
    value: Bytes,
    expires_at: Option<Duration>,
}

/// What goes wrong with the next write of a task's record.
#[derive(Clone, Copy, Debug)]
enum WriteFault {
    /// Another write of the record is on its way, and fails.
    Busy,
    /// There is no room for it.
    Refused,
    /// Its ack is lost, whether or not it was done.
    LostAck { done: bool },
}

/// The bucket: one sequence for the records and the control record.
#[derive(Default)]
struct Bucket {
    now: Duration,
    fault: Option<WriteFault>,
    newest: Revision,
    records: BTreeMap<TaskId, Entry>,
    control: Option<(Control, Revision)>,
    /// The same as it was written.
    control_value: Bytes,
}

impl Bucket {
    /// Writes a task's record where its revision is the expected one.
    fn set(&mut self, id: &TaskId, value: Bytes, write: &Expecting) -> Result<Revision, WriteError> {
        let unknown = || WriteError::Unknown("no ack".to_owned());
        let fault = self.fault.take();
        match fault {
            Some(WriteFault::Busy) => return Err(WriteError::Busy),
            Some(WriteFault::Refused) => return Err(WriteError::Refused("no room".to_owned())),
            Some(WriteFault::LostAck { done: false }) => return Err(unknown()),
            Some(WriteFault::LostAck { done: true }) | None => {}
        }
        let found = self.records.get(id).map_or(Revision::default(), |entry| entry.known.revision);
        if write.revision != found {
            return Err(WriteError::Conflict);
        }
        self.newest.0 += 1;
        let record = Arc::new(serde_json::from_slice(&value).unwrap());
        let expires_at = write.time_to_live.map(|time| self.now + time);
        let known = Known { record, revision: self.newest };
        self.records.insert(id.clone(), Entry { known, value, expires_at });
        if fault.is_some() { Err(unknown()) } else { Ok(self.newest) }
    }

    fn stored(&self, names: &Names, id: &TaskId) -> Option<Stored> {
        let entry = self.records.get(id)?;
        let (subject, revision) = (names.task(id), entry.known.revision);
        Some(Stored { subject, revision, value: entry.value.clone() })
    }

    fn set_control(&mut self, value: Bytes, expected: Revision) -> Result<Revision, WriteError> {
        let found = self.control.as_ref().map_or(Revision::default(), |(_, revision)| *revision);
        if found != expected {
            return Err(WriteError::Conflict);
        }
        self.newest.0 += 1;
        self.control = Some((serde_json::from_slice(&value).unwrap(), self.newest));
        self.control_value = value;
        Ok(self.newest)
    }

    /// The newest changes after this revision, in their order.
    fn changes(&self, after: Revision) -> Vec<Change> {
        let mut changes: Vec<_> = self
            .records
            .iter()
            .filter(|(_, entry)| entry.known.revision > after)
            .map(|(id, entry)| Change { id: id.clone(), known: entry.known.clone(), behind: 0 })
            .collect();
        changes.sort_by_key(|change| change.known.revision);
        changes
    }
}

/// How a record is to be written.
struct Expecting {
    revision: Revision,
    time_to_live: Option<Duration>,
}

/// The bucket as the ledger of a replica sees it. The world lays its bucket there while a ledger works.
#[derive(Clone, Default)]
struct SimulatedStore(Arc<Mutex<Bucket>>);

impl SimulatedStore {
    fn task(subject: &str) -> TaskId {
        setup().names.task_of(subject).unwrap()
    }
}

impl Clock for SimulatedStore {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> i64 {
        0
    }

    async fn sleep(&self, _: Duration) {
        std::future::pending::<()>().await;
    }

    fn dice(&self) -> f64 {
        0.5
    }
}

impl Records for SimulatedStore {
    async fn get(&self, subject: &str) -> Result<Option<Stored>, ReadError> {
        Ok(self.0.lock().unwrap().stored(&setup().names, &Self::task(subject)))
    }

    async fn compare_and_set(
        &self,
        subject: String,
        value: Vec<u8>,
        revision: Revision,
        time_to_live: Option<Duration>,
    ) -> Result<Revision, WriteError> {
        let expecting = Expecting { revision, time_to_live };
        self.0.lock().unwrap().set(&Self::task(&subject), value.into(), &expecting)
    }
}

impl Store for SimulatedStore {
    async fn get_at(&self, revision: Revision) -> Result<Option<Stored>, ReadError> {
        let bucket = self.0.lock().unwrap();
        let found = bucket.records.iter().find(|(_, entry)| entry.known.revision == revision);
        Ok(found.and_then(|(id, _)| bucket.stored(&setup().names, id)))
    }

    async fn get_many(&self, subjects: &[String]) -> Result<Vec<Stored>, ReadError> {
        let (bucket, setup) = (self.0.lock().unwrap(), setup());
        Ok(subjects.iter().filter_map(|subject| bucket.stored(&setup.names, &Self::task(subject))).collect())
    }

    async fn each<T: Send>(
        &self,
        writes: impl Iterator<Item = (T, Result<Write, WriteError>)> + Send,
    ) -> Result<Outcomes<T>, WriteError> {
        let mut bucket = self.0.lock().unwrap();
        let mut set = |Write { subject, value, expected, time_to_live }: Write| {
            let expecting = Expecting { revision: expected.unwrap(), time_to_live };
            bucket.set(&Self::task(&subject), value.into(), &expecting)
        };
        Ok(writes.map(|(what, write)| (what, write.and_then(&mut set))).collect())
    }
}

/// No record here is unreadable.
#[derive(Clone)]
struct NoLetters;

impl LetterBox for NoLetters {
    async fn store(&self, _: &Letter) -> Result<(), LetterError> {
        unreachable!("a record cannot be read")
    }
}

type SimulatedLedger = Arc<Ledger<SimulatedStore, NoLetters>>;

fn ledger(store: &SimulatedStore) -> SimulatedLedger {
    let Setup { names, metrics, .. } = setup().clone();
    Arc::new(Ledger::new(store.clone(), names, NoLetters, metrics, Cache::of(CACHE)))
}

/// As ingest has it.
fn record_of(event: &Happened) -> (TaskId, Arc<Record>) {
    let correlation_id = CorrelationId::new("c").unwrap();
    let record = Record::of(event.version, event.at, correlation_id, &event.data);
    (event.data.task_id().clone(), Arc::new(record))
}

/// The bucket as the holder of one replica sees it, at one moment.
#[derive(Clone)]
struct SimulatedRegister {
    bucket: Arc<Mutex<Bucket>>,
    /// Whether the next write is done or not, and its ack is lost.
    lost_ack: Arc<Mutex<Option<bool>>>,
    clock: Instant,
    wall: i64,
}

impl Clock for SimulatedRegister {
    fn now(&self) -> Instant {
        self.clock
    }

    fn wall(&self) -> i64 {
        self.wall
    }

    async fn sleep(&self, _: Duration) {
        std::future::pending::<()>().await;
    }

    fn dice(&self) -> f64 {
        0.5
    }
}

impl Records for SimulatedRegister {
    async fn get(&self, subject: &str) -> Result<Option<Stored>, ReadError> {
        let bucket = self.bucket.lock().unwrap();
        Ok(bucket.control.as_ref().map(|(_, revision)| Stored {
            subject: subject.to_owned(),
            revision: *revision,
            value: bucket.control_value.clone(),
        }))
    }

    async fn compare_and_set(
        &self,
        _: String,
        value: Vec<u8>,
        expected: Revision,
        _: Option<Duration>,
    ) -> Result<Revision, WriteError> {
        let lost_ack = self.lost_ack.lock().unwrap().take();
        let unknown = || WriteError::Unknown("no ack".to_owned());
        if lost_ack == Some(false) {
            return Err(unknown());
        }
        let written = self.bucket.lock().unwrap().set_control(value.into(), expected);
        if lost_ack.is_some() { Err(unknown()) } else { written }
    }
}

impl Register for SimulatedRegister {
    async fn all(&self, _: &str) -> Result<Vec<Stored>, ReadError> {
        // There is only one namespace, so there is no other control record.
        Ok(Vec::new())
    }

    async fn newest(&self) -> Result<Revision, ReadError> {
        Ok(self.bucket.lock().unwrap().newest)
    }
}

/// A request to KV that is out, or that nobody waits for any more.
struct Request {
    owner: u64,
    attempt: AttemptId,
    operation: Operation,
    ids: Vec<TaskId>,
    /// What it writes, with nothing for a delete.
    writes: Vec<(TaskId, Option<Task>)>,
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
    ledger: SimulatedLedger,
    /// It has sent something as a former holder, and has not handed it over.
    spoils: bool,
    role: Role,
}

enum Role {
    Waiting { seen: Option<(Revision, Instant)> },
    Projecting(Box<Projecting>),
    HandingOver(Box<Held>),
}

impl Replica {
    fn new(uid: u64, clock: Instant, store: &SimulatedStore) -> Self {
        let (role, ledger) = (Role::Waiting { seen: None }, ledger(store));
        Self { uid, clock, stopped: None, cut_off: None, lost_ack: None, ledger, spoils: false, role }
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
    /// Where the ledgers look for it.
    store: SimulatedStore,
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

// What the driver of a projection would hold.

fn setup() -> &'static Setup {
    static SETUP: OnceLock<Setup> = OnceLock::new();
    SETUP.get_or_init(|| Setup {
        settle_after: SETTLE_AFTER,
        memory: Some(MEMORY),
        read_ahead: READ_AHEAD,
        target: Target::new("http://kv"),
        limits: limits(),
        names: Arc::new(Names::of("TASKS", "tasks-processor", "tasks")),
        metrics: Arc::new(Metrics::new().unwrap()),
        health: Arc::new(Health::default()),
    })
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap())
}

fn tuning() -> Tuning {
    let mut tuning = Tuning {
        request_timeout: REQUEST_TIMEOUT,
        min_write_interval: MIN_WRITE_INTERVAL,
        max_keys: NonZeroU16::new(MOST_KEYS).unwrap(),
        ..Tuning::default()
    };
    tuning.retry.delays = vec![RETRY_AFTER];
    tuning.request_budget.requests = NonZeroU32::new(1_000_000).unwrap();
    tuning
}

/// What is done beside.
enum Beside {
    /// Begun then, by the replica's clock.
    ToDo(Job, Instant),
    /// And is to be reported.
    Done(Box<Done>),
}

struct Projecting {
    projection: Projection,
    /// How far the feed has read.
    position: Revision,
    /// How far the second feed has read, where there is one.
    second: Option<Revision>,
    beside: VecDeque<Beside>,
    stopping: bool,
}

impl Projecting {
    fn new(held: Held, seed: u64, now: Instant) -> Self {
        let (setup, tuning, position) = (setup().clone(), tuning(), held.control.settled);
        let (metrics, health) = (Arc::clone(&setup.metrics), Arc::clone(&setup.health));
        let mut schedule = Schedule::new(&tuning, tenth(tuning.request_budget), metrics, health, seed, now);
        schedule.retune(&tuning, tenth(tuning.request_budget), now);
        let projection = Projection::new(setup, tuning, schedule, Rests::new(now), held, now);
        Self { projection, position, second: None, beside: VecDeque::new(), stopping: false }
    }

    /// The feeds read so many changes, where there is room for them.
    fn feed(&mut self, bucket: &Bucket, most: usize, now: Instant) {
        if self.projection.wants_changes() {
            let changes: Vec<_> = bucket.changes(self.position).into_iter().take(most).collect();
            self.position = changes.last().map_or(self.position, |last| last.known.revision);
            self.projection.changes(changes, now);
        }
        if let Some(position) = self.second.filter(|_| self.projection.wants_left()) {
            let left: Vec<_> = bucket.changes(position).into_iter().take(most).collect();
            self.second = Some(left.last().map_or(position, |last| last.known.revision));
            self.projection.left(left, now);
        }
    }

    /// Takes a turn; answers the requests that it sends, and whether it began anew.
    fn turn(&mut self, now: Instant) -> (Vec<Flight>, bool) {
        self.projection.turn(self.stopping, now);
        let (mut flights, mut anew) = (Vec::new(), false);
        while let Some(action) = self.projection.action() {
            match action {
                Action::Send(flight) => flights.push(flight),
                Action::FollowLeft(after) => self.second = Some(after),
                Action::LeaveLeft => self.second = None,
                Action::Restart(after) => {
                    (self.position, self.second, anew) = (after, None, true);
                    self.beside.clear();
                }
                Action::Begin(job) => self.beside.push_back(Beside::ToDo(job, now)),
            }
        }
        (flights, anew)
    }
}

impl World {
    fn new(truth: &Truth) -> Self {
        let (epoch, store) = (Instant::now(), SimulatedStore::default());
        Self {
            now: Duration::ZERO,
            bucket: Bucket::default(),
            kv: truth.known_to_kv.iter().map(|id| (id.clone(), base(id))).collect(),
            requests: Vec::new(),
            replicas: (0..REPLICAS as u64).map(|uid| Replica::new(uid, epoch, &store)).collect(),
            store,
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

    fn projecting(&mut self, p: usize) -> Option<(&mut Projecting, Instant)> {
        let replica = &mut self.replicas[p];
        let clock = replica.clock;
        match &mut replica.role {
            Role::Projecting(projecting) if replica.stopped.is_none() => Some((projecting, clock)),
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

    /// A turn of its projection. `stuck`: what it sends it cannot send yet, since it is stopped.
    fn turn(&mut self, p: usize, stuck: bool) {
        let (uid, sent) = (self.replicas[p].uid, self.now);
        let connected = self.replicas[p].is_connected();
        let Some((projecting, now)) = self.projecting(p) else { return };
        let (flights, anew) = projecting.turn(now);
        let outside = Outside { broken: None, connected };
        let gives_up = projecting.projection.has_given_up(&outside, now);
        assert!(!gives_up || projecting.stopping, "it does not move, and says that this is a bug");
        if anew {
            self.lose_all_of(uid, None);
        }
        for Flight { request, attempt } in flights {
            let operation = request.operation();
            let (ids, writes) = match request {
                KvRequest::Put(puts) => {
                    let (ids, body) = puts.finish();
                    let pairs = body.unwrap().to_json();
                    let value = |n: usize| serde_json::from_str(pairs[n]["value"].as_str().unwrap()).unwrap();
                    let writes = ids.iter().enumerate().map(|(n, id)| (id.clone(), Some(value(n)))).collect();
                    (ids, writes)
                }
                KvRequest::Delete(ids) => {
                    let writes = ids.iter().map(|id| (id.clone(), None)).collect();
                    (ids, writes)
                }
                KvRequest::Get(ids) => (ids, Vec::new()),
            };
            let (applied, lost) = (false, None);
            let request = Request {
                owner: uid,
                attempt,
                operation,
                ids,
                writes,
                sent,
                sent_at: now,
                applied,
                stuck,
                lost,
            };
            self.requests.push(request);
        }
        self.note_ghost(p);
    }

    /// Whether what this replica has sent just now, it has sent as a former holder.
    fn note_ghost(&mut self, p: usize) {
        let replica = &mut self.replicas[p];
        let Role::Projecting(projecting) = &replica.role else { return };
        let held = &projecting.projection.held.control;
        let is_held = |(control, _): &(Control, Revision)| control.is_held_by(held);
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
            Reply::Partly if request.operation == Operation::Get => Reply::Landed,
            Reply::Landed | Reply::Partly if !can_land => Reply::InDoubt(Fate::Never),
            Reply::Partly if request.applied => Reply::Landed,
            Reply::NothingDone | Reply::Misconfigured if request.applied => Reply::InDoubt(Fate::Never),
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
        let outcomes = request.ids.iter().enumerate().map(|(n, id)| match request.operation {
            Operation::Get => {
                KeyOutcome::Read(self.kv.get(id).map(|task| serde_json::to_string(task).unwrap()))
            }
            Operation::Put | Operation::Delete if partly && n == 0 => KeyOutcome::NotWritten,
            Operation::Put | Operation::Delete => KeyOutcome::Landed,
        });
        let result = match reply {
            Reply::Landed | Reply::Partly => Ok(outcomes.collect()),
            Reply::NothingDone => Err(Failure::Throttled(RETRY_AFTER)),
            Reply::Misconfigured => Err(Failure::Config("the token is refused".to_owned())),
            Reply::InDoubt(_) => Err(Failure::Transient("no answer".to_owned())),
        };
        let answer = Answer { operation: request.operation, ids: request.ids.clone(), result };
        let reply_to = KvReply { answer, sent: request.sent_at, attempt: request.attempt, allowance: None };
        if !matches!(reply, Reply::InDoubt(_)) {
            self.requests.remove(which);
        }
        let wall = self.wall();
        let Some((projecting, now)) = self.projecting(p) else { return };
        projecting.projection.answered(reply_to, now, wall);
        self.turn(p, false);
    }

    // The ledger.

    /// What a ledger does; nothing where it waits before it tries again.
    fn with_ledger<T, F: Future<Output = T>>(
        &mut self,
        p: usize,
        work: impl FnOnce(SimulatedLedger) -> F,
    ) -> Option<T> {
        self.bucket.now = self.now;
        *self.store.0.lock().unwrap() = std::mem::take(&mut self.bucket);
        let runtime = runtime().enter();
        let done = work(Arc::clone(&self.replicas[p].ledger)).now_or_never();
        drop(runtime);
        self.bucket = std::mem::take(&mut self.store.0.lock().unwrap());
        done
    }

    /// An event is folded by one of the replicas; or by none now, and is delivered again.
    fn fold(&mut self, event: &Happened) -> bool {
        let connected: Vec<_> =
            (0..self.replicas.len()).filter(|p| self.replicas[*p].is_connected()).collect();
        if connected.is_empty() {
            return false;
        }
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let p = connected[usize::try_from(self.dice >> 33).unwrap() % connected.len()];
        let record = record_of(event);
        let applied = self.with_ledger(p, |ledger| async move { ledger.apply([record]).await });
        matches!(applied, Some(Ok(())))
    }

    fn fold_held(&mut self, which: usize) {
        let Some((event, since)) = self.held.get(which).cloned() else { return };
        if self.fold(&event) {
            self.held.remove(which);
            self.folded.push((event, since));
        }
    }

    /// One thing that a projector does beside is done, or its end reported.
    fn beside(&mut self, p: usize, which: usize) {
        if !self.replicas[p].is_connected() {
            return;
        }
        let Some((projecting, now)) = self.projecting(p) else { return };
        let Some(beside) = projecting.beside.remove(which) else { return };
        let done = match beside {
            Beside::Done(done) => {
                let term = projecting.projection.done(*done, now);
                if term == Term::Lost {
                    let held = Box::new(projecting.projection.held().clone());
                    self.replicas[p].role = Role::HandingOver(held);
                    return;
                }
                return self.turn(p, false);
            }
            Beside::ToDo(action, since) => match self.carry_out(p, &action, since) {
                Some(done) => done,
                None => {
                    // It waits before it tries again.
                    if let Some((projecting, _)) = self.projecting(p) {
                        projecting.beside.push_back(Beside::ToDo(action, since));
                    }
                    return;
                }
            },
        };
        if let Some((projecting, _)) = self.projecting(p) {
            projecting.beside.push_back(Beside::Done(Box::new(done)));
        }
    }

    /// As the driver does it.
    fn carry_out(&mut self, p: usize, action: &Job, since: Instant) -> Option<Done> {
        match action {
            Job::Renew { held, settled, read } => {
                let (held, settled, read) = (held.clone(), *settled, *read);
                let renewal =
                    self.hold(p, since, |holder| async move { holder.renew(held, settled, read).await })?;
                Some(Done::Renewed(renewal, None))
            }
            Job::Read(ids) => {
                let read = ids.clone();
                let known = self.with_ledger(p, |ledger| async move { ledger.read_surely(&read).await })?;
                Some(Done::Read(ids.clone(), known))
            }
            Job::ReadAt(due) => {
                let revisions = due.iter().map(|(_, revision)| *revision).collect();
                let found = self.with_ledger(p, |ledger| async move { ledger.read_at(revisions).await })?;
                Some(Done::ReadAt(due.clone(), found))
            }
            Job::Join(join) => {
                let (id, joined, known) = (&join.id, join.id.clone(), join.known.clone());
                let recorded =
                    self.with_ledger(p, |ledger| async move { ledger.join(&joined, known.as_ref()).await })?;
                Some(Done::Joined(id.clone(), recorded))
            }
            Job::Bury { id, revision, .. } => Some(Done::Buried(id.clone(), *revision)),
            Job::Expire { records, settler, memory } => {
                let (expiring, settler, memory) = (records.clone(), settler.clone(), *memory);
                let (_, error) =
                    self.with_ledger(
                        p,
                        |ledger| async move { ledger.expire(expiring, &settler, memory).await },
                    )?;
                let expired = records.iter().map(|(id, known)| (id.clone(), known.revision)).collect();
                error.is_none().then_some(Done::Expired(expired))
            }
            Job::Lend { .. } => {
                unreachable!("done at once, or never asked for")
            }
        }
    }

    // The control record.

    /// What the holder of this replica does with the control record. It began then, by the replica's clock. Nothing where it
    /// waits.
    fn hold<T, F: Future<Output = T>>(
        &mut self,
        p: usize,
        since: Instant,
        work: impl FnOnce(Holder<SimulatedRegister>) -> F,
    ) -> Option<T> {
        let before = self.bucket.control.as_ref().map(|(_, revision)| *revision);
        let bucket = Arc::new(Mutex::new(std::mem::take(&mut self.bucket)));
        let lost_ack = Arc::new(Mutex::new(self.replicas[p].lost_ack.take()));
        let setup = setup().clone();
        let holder = Holder {
            bucket: SimulatedRegister {
                bucket: Arc::clone(&bucket),
                lost_ack: Arc::clone(&lost_ack),
                clock: since,
                wall: self.wall(),
            },
            names: setup.names,
            target: setup.target,
            replica: self.replicas[p].name().into(),
            memory: setup.memory,
            ahead: READ_AHEAD,
        };
        // Its pauses need one; nobody waits for them here.
        let runtime = runtime().enter();
        let done = work(holder).now_or_never();
        drop(runtime);
        self.bucket = std::mem::take(&mut bucket.lock().unwrap());
        self.replicas[p].lost_ack = lost_ack.lock().unwrap().take();
        if let Some((control, revision)) = &self.bucket.control
            && before != Some(*revision)
            && !self.ghosts
        {
            self.check_settled(control.settled);
        }
        done
    }

    fn try_acquire(&mut self, p: usize) {
        let clock = self.replicas[p].clock;
        let Role::Waiting { seen } = &mut self.replicas[p].role else { return };
        let mut seen = seen.take();
        let found = self.bucket.control.clone();
        let acquired = self.hold(p, clock, |holder| async move {
            let acquired = holder.try_acquire(&mut seen).await;
            (acquired, seen)
        });
        let (acquired, seen) = acquired.unwrap();
        if let Ok(Some(held)) = acquired {
            let (name, newest) = (self.replicas[p].name(), self.bucket.newest);
            let claimant = Claimant {
                replica: &name,
                unchanged_for: Duration::ZERO,
                now: self.wall(),
                newest,
                ahead: READ_AHEAD,
                memory: Some(MEMORY),
            };
            assert!(!found.is_some_and(|found| claimant.is_forgotten(&found.0)), "nothing was thrown back");
            self.dice = self.dice.wrapping_add(1);
            self.replicas[p].role = Role::Projecting(Box::new(Projecting::new(held, self.dice, clock)));
        } else {
            self.replicas[p].role = Role::Waiting { seen };
        }
    }

    fn hand_over(&mut self, p: usize) {
        let Role::HandingOver(held) = &self.replicas[p].role else { return };
        let (held, clock) = (held.clone(), self.replicas[p].clock);
        if self.hold(p, clock, |holder| async move { holder.hand_over(&held).await }).is_none() {
            // It tries again.
            return;
        }
        let uid = self.replicas[p].uid;
        self.lose_all_of(uid, None);
        self.replicas[p].spoils = false;
        self.replicas[p].role = Role::Waiting { seen: None };
    }

    /// It lets go, and its process ends; another starts in its place.
    fn release(&mut self, p: usize) {
        let clock = self.replicas[p].clock;
        let Role::Projecting(projecting) = &mut self.replicas[p].role else { return };
        let Leaving { held, settled, clean, spare } = projecting.projection.leaving(clock);
        self.hold(p, clock, |holder| async move { holder.release(held, settled, clean, spare).await });
        self.replace(p, None);
    }

    fn replace(&mut self, p: usize, fate: Option<Fate>) {
        let (uid, clock) = (self.replicas[p].uid, self.replicas[p].clock);
        self.lose_all_of(uid, fate);
        self.replicas[p] = Replica::new(self.uids, clock, &self.store);
        self.uids += 1;
    }

    // Time.

    fn tick(&mut self, p: usize) {
        if !self.replicas[p].runs() {
            return;
        }
        let connected = self.replicas[p].is_connected();
        match &self.replicas[p].role {
            Role::Waiting { .. } if connected => self.try_acquire(p),
            Role::HandingOver(_) if connected => self.hand_over(p),
            Role::Waiting { .. } | Role::HandingOver(_) => {}
            Role::Projecting(_) => {
                self.turn(p, false);
                let Some((projecting, _)) = self.projecting(p) else { return };
                if projecting.stopping && projecting.projection.may_leave() && connected {
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
        for _ in 0..self.held.len() {
            if self.held.front().is_some_and(|(_, since)| *since + LONGEST_AWAY < now) {
                self.fold_held(0);
            }
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
            let begun = self.projecting(p).map_or(0, |(projecting, _)| projecting.beside.len());
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

    /// The feeds of a replica read so many changes. `stuck`: it is stopped before it can send what is sent then.
    fn feed(&mut self, p: usize, most: usize, stuck: bool) {
        if !self.replicas[p].is_connected() {
            return;
        }
        let bucket = std::mem::take(&mut self.bucket);
        if let Some((projecting, now)) = self.projecting(p).filter(|(projecting, _)| !projecting.stopping) {
            projecting.feed(&bucket, most, now);
        }
        self.bucket = bucket;
        self.turn(p, stuck);
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
                let (event, since) = self.folded[which.index(self.folded.len())].clone();
                if since + MAX_AGE > self.now {
                    self.fold(&event);
                }
            }
            Step::Fold(_) | Step::FoldAgain(_) => {}
            Step::Fault(fault) => self.bucket.fault = Some(fault),
            Step::Feed(p, most) => self.feed(p, most, false),
            Step::Beside(p, which) => {
                let begun = self.projecting(p).map_or(0, |(projecting, _)| projecting.beside.len());
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
                    self.feed(replica, usize::MAX, true);
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
                    Role::Projecting(projecting) if patient => projecting.stopping = true,
                    Role::Projecting(_) => self.release(p),
                }
            }
        }
    }

    // What must hold.

    /// Each change that is recorded as settled is in KV, and no request that is out can undo it.
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
        for p in 0..self.replicas.len() {
            self.go_on(p, false);
            self.replicas[p].cut_off = None;
            self.replicas[p].lost_ack = None;
        }
        self.bucket.fault = None;
        while !self.held.is_empty() {
            self.fold_held(0);
        }
        let end = self.now + time;
        while self.now < end {
            self.advance(2 * TICK);
            for p in 0..self.replicas.len() {
                self.feed(p, usize::MAX, false);
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
            if let Role::Projecting(projecting) = &replica.role {
                check_accounts(&projecting.projection.unsettled);
            }
        }
    }

    fn teardown(mut world: World, truth: Truth) {
        world.recover(LEASE + 3 * SETTLE_AFTER + Duration::from_secs(20));
        world.check_end(&truth);
        for replica in &world.replicas {
            if let Role::Projecting(projecting) = &replica.role {
                assert_eq!(projecting.projection.unsettled.len(), 0);
                check_accounts(&projecting.projection.unsettled);
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
        let store = SimulatedStore::default();
        let ledger = ledger(&store);
        let mut now = Instant::now();
        let control = Control {
            holder: None, term: 1, settled: Revision(0), sure: Revision(0), reading: Revision::last(), spare: 0,
            clean: true, beat: 0, renewed: 0,
        };
        let (revision, spare) = (Revision(1), Spare { requests: 1_000_000.0, refilling: Duration::ZERO });
        let held = Held { control, revision, since: now, doubt: None, spare, shared: false };
        let mut projecting = Projecting::new(held, 1, now);
        let mut waits: BTreeMap<TaskId, usize> = BTreeMap::new();
        let (mut sequence, mut in_flight) = (0, VecDeque::new());
        for (which, cold, delay) in rounds {
            let mut changes: Vec<_> = hot.iter().filter(|n| **n < tasks).copied().collect();
            changes.extend(cold.then(|| which.index(tasks)));
            for n in changes {
                sequence += 1;
                ledger.apply([record_of(&created(n, sequence))]).now_or_never().unwrap().unwrap();
                waits.entry(task(n)).or_default();
            }
            projecting.feed(&store.0.lock().unwrap(), usize::MAX, now);
            // As it holds the control record all along.
            projecting.projection.held.since = now;
            loop {
                let (flights, _) = projecting.turn(now);
                for Flight { request, attempt } in flights {
                    let KvRequest::Put(puts) = request else { panic!("nothing is looked up or deleted") };
                    let (ids, body) = puts.finish();
                    let pairs = body.unwrap().to_json();
                    for (n, id) in ids.iter().enumerate() {
                        let value = serde_json::from_str(pairs[n]["value"].as_str().unwrap()).unwrap();
                        let newest = store.0.lock().unwrap().records[id].known.record.due(id);
                        prop_assert_eq!(Due::Put(value), newest, "the value is read when it is sent");
                        waits.remove(id);
                    }
                    in_flight.push_back((ids, attempt, now));
                }
                let Some(Beside::ToDo(action, _)) = projecting.beside.pop_front() else { break };
                if let Job::ReadAt(due) = action {
                    let revisions = due.iter().map(|(_, revision)| *revision).collect();
                    let found = ledger.read_at(revisions).now_or_never().unwrap();
                    projecting.projection.done(Done::ReadAt(due, found), now);
                }
            }
            waits.values_mut().for_each(|waits| *waits += 1);
            // All before it in the queue, its answer, its rest, and those that come back before it.
            let most = tasks.div_ceil(usize::from(MOST_KEYS)) + 4 + 14 + tasks.div_ceil(3);
            prop_assert!(waits.values().all(|waits| *waits <= most), "{:?} of {}", waits, most);
            now += Duration::from_millis(300);
            while in_flight.front().is_some_and(|(.., sent)| now.duration_since(*sent) >= Duration::from_millis(300 * delay)) {
                let (ids, attempt, sent) = in_flight.pop_front().unwrap();
                let result = Ok(ids.iter().map(|_| KeyOutcome::Landed).collect());
                let answer = Answer { operation: Operation::Put, ids, result };
                projecting.projection.answered(KvReply { answer, sent, attempt, allowance: None }, now, 0);
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
    let mut unsettled =
        Unsettled::new(&Limits::default(), Revision(0), Some(everything()), SETTLE_AFTER, now);
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
    let mut unsettled =
        Unsettled::new(&Limits::default(), Revision(0), Some(everything()), SETTLE_AFTER, now);
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
    world.take(Step::Stop { replica: 0, in_request: true }, &truth);
    world.take(Step::Advance(20), &truth);
    let new = event(&mut truth, "new");
    world.take(new, &truth);
    let successor = world.which(REPLICAS);
    assert_ne!(successor, 0);
    for _ in 0..14 {
        world.take(Step::Feed(successor, 9), &truth);
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

/// Where NATS takes longer for a renewal than the next one is due.
#[test]
fn a_replica_that_drains_leaves_though_each_renewal_takes_longer_than_a_second() {
    let mut now = Instant::now();
    let control = Control {
        holder: None,
        term: 1,
        settled: Revision(0),
        sure: Revision(0),
        reading: Revision::last(),
        spare: 0,
        clean: true,
        beat: 0,
        renewed: 0,
    };
    let spare = Spare { requests: 1.0, refilling: Duration::ZERO };
    let held = Held { control, revision: Revision(1), since: now, doubt: None, spare, shared: false };
    let mut projecting = Projecting::new(held, 1, now);
    now += RENEWAL;
    projecting.turn(now);
    projecting.stopping = true;
    let mut renewals = 0;
    while !projecting.projection.may_leave() {
        assert!(renewals < 3, "it renews, and does not leave");
        let Some(Beside::ToDo(Job::Renew { held, .. }, since)) = projecting.beside.pop_front() else {
            panic!("nothing is under way, and it does not leave")
        };
        renewals += 1;
        now += RENEWAL + TICK;
        let renewed = Renewal::Held(Held { since, ..held });
        projecting.projection.done(Done::Renewed(renewed, None), now);
        projecting.turn(now);
    }
    assert_eq!(renewals, 1);
}
