//! NATS in the world, and as each process sees it through the traits of the shipped code.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use tokio::time::Instant;

use super::bucket::{Bucket, no_responders};
use super::calls::{Answer, Ask, Call, Calls, Said, Stage, Stamped};
use super::dice::Dice;
use super::events::{Ack, Stream};
use super::settings::ACK_WAIT;
use crate::dead_letters::Letter;
use crate::durable::bucket::lanes::{self, Write};
use crate::durable::bucket::records::Records;
use crate::durable::bucket::{ReadError, Revision, Stored, WriteError};
use crate::durable::clock::Clock;
use crate::durable::control::register::Register;
use crate::durable::dead_letters::LetterError;
use crate::durable::intake::pending::Acknowledge;
use crate::durable::jetstream::ANSWER;
use crate::durable::ledger::store::{LetterBox, Outcomes, Store};
use crate::durable::names::Names;
use crate::durable::stream::agreement::EventStream;
use crate::durable::stream::error::SessionError;
use crate::durable::stream::incarnation::{Life, Present};
use crate::durable::stream::subscription;

/// The time of day at the start of the world, in ms since 1970.
pub(super) const BEGINNING: u64 = 1_800_000_000_000;

/// The instant at which all clocks begin.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Converts ms of a clock to an instant.
pub(super) fn moment(ms: u64) -> Instant {
    *EPOCH + Duration::from_millis(ms)
}

/// The simulated NATS.
pub(super) struct Net {
    /// The time since the start of the world, in ms.
    pub(super) now: u64,
    pub(super) calls: Calls,
    pub(super) bucket: Bucket,
    pub(super) stream: Stream,
    pub(super) letters: Vec<Stamped>,
    /// The time until which the stream of the dead letters refuses letters.
    pub(super) letters_full_until: u64,
    pub(super) acks: Vec<Ack>,
    clustered: bool,
}

impl Net {
    pub(super) fn new(names: &Arc<Names>, clustered: bool) -> Self {
        Self {
            now: 0,
            calls: Calls::default(),
            bucket: Bucket::new(Arc::clone(names), clustered),
            stream: Stream::new(nanos(0)),
            letters: Vec::new(),
            letters_full_until: 0,
            acks: Vec::new(),
            clustered,
        }
    }

    /// Advances a call: NATS answers it, or the leader accepts its write. Returns whether the call has ended.
    ///
    /// If `late`, a replica of the stream answers that is behind.
    pub(super) fn step(&mut self, id: u64, late: bool) -> bool {
        let Some(mut call) = self.calls.open.remove(&id) else { return true };
        let said = match (&call.ask, call.stage) {
            (Ask::Write(write), Stage::Proposed) => Some(Said::Reply(self.bucket.commit(write, self.now))),
            (Ask::Write(write), Stage::Out) => self.bucket.take(write, self.now).map(Said::Reply),
            _ => Some(self.said(&call.ask, late)),
        };
        match said {
            Some(said) => {
                call.slot.fill(said);
                true
            }
            None => {
                call.stage = Stage::Proposed;
                self.calls.open.insert(id, call);
                false
            }
        }
    }

    /// Carries out a call or not, without an answer.
    pub(super) fn silence(&mut self, id: u64, done: bool) {
        let Some(mut call) = self.calls.open.remove(&id) else { return };
        let patience = u64::try_from(ANSWER.as_millis()).unwrap();
        match (&call.ask, call.stage, done) {
            (Ask::Write(write), Stage::Proposed, true) => drop(self.bucket.commit(write, self.now)),
            (Ask::Write(write), Stage::Proposed, false) => self.bucket.drop_proposed(&write.subject),
            (Ask::Write(write), Stage::Out, true) => {
                let refused = self.bucket.take(write, self.now);
                if refused.is_none() {
                    self.bucket.commit(write, self.now);
                }
            }
            (_, Stage::Out, true) => drop(self.said(&call.ask, false)),
            _ => {}
        }
        call.stage = Stage::Silent(call.since + patience);
        self.calls.open.insert(id, call);
    }

