//! The projector of mode `Core`: writes the state of the ledger in memory to KV, in as few requests
//! as possible.
//!
//! Many changes of one task become one write. [`Schedule`] decides what is sent and when. The
//! projector adds the tasks, and the events that wait for them.

use std::sync::Arc;

use taskpipeline_contract::{Task, TaskId, TaskKey};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{enabled, error, info, warn};

use super::dead_letters::DeadLetters;
use super::ingest::{Accepted, Carried};
use super::ledger::Ledger;
use crate::dead_letters::Letter;
use crate::reason::Reason;
use crate::requests::Requests;
use crate::schedule::Request;
use crate::schedule::{Answered, Batch, Schedule, Verdict, delay_after, longest_delay};
use crate::settings::Tuning;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use taskpipeline_kv::Operation;
use taskpipeline_kv::{BulkApi, Failure, Puts};

#[cfg(test)]
#[path = "projector_tests.rs"]
mod tests;

/// The most accepted events to take in before the projector sends again.
const TAKE_IN: usize = 64;

/// The projector of mode `Core`.
pub(super) struct Projector<K> {
    tuning: Tuning,
    /// The settings after each change.
    changes: watch::Receiver<Tuning>,
    letters: DeadLetters,
    metrics: Arc<Metrics>,
    ledger: Ledger,
    schedule: Schedule,
    requests: Requests<K>,
}

impl<K: BulkApi> Projector<K> {
    pub(super) fn new(
        kv: K,
        mut changes: watch::Receiver<Tuning>,
        letters: DeadLetters,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        let tuning = changes.borrow_and_update().clone();
        // An update whose task is not in memory waits for a read, so reads share the whole budget.
        let (seed, now) = (rand::random(), Instant::now());
        let schedule = Schedule::new(&tuning, tuning.request_budget, Arc::clone(&metrics), health, seed, now);
        let requests = Requests::new(kv);
        Self { tuning, changes, letters, metrics, ledger: Ledger::default(), schedule, requests }
    }

    /// Runs until the channel is closed and everything has landed, or until the deadline. Events
    /// that have not landed by then become dead letters.
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

