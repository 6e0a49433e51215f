//! The steps of a history, and how they are drawn.

use std::sync::Arc;

use super::bucket::Full;
use super::dice::Dice;
use super::events::Event;
use super::kv::{Fate, Verdict};
use super::net::{Net, nanos};
use super::replica::{Intake, Role};
use super::settings::{Knobs, READ_AHEAD, REPLICAS, Setting, TASKS};
use super::truth::{Message, message};
use super::world::{Command, World};
use crate::durable::control::holder::Holder;
use crate::durable::control::loan::Borrower;
use crate::durable::stream::incarnation::Source;

/// One step of a history.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Publish this many messages.
    Publish(usize),
    /// Let a replica pull at most this many events.
    Pull(usize, usize),
    /// Advance this many calls.
    Work(usize),
    /// Let the feeds of a replica read this many changes.
    Feed(usize, usize),
    /// Let KV apply a request in flight without an answer yet.
    Apply(usize),
    /// Let KV answer this many requests.
    Answer(usize),
    /// Pass this many ticks.
    Advance(usize),
    /// Stop a replica; with `in_request`, at the point at which it only has to send a request.
    Stop {
        replica: usize,
        in_request: bool,
    },
    /// Continue a replica; with `slept`, its clock was stopped too.
    Continue {
        replica: usize,
        slept: bool,
    },
    CutOff(usize),
    Reconnect(usize),
    /// Lose the answers to the next calls of a replica.
    LoseAnswers(usize, usize),
    LoseAcks(usize),
    /// Make another server the leader of the ledger's stream.
    ElectForLedger,
    ElectForEvents,
    /// Let the ledger, or the dead letters, refuse writes for this many ticks.
    FillLedger(usize),
    FillLetters(usize),
    Recreate,
    BackUp,
    Restore,
    /// Let KV give one answer to everything for this many ticks.
    Outage(usize),
    Kill(usize),
    Drain(usize),
    Retune,
    /// Let a command borrow this many requests.
    Borrow(usize),
}

/// A step, and the seed of its random parts.
#[derive(Clone, Debug)]
pub(super) struct Drawn {
    pub(super) step: Step,
    pub(super) seed: u64,
}

/// Draws a step of one kind for this replica.
type Draw = fn(usize, &mut Dice) -> Step;

/// The weight of each kind of step.
const WEIGHTS: [(u64, Draw); 24] = [
    (14, |_, dice| Step::Publish(1 + dice.below(3))),
    (12, |p, dice| Step::Pull(p, 1 + dice.below(4))),
    (18, |_, dice| Step::Work(1 + dice.below(6))),
    (12, |p, dice| Step::Feed(p, dice.below(5))),
    (3, |_, dice| Step::Apply(dice.below(8))),
    (12, |_, dice| Step::Answer(1 + dice.below(2))),
    (16, |_, dice| Step::Advance(1 + dice.below(12))),
    (2, |p, dice| Step::Stop { replica: p, in_request: dice.chance(50) }),
    (1, |p, dice| Step::Continue { replica: p, slept: dice.chance(50) }),
    (2, |p, _| Step::CutOff(p)),
    (1, |p, _| Step::Reconnect(p)),
    (3, |p, dice| Step::LoseAnswers(p, 1 + dice.below(2))),
    (2, |_, dice| Step::LoseAcks(1 + dice.below(4))),
    (2, |_, _| Step::ElectForLedger),
    (1, |_, _| Step::ElectForEvents),
    (2, |_, dice| Step::FillLedger(1 + dice.below(16))),
    (1, |_, dice| Step::FillLetters(1 + dice.below(16))),
    (2, |_, _| Step::Recreate),
    (3, |_, _| Step::BackUp),
    (3, |_, _| Step::Restore),
    (1, |_, dice| Step::Outage(1 + dice.below(20))),
    (2, |p, _| Step::Kill(p)),
    (2, |p, _| Step::Drain(p)),
    (2, |_, dice| if dice.chance(50) { Step::Retune } else { Step::Borrow(1 + dice.below(3)) }),
];

