//! The projector: brings KV to what the ledger says, in as few requests as it takes.
//!
//! It sends at once when nothing is in flight and the budget allows, and gathers what arrives while a
//! request is out; many changes of one task become one write. A key is never in two requests at once. The
//! decisions are in [`queue`], [`gate`], [`pace`] and the budget; here they meet the clock and the network.

mod gate;
mod pace;
mod queue;
mod request;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use taskpipeline_contract::{Task, TaskId, TaskKey};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, enabled, error, info, warn};

use super::dead_letters::{DeadLetters, Letter, Reason};
use super::ingest::{Accepted, Carried};
use super::ledger::Ledger;
use crate::config::Tuning;
use crate::kv::{Budget, BulkApi, Failure, MAX_KEYS_PER_READ};
use crate::telemetry::health::{Health, KvState};
use crate::telemetry::metrics::{Metrics, Operation};

use self::gate::Gate;
use self::queue::KeyQueue;
use self::request::{Answer, KeyOutcome, Request};

/// How many accepted events are taken in between two looks at what can be sent.
const TAKE_IN: usize = 64;

/// Keys of a request that has to be sent as it is: one half of a refused one, or what was left over when a
/// batch held both puts and deletes. They are in flight as far as their queue knows.
enum Set {
    Write(Vec<TaskId>),
    Read(Vec<TaskId>),
}

/// See the module's head.
pub(super) struct Projector<K> {
    kv: K,
    tuning: Tuning,
    letters: DeadLetters,
    metrics: Arc<Metrics>,
    health: Arc<Health>,

    ledger: Ledger,
    writes: KeyQueue,
    reads: KeyQueue,
    set_aside: VecDeque<Set>,
    budget: Budget,
    gate: Gate,
    requests: JoinSet<(Answer, Duration)>,
    writes_in_flight: usize,
    reads_in_flight: usize,
    /// When time alone makes a request possible that is not now.
    wake_at: Option<Instant>,
}