        while !(closed && self.ledger.carried() == 0 && self.schedule.in_flight() == 0) {
            self.wake_rested();
            self.send_what_can_be_sent();
            self.show();
            let wake_at = self.schedule.next_wake();
            tokio::select! {
                taken = accepted.recv_many(&mut buffer, TAKE_IN), if !closed && self.ledger.has_room() => {
                    closed = taken == 0;
                    buffer.drain(..).for_each(|accepted| self.take_in(accepted));
                }
                Some(reply) = self.requests.next() => {
                    match reply {
                        Ok(reply) => {
                            let answered = self.schedule.judged(reply, Instant::now());
                            self.settle(answered).await;
                        }
                        Err(error) => {
                            error!(%error, "a request to KV panicked");
                            return;
                        }
                    }
                }
                Ok(()) = self.changes.changed() => self.retune(),
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

    /// Applies changed settings. Keys that wait for a retry wait no longer than under the new
    /// settings.
    fn retune(&mut self) {
        let tuning = self.changes.borrow_and_update().clone();
        let (now, dice) = (Instant::now(), self.schedule.throw());
        self.requests.set_timeout(tuning.request_timeout);
        self.schedule.retune(&tuning, tuning.request_budget, now);
        let written = now + tuning.min_write_interval;
        let ledger = &self.ledger;
        let latest = |id: &TaskId, failed: bool| {
            let attempts = ledger.get(id).map_or(0, |entry| entry.attempts);
            let delay = tuning.retry.delay_after(attempts, dice).filter(|_| attempts > 0);
            if failed { now + delay.unwrap_or_else(|| longest_delay(&tuning, dice)) } else { written }
        };
        self.schedule.writes.bring_forward(latest);
        self.schedule.reads.bring_forward(latest);
        self.tuning = tuning;
    }

    fn take_in(&mut self, accepted: Accepted) {
        let id = self.ledger.apply(accepted);
        self.route(&id);
    }

    /// Queues a task for a write. If only KV can tell what its updates change, queues it for a read
    /// first.
    fn route(&mut self, id: &TaskId) {
        let Some(entry) = self.ledger.get_mut(id) else { return };
        if self.schedule.reads.is_in_flight(id) {
            // [`Self::learned`] decides when the answer arrives.
        } else if entry.needs_base() {
            self.schedule.reads.mark(id);
        } else {
            if self.schedule.reads.contains(id) {
                // The read is not needed any more, and its failed attempts do not count for the
                // write.
                entry.attempts = 0;
                self.schedule.reads.withdraw(id);
            }
            self.schedule.writes.mark(id);
        }
    }

    fn wake_rested(&mut self) {
        for id in self.schedule.wake_rested(Instant::now()) {
            self.ledger.forget_if_idle(&id);
        }
    }

    fn send_what_can_be_sent(&mut self) {
        while let Some(batch) = self.schedule.next_batch(true, Instant::now()) {
            match batch {
                Batch::Control(request) => self.send(request),
                Batch::Write(ids) => self.send_write(ids),
                Batch::Read(ids) => self.send(Request::Get(ids)),
            }
        }
    }

    /// Takes the values at the last moment and sends puts. Deletes wait for other deletes, unless
    /// there is nothing else.
    fn send_write(&mut self, mut ids: Vec<TaskId>) {
        let mut puts = Puts::default();
        let mut gone = Vec::new();
        while !ids.is_empty() {
            for id in ids {
                // A task without a known state is never deleted.
                let Some(entry) = self.ledger.get(&id) else {
                    self.schedule.writes.settle(&id, Instant::now());
                    continue;
                };
                match entry.visible(&id) {
                    Some(task) => puts.push(&task),
                    None => gone.push(id),
                }
            }
            let room = if puts.is_empty() { 0 } else { self.schedule.room_beside(puts.ids().len()) };
            ids = self.schedule.more(room);
        }
        if !puts.is_empty() {
            self.schedule.delete_soon(gone, Instant::now());
            self.send(Request::Put(puts));
        } else if !gone.is_empty() {
            self.send(Request::Delete(gone));
        }
    }

    fn send(&mut self, request: Request) {
        let operation = request.operation();
        self.announce(operation, request.ids());
        self.requests.send(self.schedule.begin(request));
    }

    /// Marks the events in the request, and logs them.
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
                    info!(correlation_id, operation = verb, %key, "writing");
                    info!(correlation_id, attempt, max_attempts = most, "attempt");
                }
            }
        }
    }

    async fn settle(&mut self, answered: Answered) {
        let Answered { operation, verdicts, .. } = answered;
        // One time for all keys, so that they rest together.
        let (now, dice) = (Instant::now(), self.schedule.throw());
        for (id, verdict) in verdicts {
            match verdict {
                Verdict::Landed => self.landed(operation, &id, now),
                Verdict::Read(value) => self.learned(&id, value).await,
                Verdict::TryAgain { failure, .. } => {
                    self.try_again(operation, id, &failure, now, dice).await;
                }
                Verdict::Refused(what) => self.abandon(operation, &id, Reason::RefusedByKv, &what).await,
                Verdict::Unexplained(what) => self.wait_refused(operation, &id, &what, dice),
            }
        }
    }

    fn landed(&mut self, operation: Operation, id: &TaskId, now: Instant) {
        let landed = self.ledger.take_sent(id);
        for carried in &landed {
            self.metrics.landed(now.duration_since(carried.received.taken));
        }
        say_successful(operation, id, &landed);
        self.schedule.writes.settle(id, now + self.tuning.min_write_interval);
    }

    /// Adds the value that KV has for a task with waiting updates.
    async fn learned(&mut self, id: &TaskId, value: Option<String>) {
        self.schedule.reads.settle(id, Instant::now());
        let Some(entry) = self.ledger.get_mut(id) else { return };
        entry.attempts = 0;
        say_successful(Operation::Get, id, entry.in_request());
        match value.as_deref().map(serde_json::from_str::<Task>) {
            Some(Ok(task)) => entry.join(&task),
            // A create or a delete has arrived meanwhile, so the value in KV does not matter any
            // more.
            _ if !entry.needs_base() => {}
            None => {
                for carried in self.ledger.remove(id) {
                    let correlation_id = carried.correlation_id.as_str();
                    self.metrics.updates_unknown.inc();
                    warn!(correlation_id, task_id = %id, "the task does not exist; its update changes nothing");
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
        self.schedule.writes.mark(id);
    }

    /// Counts a failed attempt of this key, and queues it after its delay.
    async fn try_again(
        &mut self,
        operation: Operation,
        id: TaskId,
        failure: &Failure,
        now: Instant,
        dice: f64,
    ) {
        let most = self.tuning.retry.max_attempts;
        let Some(entry) = self.ledger.get_mut(&id) else { return };
        entry.attempts += 1;
        let attempt = entry.attempts;
        let Some(delay) = delay_after(&self.tuning, attempt, failure, dice) else {
            self.abandon(operation, &id, Reason::RetriesExhausted, &failure.to_string()).await;
            return;
        };
        for carried in entry.in_request() {
            let correlation_id = carried.correlation_id.as_str();
            let seconds = delay.as_secs_f64();
            warn!(correlation_id, attempt, max_attempts = most, error = %failure, retry_in_seconds = seconds, "attempt failed");
        }
        self.metrics.retries.inc();
        self.schedule.queue(operation).retry(&id, now + delay);
    }

    /// Makes a refused key wait. Without proof of the cause this is not an attempt.
    fn wait_refused(&mut self, operation: Operation, id: &TaskId, what: &str, dice: f64) {
        let Some(entry) = self.ledger.get(id) else { return };
        let delay = self.schedule.wait_refused(operation, id, &self.tuning, dice, Instant::now());
        for carried in entry.in_request() {
            let (correlation_id, seconds) = (carried.correlation_id.as_str(), delay.as_secs_f64());
            warn!(correlation_id, error = %what, retry_in_seconds = seconds, "KV refused a whole request; retrying");
        }
    }

    /// Gives up the events of this key's request. Events that arrived after it was sent stay.
    async fn abandon(&mut self, operation: Operation, id: &TaskId, reason: Reason, detail: &str) {
        let attempts = self.ledger.get(id).map_or(0, |entry| entry.attempts);
        let carried = self.ledger.take_sent(id);
        let rest = Instant::now() + self.tuning.min_write_interval;
        self.schedule.queue(operation).settle(id, rest);
        if self.ledger.get(id).is_some_and(|entry| !entry.is_idle()) {
            self.route(id);
        }
        self.bury(carried, reason, detail, attempts.max(1)).await;
    }

    async fn bury(&self, carried: Vec<Carried>, reason: Reason, detail: &str, attempts: u32) {
        for carried in carried {
            let correlation_id = carried.correlation_id.as_str();
            warn!(correlation_id, attempts, reason = reason.as_str(), %detail, "dead letter");
            self.letters.send(Letter::new(carried.received, reason, detail, attempts)).await;
        }
    }

    async fn give_up(&mut self) {
        self.requests.abort();
        let left = self.ledger.take_all();
        if !left.is_empty() {
            warn!(count = left.len(), "events were not written in time and become dead letters");
            self.bury(left, Reason::Shutdown, "not written before the end of SHUTDOWN_GRACE", 0).await;
        }
    }

    fn show(&mut self) {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.events_waiting.set(gauge(self.ledger.carried()));
        self.metrics.tasks_in_memory.set(gauge(self.ledger.len()));
        self.schedule.show(Instant::now());
    }
}

fn say_successful(operation: Operation, id: &TaskId, carried: &[Carried]) {
    if !enabled!(tracing::Level::INFO) {
        return;
    }
    let key = TaskKey::new(id.clone());
    for correlation_id in carried.iter().map(|carried| carried.correlation_id.as_str()) {
        info!(correlation_id, operation = operation.verb(), %key, "written");
    }
}