impl Drawn {
    pub(super) fn draw(setting: &Setting, dice: &mut Dice) -> Self {
        let replicas = REPLICAS + usize::from(setting.two_namespaces);
        // The index after the last one stands for the writer of the first namespace.
        let p = dice.below(2 * replicas).min(replicas);
        let mut left = dice.next() % WEIGHTS.iter().map(|(weight, _)| weight).sum::<u64>();
        let (_, draw) = WEIGHTS
            .iter()
            .find(|(weight, _)| {
                let found = left < *weight;
                left = left.saturating_sub(*weight);
                found
            })
            .unwrap_or(&WEIGHTS[0]);
        Self { step: draw(p, dice), seed: dice.next() }
    }

    /// Lists smaller steps of the same kind, for the shrinking of a history.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let counts = |n: usize, of: fn(usize) -> Step| -> Vec<Step> {
            [1, n / 2, n.saturating_sub(1)]
                .into_iter()
                .filter(|less| *less > 0 && *less < n)
                .map(of)
                .collect()
        };
        let smaller = match self.step {
            Step::Publish(n) => counts(n, Step::Publish),
            Step::Work(n) => counts(n, Step::Work),
            Step::Answer(n) => counts(n, Step::Answer),
            Step::Advance(n) => counts(n, Step::Advance),
            Step::FillLedger(n) => counts(n, Step::FillLedger),
            Step::FillLetters(n) => counts(n, Step::FillLetters),
            Step::Outage(n) => counts(n, Step::Outage),
            Step::LoseAcks(n) => counts(n, Step::LoseAcks),
            Step::Borrow(n) => counts(n, Step::Borrow),
            _ => Vec::new(),
        };
        smaller.into_iter().map(|step| Self { step, seed: self.seed }).collect()
    }
}

impl World {
    /// Resolves the index of a replica. The index after the last one stands for the writer of the first namespace.
    pub(super) fn which(&self, p: usize) -> usize {
        if p < self.replicas.len() { p } else { self.writer(0) }
    }

    /// Takes a step.
    pub(super) fn take(&mut self, drawn: &Drawn) {
        self.dice = Dice::new(drawn.seed);
        self.note(|| format!("{:?}", drawn.step));
        match drawn.step {
            Step::Publish(count) => (0..count).for_each(|_| self.publish()),
            Step::Pull(p, most) => self.pull(self.which(p), most),
            Step::Work(count) => self.work(count),
            Step::Feed(p, most) => self.feed(self.which(p), most, false),
            Step::Apply(which) => self.apply(which),
            Step::Answer(count) => (0..count).for_each(|_| self.answer_any()),
            Step::Advance(ticks) => {
                for _ in 0..ticks {
                    let pulls = self.dice.chance(30);
                    self.tick(pulls);
                }
            }
            Step::Stop { replica, in_request } => self.stop(self.which(replica), in_request),
            Step::Continue { replica, slept } => self.go_on(self.which(replica), slept),
            Step::CutOff(p) => {
                let (p, now) = (self.which(p), self.now());
                self.replicas[p].cut_off.get_or_insert(now);
                self.count("cut off");
            }
            Step::Reconnect(p) => self.reconnect(self.which(p)),
            Step::LoseAnswers(p, count) => {
                let (p, done) = (self.which(p), self.dice.chance(60));
                self.replicas[p].loses.extend(std::iter::repeat_n(done, count));
            }
            Step::LoseAcks(count) => self.acks_to_lose += count,
            Step::ElectForLedger => {
                self.count("leaders of the ledger");
                self.net.lock().unwrap().elect(&mut self.dice);
                self.look_at_controls();
            }
            Step::ElectForEvents => self.elect_for_events(),
            Step::FillLedger(ticks) => {
                let full = self.dice.pick(&[Full::NewRecords, Full::Everything]);
                let mut net = self.net.lock().unwrap();
                let until = net.now + u64::try_from(ticks).unwrap() * super::settings::TICK;
                net.bucket.full = Some((full, until));
                drop(net);
                self.count("ledger full");
            }
            Step::FillLetters(ticks) => {
                let mut net = self.net.lock().unwrap();
                net.letters_full_until = net.now + u64::try_from(ticks).unwrap() * super::settings::TICK;
            }
            Step::Recreate => self.recreate(),
            Step::BackUp => self.net.lock().unwrap().stream.back_up(),
            Step::Restore => self.restore(),
            Step::Outage(ticks) => self.break_kv(ticks),
            // A holder that sends as a former holder and dies before it can report it is beyond the guarantees.
            Step::Kill(p) if !self.replicas[self.which(p)].spoils => {
                let (p, fate) = (self.which(p), Fate::draw(&mut self.dice));
                self.count("killed");
                self.replace(p, Some(fate));
            }
            Step::Kill(_) => {}
            Step::Drain(p) => self.drain(self.which(p)),
            Step::Retune => self.retune(),
            Step::Borrow(count) => self.borrow(count),
        }
    }