impl<K: BulkApi> Projector<K> {
    pub(super) fn new(
        kv: K,
        tuning: Tuning,
        letters: DeadLetters,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            budget: Budget::new(tuning.request_budget, Instant::now()),
            kv,
            tuning,
            letters,
            metrics,
            health,
            ledger: Ledger::default(),
            writes: KeyQueue::default(),
            reads: KeyQueue::default(),
            set_aside: VecDeque::new(),
            gate: Gate::default(),
            requests: JoinSet::new(),
            writes_in_flight: 0,
            reads_in_flight: 0,
            wake_at: None,
        }
    }

    /// Runs until the channel is closed and everything has landed, or until the deadline; what has not
    /// landed by then becomes dead letters.
    pub(super) async fn run(
        mut self,
        mut accepted: mpsc::Receiver<Accepted>,
        mut deadline: watch::Receiver<Option<Instant>>,
    ) {
        let mut buffer = Vec::with_capacity(TAKE_IN);
        let mut closed = false;
        let out_of_time = async move {
            match deadline.wait_for(Option::is_some).await.map(|at| *at) {
                Ok(Some(at)) => tokio::time::sleep_until(at).await,
                _ => std::future::pending().await,
            }
        };
        tokio::pin!(out_of_time);

        while !(closed && self.ledger.carried() == 0 && self.requests.is_empty()) {
            self.wake_rested();
            self.send_what_can_be_sent();
            self.show();
            let wake_at = self.next_wake();
            tokio::select! {
                taken = accepted.recv_many(&mut buffer, TAKE_IN), if !closed && self.ledger.has_room() => {
                    closed = taken == 0;
                    buffer.drain(..).for_each(|accepted| self.take_in(accepted));
                }
                Some(done) = self.requests.join_next(), if !self.requests.is_empty() => {
                    match done {
                        Ok((answer, took)) => self.settle(answer, took).await,
                        // A request cannot panic; if one did, its keys would be in flight for ever.
                        Err(error) => {
                            error!("a request to KV fell over: {error}");
                            return;
                        }
                    }
                }
                () = async { tokio::time::sleep_until(wake_at.unwrap_or_else(Instant::now)).await },
                    if wake_at.is_some() => {}
                () = &mut out_of_time => {
                    self.give_up().await;
                    break;
                }
            }
        }
        self.show();
    }

    fn take_in(&mut self, accepted: Accepted) {
        let id = self.ledger.apply(accepted);
        self.route(&id);
    }

    /// Queues a task that has something to be written: for a read first where only KV can say what its
    /// updates change.
    fn route(&mut self, id: &TaskId) {
        let Some(entry) = self.ledger.get_mut(id) else { return };
        if self.reads.is_in_flight(id) {
            // The answer decides, in `learned`.
        } else if entry.state.needs_base() {
            self.reads.mark(id);
        } else {
            if self.reads.contains(id) {
                // The read is not needed any more, and its failed attempts are not the write's.
                entry.attempts = 0;
                self.reads.withdraw(id);
            }
            self.writes.mark(id);
        }
    }

    fn wake_rested(&mut self) {
        let now = Instant::now();
        let rested = [self.writes.wake(now), self.reads.wake(now)];
        for id in rested.iter().flatten() {
            if !self.writes.contains(id) && !self.reads.contains(id) {
                self.ledger.forget_if_idle(id);
            }
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        [self.wake_at, self.writes.next_wake(), self.reads.next_wake()].into_iter().flatten().min()
    }

    fn send_what_can_be_sent(&mut self) {
        self.wake_at = None;
        loop {
            let now = Instant::now();
            let full = self.tuning.max_keys;
            let write = pace::worth_sending(self.writes.ready(), self.writes_in_flight, full);
            let read = pace::worth_sending(self.reads.ready(), self.reads_in_flight, MAX_KEYS_PER_READ);
            let aside = !self.set_aside.is_empty() && pace::has_place(self.requests.len());
            if !aside && !write && !read {
                return;
            }
            if let Err(until) = self.gate.admits(self.requests.len(), now) {
                self.wake_at = until;
                return;
            }
            if let Err(until) = self.budget.take(now) {
                self.wake_at = Some(until);
                return;
            }
            let set = match aside.then(|| self.set_aside.pop_front()).flatten() {
                Some(set) => set,
                // Taking turns: neither a flood of creates nor one of updates keeps the other waiting.
                None if read && (!write || self.reads_in_flight == 0) => {
                    Set::Read(self.reads.take(MAX_KEYS_PER_READ))
                }
                None => Set::Write(self.writes.take(full)),
            };
            match set {
                Set::Write(ids) => self.send_write(ids),
                Set::Read(ids) => self.send(Request::Get(ids)),
            }
        }
    }

    /// Reads the values now, at the last moment, and sends puts or deletes; where there are both, the
    /// deletes go next.
    fn send_write(&mut self, ids: Vec<TaskId>) {
        let mut tasks: Vec<Task> = Vec::with_capacity(ids.len());
        let mut gone = Vec::new();
        for id in ids {
            // Nothing is ever deleted because nothing is known of it.
            let Some(entry) = self.ledger.get(&id) else {
                self.writes.settle(&id, Instant::now());
                continue;
            };
            match entry.state.visible(&id) {
                Some(task) => tasks.push(task),
                None => gone.push(id),
            }
        }
        match (tasks.is_empty(), gone.is_empty()) {
            (true, true) => {}
            (true, false) => self.send(Request::Delete(gone)),
            (false, true) => self.send(Request::Put(tasks)),
            (false, false) => {
                self.set_aside.push_front(Set::Write(gone));
                self.send(Request::Put(tasks));
            }
        }
    }

    fn send(&mut self, request: Request) {
        let operation = request.operation();
        self.announce(operation, &request.ids());
        match operation {
            Operation::Get => self.reads_in_flight += 1,
            Operation::Put | Operation::Delete => self.writes_in_flight += 1,
        }
        let kv = self.kv.clone();
        self.requests.spawn(async move {
            let started = Instant::now();
            let answer = request.send(kv).await;
            (answer, started.elapsed())
        });
    }

    /// Notes which events the request carries, and says so.
    fn announce(&mut self, operation: Operation, ids: &[TaskId]) {
        let verb = operation.verb();
        let most = self.tuning.retry.max_attempts;
        let shown = enabled!(tracing::Level::INFO);
        for id in ids {
            let Some(entry) = self.ledger.get_mut(id) else { continue };
            let attempt = entry.attempts + 1;
            let carried = entry.send();
            if shown {
                let key = TaskKey::new(id.clone());
                for correlation_id in carried.iter().map(|carried| carried.correlation_id.as_str()) {
                    info!(correlation_id, %key, "{verb} {key}");
                    info!(correlation_id, %key, attempt, "Attempt {attempt}/{most}");
                }
            }
        }
    }

    async fn settle(&mut self, answer: Answer, took: Duration) {
        let Answer { operation, ids, result } = answer;
        match operation {
            Operation::Get => self.reads_in_flight -= 1,
            Operation::Put | Operation::Delete => self.writes_in_flight -= 1,
        }
        self.metrics.request(operation, ids.len(), result.as_ref().err(), took);
        self.gate.learn(result.as_ref().err(), Instant::now());
        match result {
            Ok(outcomes) => {
                self.health.set_kv(KvState::Reachable);
                self.settle_each(operation, ids, outcomes).await;
            }
            Err(failure) => self.settle_failure(operation, ids, failure).await,
        }
    }

    async fn settle_each(&mut self, operation: Operation, ids: Vec<TaskId>, outcomes: Vec<KeyOutcome>) {
        let mut not_written = Vec::new();
        for (id, outcome) in ids.into_iter().zip(outcomes) {
            match outcome {
                KeyOutcome::Landed => self.landed(operation, &id),
                KeyOutcome::NotWritten => not_written.push(id),
                KeyOutcome::Read(value) => self.learned(&id, value).await,
            }
        }
        if !not_written.is_empty() {
            let failure = Failure::Transient("KV names this key as not written".to_owned());
            self.try_again(operation, not_written, &failure).await;
        }
    }

    fn landed(&mut self, operation: Operation, id: &TaskId) {
        let landed = self.ledger.take_sent(id);
        for carried in &landed {
            self.metrics.landed(carried.received.taken.elapsed());
        }
        say_successful(operation, id, &landed);
        self.writes.settle(id, Instant::now() + self.tuning.min_write_interval);
    }

    /// KV has said what it knows of a task that updates are waiting for.
    async fn learned(&mut self, id: &TaskId, value: Option<String>) {
        self.reads.settle(id, Instant::now());
        let Some(entry) = self.ledger.get_mut(id) else { return };
        entry.attempts = 0;
        say_successful(Operation::Get, id, entry.in_request());
        match value.as_deref().map(serde_json::from_str::<Task>) {
            Some(Ok(task)) => entry.state.join(&task),
            // A create or a delete has come meanwhile, and what KV holds no longer matters.
            _ if !entry.state.needs_base() => {}
            None => {
                for carried in self.ledger.remove(id) {
                    let correlation_id = carried.correlation_id.as_str();
                    self.metrics.updates_unknown.inc();
                    warn!(correlation_id, "The task tasks:{id} does not exist; its update changes nothing");
                }
                return;
            }
            Some(Err(error)) => {
                let detail = format!("the value of tasks:{id} in KV is not a task: {error}");
                let carried = self.ledger.remove(id);
                self.bury(carried, Reason::UnreadableInKv, &detail, 1).await;
                return;
            }
        }
        self.writes.mark(id);
    }

    async fn settle_failure(&mut self, operation: Operation, ids: Vec<TaskId>, failure: Failure) {
        match &failure {
            Failure::Transient(_) | Failure::Throttled(_) => {
                self.health.set_kv(KvState::Failing(failure.to_string()));
                self.try_again(operation, ids, &failure).await;
            }
            Failure::Config(what) => {
                let now = Instant::now();
                if self.gate.may_report(now) {
                    warn!("KV cannot be used: {what}. Events wait, and it is tried again every half minute");
                }
                self.health.set_kv(KvState::Misconfigured(what.clone()));
                ids.iter().for_each(|id| self.queue(operation).retry(id, now));
            }
            Failure::Refused(what) if ids.len() > 1 => {
                debug!("{} keys refused together ({what}): trying halves", ids.len());
                let mut first = ids;
                let second = first.split_off(first.len() / 2);
                for half in [first, second] {
                    self.set_aside.push_back(match operation {
                        Operation::Get => Set::Read(half),
                        Operation::Put | Operation::Delete => Set::Write(half),
                    });
                }
            }
            Failure::Refused(what) => {
                for id in ids {
                    self.abandon(operation, &id, Reason::RefusedByKv, what).await;
                }
            }
        }
    }

    /// One more failed attempt for each of these keys, with the delay that belongs to it.
    async fn try_again(&mut self, operation: Operation, ids: Vec<TaskId>, failure: &Failure) {
        let now = Instant::now();
        // One throw for all: what failed together comes back together, in one request.
        let dice = rand::random();
        let least = match failure {
            Failure::Throttled(wait) => *wait,
            _ => Duration::ZERO,
        };
        let most = self.tuning.retry.max_attempts;
        for id in ids {
            let Some(entry) = self.ledger.get_mut(&id) else { continue };
            entry.attempts += 1;
            let attempt = entry.attempts;
            let Some(delay) = self.tuning.retry.delay_after(attempt, dice) else {
                self.abandon(operation, &id, Reason::AttemptsUsedUp, &failure.to_string()).await;
                continue;
            };
            let delay = delay.max(least);
            for carried in entry.in_request() {
                let correlation_id = carried.correlation_id.as_str();
                let seconds = delay.as_secs_f64();
                warn!(
                    correlation_id,
                    attempt, "Attempt {attempt}/{most} failed: {failure}; next in {seconds:.1} s"
                );
            }
            self.metrics.retries.inc();
            self.queue(operation).retry(&id, now + delay);
        }
    }

    /// The events of this key's request are given up. Those that came after it was sent go on.
    async fn abandon(&mut self, operation: Operation, id: &TaskId, reason: Reason, detail: &str) {
        let attempts = self.ledger.get(id).map_or(0, |entry| entry.attempts);
        let carried = self.ledger.take_sent(id);
        let rest = Instant::now() + self.tuning.min_write_interval;
        self.queue(operation).settle(id, rest);
        if self.ledger.get(id).is_some_and(|entry| !entry.is_idle()) {
            self.route(id);
        }
        self.bury(carried, reason, detail, attempts.max(1)).await;
    }

    async fn bury(&self, carried: Vec<Carried>, reason: Reason, detail: &str, attempts: u32) {
        for carried in carried {
            let correlation_id = carried.correlation_id.as_str();
            warn!(correlation_id, "Dead letter after {attempts} attempts ({}): {detail}", reason.as_str());
            self.letters.send(Letter::unwritable(carried, reason, detail, attempts)).await;
        }
    }

    async fn give_up(&mut self) {
        self.requests.abort_all();
        let left = self.ledger.take_all();
        if !left.is_empty() {
            warn!("{} events could not be written in time and become dead letters", left.len());
            self.bury(left, Reason::Shutdown, "not written before the end of SHUTDOWN_GRACE", 0).await;
        }
    }

    fn queue(&mut self, operation: Operation) -> &mut KeyQueue {
        match operation {
            Operation::Get => &mut self.reads,
            Operation::Put | Operation::Delete => &mut self.writes,
        }
    }

    fn show(&mut self) {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.events_waiting.set(gauge(self.ledger.carried()));
        self.metrics.tasks_in_memory.set(gauge(self.ledger.len()));
        self.metrics.requests_in_flight.set(gauge(self.requests.len()));
        self.metrics.budget_available.set(self.budget.available(Instant::now()));
    }
}

fn say_successful(operation: Operation, id: &TaskId, carried: &[Carried]) {
    if !enabled!(tracing::Level::INFO) {
        return;
    }
    let key = TaskKey::new(id.clone());
    for correlation_id in carried.iter().map(|carried| carried.correlation_id.as_str()) {
        info!(correlation_id, %key, "{} {key} successful", operation.verb());
    }
}
