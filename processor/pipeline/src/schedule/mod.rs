//! Decides which keys go into which request to KV, when, and what an answer means for each key. The
//! projectors of both modes use it.
//!
//! Pure: it takes the time and the answers as arguments and sends nothing; [`super::requests`]
//! sends. It does not know the value of any task, nor any retry policy: its owner passes both.
//!
//! A request is due at once if none is in flight and the budget allows it. While a request is in
//! flight, keys gather for the next one. A key is never in two requests at once.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod answers;
mod blame;
mod gate;
mod pace;
mod queue;
mod request;
mod size;
mod suspects;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use taskpipeline_contract::TaskId;
use tokio::time::Instant;

use crate::settings::Tuning;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use taskpipeline_kv::Operation;
use taskpipeline_kv::{Budget, Failure, MAX_KEYS_PER_READ, Others, RequestBudget, Spare};

pub(crate) use self::answers::{Answered, Verdict};
pub(crate) use self::blame::AttemptId;
use self::blame::{Blame, Patience};
use self::gate::Gate;
use self::pace::{Situation, Worth, patience, spacing};
use self::queue::KeyQueue;
pub(crate) use self::request::{Answer, Flight, KeyOutcome, Reply, Request};
use self::size::BatchSize;
use self::suspects::Suspects;

/// The retry delay if the policy has none.
const SHORTEST: Duration = Duration::from_secs(1);

/// The keys of the next request. Their queue counts them as in flight.
pub(super) enum Batch {
    /// Keys to write, or to delete if their task is gone.
    Write(Vec<TaskId>),
    /// Keys to read.
    Read(Vec<TaskId>),
    /// A request about no task, which KV has no reason to refuse.
    Control(Request),
}

/// A request that follows from the refusal of another.
enum Aside {
    /// Some of the refused keys.
    Batch(Batch),
    /// A control: a request that KV has no reason to refuse.
    Control,
}

/// The keys that wait, and all that decides when they are sent.
pub(super) struct Schedule {
    dice: StdRng,
    size: BatchSize,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    pub(super) writes: KeyQueue,
    pub(super) reads: KeyQueue,
    /// The requests that follow from refused ones, with their attempts.
    set_aside: VecDeque<(AttemptId, Aside)>,
    /// One id that no task has. KV has no reason to refuse its delete.
    control: Vec<TaskId>,
    blame: Blame,
    /// The attempt of the last batch that was taken, if the batch follows from a refusal.
    attempt: Option<AttemptId>,
    suspects: Suspects,
    /// Keys that were taken to be written and turned out to be deletes. They wait for others, to
    /// fill a request.
    deletes: Vec<TaskId>,
    /// Since when the first of `deletes` waits.
    deletes_since: Instant,
    request_budget: RequestBudget,
    budget: Budget,
    /// The part of the budget that reads may use.
    read_budget: Budget,
    gate: Gate,
    /// Detects requests of other clients with the same token.
    others: Others,
    last_sent: Option<Instant>,
    /// Counts the requests, so that kinds of requests can take turns.
    turn: u32,
    writes_in_flight: usize,
    reads_in_flight: usize,
    /// When a request becomes possible without any event, or `None` if time alone does not change
    /// that.
    wake_at: Option<Instant>,
    /// Whether memory has room for more keys than are queued here.
    more_may_come: bool,
}