    pub(super) fn publish(&mut self) {
        let n = self.dice.below(TASKS);
        let message = message(n, self.setting.poison, &mut self.dice);
        self.publish_message(&message);
    }

    /// Publishes a message.
    pub(super) fn publish_message(&mut self, message: &Message) {
        self.publish_quietly(message);
        let time = nanos(self.now()) + i64::try_from(self.truth.published).unwrap() * 1_000;
        self.truth.published(message, &message.payload.clone().into(), time);
    }

    /// Publishes a message that the truth does not record.
    pub(super) fn publish_quietly(&mut self, message: &Message) {
        let mut net = self.net.lock().unwrap();
        let time = nanos(net.now) + i64::try_from(self.truth.published).unwrap() * 1_000;
        let (subject, nth) = (message.subject, self.truth.published + 1);
        let payload = message.payload.clone().into();
        let sequence = net.stream.publish(Event { subject, payload, time, nth });
        drop(net);
        self.note(|| format!("event {nth} at {sequence}: {subject} {}", message.payload));
    }

    /// Advances this many calls, in any order.
    pub(super) fn work(&mut self, count: usize) {
        for _ in 0..count {
            let open = self.open_calls();
            if open.is_empty() || self.wrong.is_some() {
                return;
            }
            let id = open[self.dice.below(open.len())];
            self.call(id);
        }
    }

    /// Picks a namespace and one of its requests, if one exists.
    fn any_request(&mut self) -> Option<(usize, usize)> {
        let out: Vec<_> = (0..self.namespaces.len())
            .flat_map(|n| (0..self.kv(n).requests.len()).map(move |which| (n, which)))
            .collect();
        (!out.is_empty()).then(|| out[self.dice.below(out.len())])
    }

    fn apply(&mut self, _: usize) {
        let Some((n, which)) = self.any_request() else { return };
        let mut kv = self.kv(n);
        let request = &kv.requests[which];
        let poisoned = request.keys.iter().any(|(_, it)| it.as_ref().is_some_and(|it| it.contains("poison")));
        if request.lost.is_none() && request.may_apply(kv.now) && !poisoned {
            kv.apply(which, false);
        }
    }

    fn answer_any(&mut self) {
        let verdict = Verdict::draw(&mut self.dice);
        if let Some((n, which)) = self.any_request() {
            if verdict == Verdict::DailyQuota {
                self.count("daily quota");
            }
            self.answer(n, which, verdict);
        }
    }

    fn stop(&mut self, p: usize, in_request: bool) {
        if !self.replicas[p].runs() {
            return;
        }
        if in_request {
            self.feed(p, usize::MAX, true);
        }
        self.count("stopped");
        self.replicas[p].stopped = Some(self.now());
    }

    /// Makes another server the leader of the events' stream; nothing that was acked to a producer is lost.
    fn elect_for_events(&mut self) {
        self.count("leaders of the events");
        self.net.lock().unwrap().stream.forget_last_acks();
        for replica in &mut self.replicas {
            // The pulls of the replicas fail, and they check the stream again.
            let clock = replica.link.node.clock();
            if let Intake::Working(working) = &mut replica.intake {
                working.ending.get_or_insert(clock);
            }
        }
    }

    /// Deletes the stream and creates it again. Events that no replica has taken in would be lost, so this happens
    /// only if none exist.
    fn recreate(&mut self) {
        if self.net.lock().unwrap().stream.last == 0 || !self.wait_for_acks(0) {
            return;
        }
        let mut net = self.net.lock().unwrap();
        let created = nanos(net.now) + 1;
        net.stream.recreate(created);
        drop(net);
        self.count("recreated");
    }