    /// Makes processes give up that have waited too long for an answer. For writes in flight, `on_its_way` returns
    /// whether they stay in flight.
    pub(super) fn give_up(&mut self, mut on_its_way: impl FnMut() -> bool) {
        let now = self.now;
        let patience = u64::try_from(ANSWER.as_millis()).unwrap();
        let is_over = |call: &Call| match call.stage {
            Stage::Silent(until) => until <= now,
            Stage::Out | Stage::Proposed => {
                !call.ask.is_sleep() && call.since + patience <= now && call.slot.is_awaited()
            }
        };
        let over: Vec<u64> =
            self.calls.open.iter().filter(|(_, call)| is_over(call)).map(|(id, _)| *id).collect();
        for id in over {
            let Some(call) = self.calls.open.get(&id) else { continue };
            call.slot.fill(Said::Silence);
            let stays = matches!((&call.ask, call.stage), (Ask::Write(_), Stage::Out)) && on_its_way();
            if !stays {
                self.drop_call(id);
            }
        }
    }

    /// Loses a call on its way to NATS.
    pub(super) fn drop_call(&mut self, id: u64) {
        if let Some(Call { ask: Ask::Write(write), stage: Stage::Proposed, .. }) = self.calls.open.remove(&id)
        {
            self.bucket.drop_proposed(&write.subject);
        }
    }

    /// Makes another server the leader of the bucket's stream. Calls in flight are done or not without an answer, or
    /// get the error that no leader exists.
    pub(super) fn elect(&mut self, dice: &mut Dice) {
        let touched: Vec<u64> =
            self.calls.open.iter().filter(|(_, call)| !call.ask.is_sleep()).map(|(id, _)| *id).collect();
        for id in touched {
            let Some(call) = self.calls.open.get(&id) else { continue };
            match (&call.ask, call.stage) {
                (_, Stage::Silent(_)) => {}
                (Ask::Write(_), Stage::Out) if dice.chance(30) => {
                    call.slot.fill(Said::Reply(no_responders()));
                    self.drop_call(id);
                }
                (Ask::Write(_), _) => self.silence(id, dice.chance(50)),
                _ if dice.chance(50) => self.silence(id, false),
                _ => {}
            }
        }
        if self.clustered {
            self.bucket.not_ready_until = self.now + 600;
        }
    }

    fn said(&mut self, ask: &Ask, late: bool) -> Said {
        match ask {
            Ask::Get(subject) => Said::Stored(self.bucket.get(subject)),
            Ask::GetAt(revision) => {
                assert_ne!(revision.0, 0, "no record has this revision");
                Said::Stored(self.bucket.get_at(*revision))
            }
            Ask::GetMany(subjects) => {
                let found = subjects.iter().filter_map(|subject| match late && self.clustered {
                    true => self.bucket.get_late(subject),
                    false => self.bucket.get(subject),
                });
                Said::Many(found.collect())
            }
            Ask::All(subjects) => Said::Many(self.bucket.all(subjects)),
            Ask::Newest => Said::Newest(self.bucket.newest),
            Ask::Letter(letter) => {
                let has_room = self.letters_full_until <= self.now;
                if has_room && !self.letters.iter().any(|known| known.id == letter.id) {
                    self.letters.push(letter.clone());
                }
                Said::Letter(has_room)
            }
            Ask::Present => Said::Present(self.stream.present()),
            Ask::TimeAt(sequence) => {
                // nats-server returns a bad request.
                assert_ne!(*sequence, 0, "no message has this sequence");
                Said::Time(self.stream.events.get(sequence).map(|event| event.time))
            }
            Ask::NextFrom(sequence) => {
                let next = self.stream.events.range(sequence..).next();
                Said::Next(next.map(|(sequence, event)| (*sequence, event.time)))
            }
            Ask::AckFloor(name) => Said::Floor(self.stream.ack_floor(name, self.clustered)),
            Ask::Consumer(config) => Said::Consumer(self.stream.consumer(config)),
            Ask::Consumers => Said::Names(self.stream.consumers()),
            Ask::DeleteConsumer(name) => {
                self.stream.delete_consumer(name);
                Said::Done
            }
            Ask::Write(_) | Ask::Sleep(_) => unreachable!("done elsewhere"),
        }
    }
}