impl Schedule {
    /// Starts with an unknown rest of the budget.
    ///
    /// `reads` is the part of the budget for reads. All random values follow from `seed`.
    pub(super) fn new(
        tuning: &Tuning,
        reads: RequestBudget,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        seed: u64,
        now: Instant,
    ) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        Self {
            request_budget: tuning.request_budget,
            budget: Budget::unknown(tuning.request_budget, now),
            read_budget: Budget::new(reads, now),
            size: BatchSize::new(tuning.max_keys.get().into()),
            metrics,
            health,
            writes: KeyQueue::default(),
            reads: KeyQueue::default(),
            set_aside: VecDeque::new(),
            control: control(dice.random()),
            blame: Blame::default(),
            attempt: None,
            suspects: Suspects::default(),
            deletes: Vec::new(),
            deletes_since: now,
            gate: Gate::default(),
            others: Others::default(),
            last_sent: None,
            turn: 0,
            writes_in_flight: 0,
            reads_in_flight: 0,
            wake_at: None,
            more_may_come: true,
            dice,
        }
    }

    /// A random number in 0.0..1.0.
    pub(super) fn throw(&mut self) -> f64 {
        self.dice.random()
    }

    /// Applies new settings; `reads` is the part of their budget for reads.
    pub(super) fn retune(&mut self, tuning: &Tuning, reads: RequestBudget, now: Instant) {
        if tuning.request_budget != self.request_budget {
            self.request_budget = tuning.request_budget;
            self.budget.change(tuning.request_budget, now);
            self.read_budget.change(reads, now);
        }
        self.size.limit(tuning.max_keys.get().into());
    }

    /// Moves the keys whose rest is over. Returns those that a queue has forgotten.
    pub(super) fn wake(&mut self, now: Instant) -> Vec<TaskId> {
        let mut rested = self.writes.wake(now);
        rested.append(&mut self.reads.wake(now));
        self.acquit(&rested);
        rested
    }

    /// Calls [`Self::wake`], and returns the rested keys that need no request any more.
    pub(super) fn wake_rested(&mut self, now: Instant) -> Vec<TaskId> {
        let mut rested = self.wake(now);
        rested.retain(|id| !self.writes.contains(id) && !self.reads.contains(id));
        rested
    }

    /// When to call again even if nothing happens until then.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        [self.wake_at, self.writes.next_wake(), self.reads.next_wake()].into_iter().flatten().min()
    }

    /// Returns whether keys could go into a request.
    pub(super) fn has_ready(&self) -> bool {
        self.writes.ready() > 0
            || self.reads.ready() > 0
            || !self.set_aside.is_empty()
            || !self.deletes.is_empty()
    }

    /// Returns whether there is a reason to send nothing, or to see nothing land.
    ///
    /// Such a reason is a request in flight, or a time to wait for (the budget, `Retry-After`, the
    /// next attempt).
    pub(super) fn is_excused(&self, now: Instant) -> bool {
        self.in_flight() > 0 || self.next_wake().is_some_and(|at| at > now)
    }

    /// The number of requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.writes_in_flight + self.reads_in_flight
    }

    /// Takes the keys to send now, and one request from the budget; `None` if nothing may or should
    /// be sent.
    ///
    /// `more_may_come`: whether memory has room for more keys than are queued here.
    pub(super) fn next_batch(&mut self, more_may_come: bool, now: Instant) -> Option<Batch> {
        (self.wake_at, self.more_may_come) = (None, more_may_come);
        self.note_vanished(now);
        let write = self.is_worth_sending(self.writes.ready(), self.writes_in_flight, self.size.keys(), now);
        let mut read =
            self.is_worth_sending(self.reads.ready(), self.reads_in_flight, MAX_KEYS_PER_READ, now);
        let deletes = self.deletes_are_due(now);
        let aside = deletes || (!self.set_aside.is_empty() && pace::has_place(self.in_flight()));
        if !aside && !write && !read {
            return None;
        }
        if let Err(until) = self.gate.admits(self.in_flight(), now) {
            self.wake_at = until;
            return None;
        }
        // Taking turns: neither parts of refused requests nor new keys delay the other.
        let aside = aside && (deletes || !write || !self.turn.is_multiple_of(2));
        // Neither a flood of creates nor a flood of updates delays the other.
        let mut reads_turn = !aside && read && (!write || self.reads_in_flight == 0);
        if reads_turn && let Err(until) = self.read_budget.ready(now) {
            self.wake_by(until);
            (read, reads_turn) = (false, false);
        }
        if !aside && !write && !read {
            return None;
        }
        if let Err(until) = self.budget.take(now) {
            self.wake_at = Some(until);
            return None;
        }
        self.last_sent = Some(now);
        self.turn = self.turn.wrapping_add(1);
        if deletes {
            let rest = self.deletes.split_off(self.deletes.len().min(self.size.keys()));
            return Some(Batch::Write(std::mem::replace(&mut self.deletes, rest)));
        }
        if aside && let Some((attempt, aside)) = self.take_aside() {
            self.attempt = Some(attempt);
            return Some(match aside {
                Aside::Batch(batch) => batch,
                Aside::Control => Batch::Control(Request::Delete(self.control.clone())),
            });
        }
        if reads_turn {
            // `ready` has just returned that there is one.
            let _ = self.read_budget.take(now);
            return Some(Batch::Read(self.reads.take(MAX_KEYS_PER_READ)));
        }
        self.rouse_beside_others();
        Some(Batch::Write(self.writes.take(self.size.keys())))
    }

    /// Takes the next part of a refused request, usually of the newest attempt.
    ///
    /// So a new refusal does not wait for a thousand parts of an older one. Every eighth turn it
    /// takes the oldest part.
    fn take_aside(&mut self) -> Option<(AttemptId, Aside)> {
        if self.turn.is_multiple_of(8) {
            return self.set_aside.pop_front();
        }
        let newest = self.set_aside.iter().map(|(attempt, _)| *attempt).max()?;
        let at = self.set_aside.iter().position(|(attempt, _)| *attempt == newest)?;
        self.set_aside.remove(at)
    }

    fn is_worth_sending(&mut self, ready: usize, in_flight: usize, full: usize, now: Instant) -> bool {
        let situation = Situation {
            ready,
            in_flight,
            full,
            since_last: self.last_sent.map_or(Duration::MAX, |at| now.duration_since(at)),
            spacing: spacing(self.budget.level(now), self.budget.interval()),
            more_may_come: self.more_may_come,
        };
        match situation.worth_sending() {
            Worth::Now => true,
            Worth::No => false,
            Worth::Later(wait) => {
                self.wake_by(now + wait);
                false
            }
        }
    }

    /// Returns whether the deletes that wait for others have waited long enough.
    fn deletes_are_due(&mut self, now: Instant) -> bool {
        if self.deletes.is_empty() || !pace::has_place(self.in_flight()) {
            return false;
        }
        // Waiting has no use if nothing else waits for a request.
        let idle = self.writes.ready() == 0 && self.in_flight() == 0;
        if idle || self.deletes.len() >= self.size.keys() {
            return true;
        }
        let until = self.deletes_since + patience(self.budget.level(now), self.budget.interval());
        if until > now {
            self.wake_by(until);
        }
        until <= now
    }

    fn wake_by(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }

    /// Takes at most `keys` more keys to write, to fill a request of which some keys turned out to
    /// be deletes.
    pub(super) fn more(&mut self, keys: usize) -> Vec<TaskId> {
        self.writes.take(keys)
    }

    /// How many more keys fit into a request of `keys` keys. A request that searches for a refused
    /// key takes none.
    pub(super) fn room_beside(&self, keys: usize) -> usize {
        if self.attempt.is_some() { 0 } else { self.size.keys().saturating_sub(keys) }
    }

    /// Queues these keys, which were taken to be written, for a delete together with others.
    pub(super) fn delete_soon(&mut self, keys: Vec<TaskId>, now: Instant) {
        if self.deletes.is_empty() {
            self.deletes_since = now;
        }
        self.deletes.extend(keys);
    }

    /// Takes up to `wanted` requests out of the budget for a command.
    ///
    /// It grants one at a time while tasks wait to be written here, and never more than half of the
    /// budget.
    pub(super) fn lend(&mut self, wanted: u32, now: Instant) -> u32 {
        let idle = self.writes.ready() == 0 && self.reads.ready() == 0;
        let most = if idle { (self.budget.whole(now) / 2).clamp(1, wanted.max(1)) } else { 1 };
        (0..most).take_while(|_| self.budget.take(now).is_ok()).map(|_| 1).sum()
    }

    /// Continues with the rest of the budget that the former holder left.
    pub(super) fn resume(&mut self, spare: Spare, now: Instant) {
        self.budget = Budget::resumed(self.request_budget, spare, now);
    }

    /// The requests that could be sent at once, for the next holder.
    pub(super) fn spare(&mut self, now: Instant) -> u32 {
        self.budget.whole(now)
    }

    /// Counts a request as sent; its keys were taken before.
    pub(super) fn begin(&mut self, request: Request) -> Flight {
        match request.operation() {
            Operation::Get => self.reads_in_flight += 1,
            Operation::Put | Operation::Delete => self.writes_in_flight += 1,
        }
        self.others.sent();
        let attempt = self.attempt.take().unwrap_or_else(|| {
            self.blame.begin(match request.operation() {
                _ if self.gate.is_probing() => Patience::Probe,
                Operation::Get => Patience::Read,
                Operation::Put | Operation::Delete => Patience::Write,
            })
        });
        Flight { request, attempt }
    }

    /// Forgets all keys and requests.
    ///
    /// It keeps the state of the budget and of the gate, and the rests of keys that were just
    /// written.
    pub(super) fn restart(&mut self) {
        self.writes.restart();
        self.reads.restart();
        self.set_aside.clear();
        self.blame.clear();
        self.attempt = None;
        self.suspects.clear();
        self.health.set_refused(None);
        self.deletes.clear();
        (self.writes_in_flight, self.reads_in_flight, self.wake_at) = (0, 0, None);
    }

    /// The queue of the keys of this operation.
    pub(super) fn queue(&mut self, operation: Operation) -> &mut KeyQueue {
        match operation {
            Operation::Get => &mut self.reads,
            Operation::Put | Operation::Delete => &mut self.writes,
        }
    }

    /// Updates the metrics.
    pub(super) fn show(&mut self, now: Instant) {
        self.metrics.requests_in_flight.set(i64::try_from(self.in_flight()).unwrap_or(i64::MAX));
        self.metrics.budget_available.set(self.budget.available(now));
        self.metrics.batch_keys.set(i64::try_from(self.size.keys()).unwrap_or(i64::MAX));
    }
}

/// A random id that no task has.
fn control(dice: u128) -> Vec<TaskId> {
    TaskId::new(format!("taskpipeline-control-{dice:032x}")).into_iter().collect()
}

/// The longest delay of the policy, however often an attempt has failed.
pub(super) fn longest_delay(tuning: &Tuning, dice: f64) -> Duration {
    tuning.retry.delays.iter().max().copied().unwrap_or(SHORTEST).mul_f64(1.0 + dice / 10.0)
}

/// The delay after `attempts` failed attempts, or `None` if they are exhausted. At least as long as
/// KV asked for.
///
/// All keys of a request share one `dice`, so that keys that failed together are retried together.
pub(super) fn delay_after(tuning: &Tuning, attempts: u32, failure: &Failure, dice: f64) -> Option<Duration> {
    let delay = tuning.retry.delay_after(attempts, dice)?;
    Some(match failure {
        Failure::Throttled(wait) => delay.max(*wait),
        _ => delay,
    })
}