    /// Restores the server of the stream from an older copy, which cuts its connections.
    fn restore(&mut self) {
        let Some(copied) = self.net.lock().unwrap().stream.copied() else { return };
        if !self.wait_for_acks(copied) {
            return;
        }
        self.net.lock().unwrap().stream.restore();
        self.count("restored");
        self.replicas.iter_mut().for_each(|replica| replica.connection += 1);
    }

    /// Gives replicas some time to take in the messages above this sequence, and returns whether they did.
    fn wait_for_acks(&mut self, sequence: u64) -> bool {
        for _ in 0..24 {
            if self.wrong.is_some() || self.is_taken_in_above(sequence) {
                break;
            }
            self.tick(true);
        }
        self.wrong.is_none() && self.is_taken_in_above(sequence)
    }

    /// Whether all messages above this sequence are acked to the consumer of the current incarnation.
    ///
    /// An ack to the consumer of a former incarnation does not count: an operator could not rely on it. A replica
    /// that began just before may have created that consumer again.
    fn is_taken_in_above(&self, sequence: u64) -> bool {
        let net = self.net.lock().unwrap();
        self.consumer(&net).is_some_and(|consumer| net.stream.is_acked_above(sequence, &consumer))
    }

    /// The consumer of the current incarnation, if the incarnation is recorded.
    pub(super) fn consumer(&self, net: &Net) -> Option<String> {
        let recorded = net.bucket.records.get(&self.names.source())?;
        let source: Source = serde_json::from_slice(&recorded.value).ok()?;
        (source.created == net.stream.created).then(|| self.names.consumer(source.current().incarnation))
    }

    fn break_kv(&mut self, ticks: usize) {
        let mut verdict = Verdict::draw(&mut self.dice);
        while matches!(verdict, Verdict::Landed | Verdict::Partly | Verdict::Miscounted | Verdict::DailyQuota)
        {
            verdict = Verdict::draw(&mut self.dice);
        }
        self.count("outages");
        let n = self.dice.below(self.namespaces.len());
        let mut kv = self.kv(n);
        let until = kv.now + u64::try_from(ticks).unwrap() * super::settings::TICK;
        kv.outage = Some((verdict, until));
    }

    fn drain(&mut self, p: usize) {
        let patient = self.dice.chance(70);
        let replica = &mut self.replicas[p];
        if !replica.is_connected() {
            return;
        }
        replica.draining = true;
        self.count("drained");
        // The lease has expired.
        if !patient && matches!(self.replicas[p].role, Role::Projecting(_)) {
            self.replicas[p].draining = false;
            self.release(p);
        }
    }

    fn retune(&mut self) {
        let knobs = Knobs::draw(self.setting.poison, &mut self.dice);
        let knobs = match self.dice.chance(60) {
            true => Knobs { budget: self.setting.tuning.budget, ..knobs },
            false => {
                self.count("budget changed");
                knobs
            }
        };
        for p in 0..self.replicas.len() {
            // Some replicas learn of it later.
            if self.dice.chance(80) {
                self.replicas[p].retune(knobs);
            }
        }
        self.setting.tuning = knobs;
    }

    /// Lets a command borrow requests of a namespace's budget, and send them.
    fn borrow(&mut self, count: usize) {
        let n = self.dice.below(self.namespaces.len());
        let link = self.link(0);
        let namespace = &self.namespaces[n];
        let holder = Holder {
            bucket: link.clone(),
            names: Arc::clone(&self.names),
            target: namespace.name.clone(),
            replica: format!("command-{}", link.node.uid).into(),
            memory: Some(super::settings::MEMORY),
            ahead: READ_AHEAD,
        };
        let budget = self.setting.tuning.tuning().request_budget;
        let (mut borrower, kv) = (Borrower::new(holder, budget), Arc::clone(&namespace.kv));
        let future = Box::pin(async move {
            let mut sent = 0;
            while sent < count {
                if borrower.one().await.is_ok() {
                    let mut kv = kv.lock().unwrap();
                    let now = kv.now;
                    kv.sent.push(now);
                    sent += 1;
                }
            }
        });
        self.commands.push(Command { node: Arc::clone(&link.node), future });
        self.count("commands");
    }
}