/// Converts a time of the world to the format of NATS, in ns since 1970.
pub(super) fn nanos(ms: u64) -> i64 {
    i64::try_from((BEGINNING + ms) * 1_000_000).unwrap()
}

/// A process and its clocks.
pub(super) struct Node {
    pub(super) uid: u64,
    /// The monotonic clock, in ms.
    clock: AtomicU64,
    /// The time of day, in ms since 1970.
    wall: AtomicU64,
    dice: Mutex<Dice>,
}

impl Node {
    pub(super) fn new(uid: u64, clock: u64, now: u64) -> Arc<Self> {
        // Each process has a different time of day.
        let wall = AtomicU64::new(BEGINNING + now + uid % 3 * 400);
        Arc::new(Self { uid, clock: AtomicU64::new(clock), wall, dice: Mutex::new(Dice::new(uid)) })
    }

    pub(super) fn pass(&self, time: u64, slept: bool) {
        self.wall.fetch_add(time, Ordering::Relaxed);
        if !slept {
            self.clock.fetch_add(time, Ordering::Relaxed);
        }
    }

    pub(super) fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub(super) fn wall(&self) -> i64 {
        i64::try_from(self.wall.load(Ordering::Relaxed)).unwrap()
    }

    pub(super) fn now(&self) -> Instant {
        moment(self.clock())
    }
}

/// NATS as one process sees it.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) net: Arc<Mutex<Net>>,
    pub(super) node: Arc<Node>,
    pub(super) names: Arc<Names>,
}

impl Link {
    pub(super) fn net(&self) -> MutexGuard<'_, Net> {
        self.net.lock().unwrap()
    }

    fn ask(&self, ask: Ask) -> Answer {
        let mut net = self.net();
        let now = net.now;
        net.calls.make(self.node.uid, ask, now)
    }

    async fn read(&self, ask: Ask) -> Result<Said, ReadError> {
        match self.ask(ask).await {
            Said::Silence => Err(ReadError("no answer within 5 s".to_owned())),
            said => Ok(said),
        }
    }

    async fn look(&self, ask: Ask) -> Result<Said, SessionError> {
        self.read(ask).await.map_err(SessionError::from)
    }

    fn written(&self, said: &Said) -> Result<Revision, WriteError> {
        match said {
            Said::Reply(message) => lanes::read(message, &self.names.ledger_stream),
            _ => Err(lanes::unanswered()),
        }
    }
}

impl Clock for Link {
    fn now(&self) -> Instant {
        self.node.now()
    }

    fn wall(&self) -> i64 {
        self.node.wall()
    }

    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send {
        let time = u64::try_from(time.as_millis()).unwrap().max(1);
        let answer = self.ask(Ask::Sleep(self.node.clock() + time));
        async move {
            answer.await;
        }
    }

    fn dice(&self) -> f64 {
        self.node.dice.lock().unwrap().unit()
    }
}

impl Records for Link {
    async fn get(&self, subject: &str) -> Result<Option<Stored>, ReadError> {
        match self.read(Ask::Get(subject.to_owned())).await? {
            Said::Stored(found) => Ok(found),
            _ => unreachable!("another answer"),
        }
    }

    async fn compare_and_set(
        &self,
        subject: String,
        value: Vec<u8>,
        expected: Revision,
        time_to_live: Option<Duration>,
    ) -> Result<Revision, WriteError> {
        let write = Write { subject, value, expected: Some(expected), time_to_live };
        self.written(&self.ask(Ask::Write(write)).await)
    }
}

impl Register for Link {
    async fn all(&self, subjects: &str) -> Result<Vec<Stored>, ReadError> {
        match self.read(Ask::All(subjects.to_owned())).await? {
            Said::Many(found) => Ok(found),
            _ => unreachable!("another answer"),
        }
    }

    async fn newest(&self) -> Result<Revision, ReadError> {
        match self.read(Ask::Newest).await? {
            Said::Newest(revision) => Ok(revision),
            _ => unreachable!("another answer"),
        }
    }
}

impl Store for Link {
    async fn get_at(&self, revision: Revision) -> Result<Option<Stored>, ReadError> {
        match self.read(Ask::GetAt(revision)).await? {
            Said::Stored(found) => Ok(found),
            _ => unreachable!("another answer"),
        }
    }

    async fn get_many(&self, subjects: &[String]) -> Result<Vec<Stored>, ReadError> {
        match self.read(Ask::GetMany(subjects.to_vec())).await? {
            Said::Many(found) => Ok(found),
            _ => unreachable!("another answer"),
        }
    }

    async fn each<T: Send>(
        &self,
        writes: impl Iterator<Item = (T, Result<Write, WriteError>)> + Send,
    ) -> Result<Outcomes<T>, WriteError> {
        // All requests are sent before the first answer is awaited.
        let sent: Vec<_> =
            writes.map(|(what, write)| (what, write.map(|write| self.ask(Ask::Write(write))))).collect();
        let mut outcomes = Vec::with_capacity(sent.len());
        for (what, sent) in sent {
            let outcome = match sent {
                Ok(answer) => self.written(&answer.await),
                Err(error) => Err(error),
            };
            outcomes.push((what, outcome));
        }
        Ok(outcomes)
    }
}

impl LetterBox for Link {
    async fn store(&self, letter: &Letter) -> Result<(), LetterError> {
        let stamped = Stamped {
            id: letter.id.clone(),
            reason: letter.reason,
            task: letter.origin.task_id.as_ref().map(|id| id.as_str().to_owned()),
            payload: letter.payload.clone(),
        };
        match self.ask(Ask::Letter(stamped)).await {
            Said::Letter(true) => Ok(()),
            _ => Err(LetterError {
                stream: self.names.dead_letter_stream.clone(),
                reason: "no room, or no answer".to_owned(),
            }),
        }
    }
}

impl EventStream for Link {
    /// The name of a consumer.
    type Consumer = Arc<str>;

    async fn present(&self) -> Result<Present, SessionError> {
        match self.look(Ask::Present).await? {
            Said::Present(present) => Ok(present),
            _ => unreachable!("another answer"),
        }
    }

    async fn time_at(&self, sequence: u64) -> Result<Option<i64>, SessionError> {
        match self.look(Ask::TimeAt(sequence)).await? {
            Said::Time(time) => Ok(time),
            _ => unreachable!("another answer"),
        }
    }

    async fn next(&self, sequence: u64) -> Result<Option<(u64, i64)>, SessionError> {
        match self.look(Ask::NextFrom(sequence)).await? {
            Said::Next(next) => Ok(next),
            _ => unreachable!("another answer"),
        }
    }

    async fn ack_floor(&self, consumer: &str) -> Option<u64> {
        match self.ask(Ask::AckFloor(consumer.to_owned())).await {
            Said::Floor(floor) => floor,
            _ => None,
        }
    }

    async fn consumer(&self, life: Life) -> Result<(Arc<str>, bool), SessionError> {
        let config = subscription::wanted(&self.names, life, Vec::new(), ACK_WAIT);
        match self.look(Ask::Consumer(Box::new(config))).await? {
            Said::Consumer(made) => Ok((self.names.consumer(life.incarnation).into(), made)),
            _ => unreachable!("another answer"),
        }
    }

    async fn consumers(&self) -> Result<Vec<String>, SessionError> {
        match self.look(Ask::Consumers).await? {
            Said::Names(names) => Ok(names),
            _ => unreachable!("another answer"),
        }
    }

    async fn delete_consumer(&self, name: &str) {
        self.ask(Ask::DeleteConsumer(name.to_owned())).await;
    }
}

/// Sends the answer to one delivery.
pub(super) struct Acking {
    pub(super) link: Link,
    pub(super) consumer: Arc<str>,
    pub(super) sequence: u64,
}

impl Acknowledge for Acking {
    async fn answer(&self, kind: AckKind) -> Result<(), String> {
        let (owner, consumer, sequence) = (self.link.node.uid, Arc::clone(&self.consumer), self.sequence);
        self.link.net().acks.push(Ack { owner, consumer, sequence, kind });
        Ok(())
    }
}
