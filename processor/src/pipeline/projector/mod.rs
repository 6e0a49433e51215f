//! What the projectors of both modes share: which keys go into which request and when, and what an answer
//! means for each of them.
//!
//! It sends at once when nothing is in flight and the budget allows, and gathers what arrives while a
//! request is out. A key is never in two requests at once. The decisions are in [`queue`], [`gate`], [`pace`]
//! and the budget; here they meet the clock and the network. It knows no task's value and no policy of
//! retrying: its owner brings both.

mod gate;
mod pace;
mod queue;
mod request;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use taskpipeline_contract::TaskId;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::config::Tuning;
use crate::kv::{Budget, BulkApi, Failure, MAX_KEYS_PER_READ};
use crate::telemetry::health::{Health, KvState};
use crate::telemetry::metrics::{Metrics, Operation};

use self::gate::Gate;
use self::queue::KeyQueue;
use self::request::{Answer, KeyOutcome};

pub(super) use self::request::Request;

/// Keys to be asked of KV now. They are in flight as far as their queue knows.
pub(super) enum Batch {
    /// To be written, or deleted where there is nothing to write.
    Write(Vec<TaskId>),
    /// To be read.
    Read(Vec<TaskId>),
}

/// What became of a key's request. Keys that KV only has to be asked again for another's fault, or a
/// configuration's, do not show: they are queued again.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Written or deleted.
    Landed,
    /// Its value, or that it has none.
    Read(Option<String>),
    /// To be tried again after a delay.
    TryAgain {
        /// What went wrong.
        failure: Failure,
        /// Whether the write may have happened, or happen yet, all the same.
        in_doubt: bool,
    },
    /// KV refuses this key whatever comes with it.
    Refused(String),
}

/// What became of one request.
pub(super) struct Answered {
    pub(super) operation: Operation,
    /// When it was sent.
    pub(super) sent: Instant,
    pub(super) verdicts: Vec<(TaskId, Verdict)>,
}

/// See the module's head.
pub(super) struct Dispatch<K> {
    kv: K,
    max_keys: usize,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    pub(super) writes: KeyQueue,
    pub(super) reads: KeyQueue,
    set_aside: VecDeque<Batch>,
    budget: Budget,
    /// What of the budget may go into reads.
    read_budget: Budget,
    gate: Gate,
    requests: JoinSet<(Answer, Instant)>,
    writes_in_flight: usize,
    reads_in_flight: usize,
    /// When time alone makes a request possible that is not now.
    wake_at: Option<Instant>,
}

impl<K: BulkApi> Dispatch<K> {
    /// `read_budget` is a budget within the budget.
    pub(super) fn new(
        kv: K,
        tuning: &Tuning,
        read_budget: Budget,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            budget: Budget::new(tuning.request_budget, Instant::now()),
            read_budget,
            kv,
            max_keys: usize::from(tuning.max_keys.get()),
            metrics,
            health,
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

    /// Moves on the keys that have rested. Answers those that want nothing more of KV.
    pub(super) fn wake_rested(&mut self) -> Vec<TaskId> {
        let now = Instant::now();
        let mut rested = self.writes.wake(now);
        rested.append(&mut self.reads.wake(now));
        rested.retain(|id| !self.writes.contains(id) && !self.reads.contains(id));
        rested
    }

    /// When there is something to do though nothing happens until then.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        [self.wake_at, self.writes.next_wake(), self.reads.next_wake()].into_iter().flatten().min()
    }

    /// How many requests are out.
    pub(super) fn in_flight(&self) -> usize {
        self.requests.len()
    }

    /// The keys to send now, if anything may and should be sent; a request of the budget is spent on them.
    pub(super) fn next_batch(&mut self) -> Option<Batch> {
        self.wake_at = None;
        let now = Instant::now();
        let write = pace::worth_sending(self.writes.ready(), self.writes_in_flight, self.max_keys);
        let mut read = pace::worth_sending(self.reads.ready(), self.reads_in_flight, MAX_KEYS_PER_READ);
        let aside = !self.set_aside.is_empty() && pace::has_place(self.requests.len());
        if !aside && !write && !read {
            return None;
        }
        if let Err(until) = self.gate.admits(self.requests.len(), now) {
            self.wake_at = until;
            return None;
        }
        // Taking turns: neither a flood of creates nor one of updates keeps the other waiting.
        let mut reads_turn = !aside && read && (!write || self.reads_in_flight == 0);
        if reads_turn && let Err(until) = self.read_budget.ready(now) {
            self.wake_at = Some(until);
            (read, reads_turn) = (false, false);
        }
        if !aside && !write && !read {
            return None;
        }
        if let Err(until) = self.budget.take(now) {
            self.wake_at = Some(until);
            return None;
        }
        if let Some(batch) = aside.then(|| self.set_aside.pop_front()).flatten() {
            return Some(batch);
        }
        if reads_turn {
            // Just seen to be there.
            let _ = self.read_budget.take(now);
            return Some(Batch::Read(self.reads.take(MAX_KEYS_PER_READ)));
        }
        Some(Batch::Write(self.writes.take(self.max_keys)))
    }

    /// These keys, which were handed out, go into the next request, before all others.
    pub(super) fn send_next(&mut self, batch: Batch) {
        self.set_aside.push_front(batch);
    }

    /// Sends a request made of keys that were handed out.
    pub(super) fn send(&mut self, request: Request) {
        match request.operation() {
            Operation::Get => self.reads_in_flight += 1,
            Operation::Put | Operation::Delete => self.writes_in_flight += 1,
        }
        let kv = self.kv.clone();
        self.requests.spawn(async move {
            let sent = Instant::now();
            (request.send(kv).await, sent)
        });
    }

    /// The next answer; nothing where no request is out.
    ///
    /// # Errors
    /// Where a request's task fell over, which it cannot; its keys would be in flight for ever.
    pub(super) async fn answer(&mut self) -> Option<Result<Answered, JoinError>> {
        let done = self.requests.join_next().await?;
        Some(done.map(|(answer, sent)| self.judge(answer, sent)))
    }

    /// Forgets the requests that are out; they may do their work all the same.
    pub(super) fn abort(&mut self) {
        self.requests.abort_all();
    }

    /// Forgets all keys and requests, but not what was spent of the budget, nor what KV asked for.
    pub(super) fn restart(&mut self) {
        self.requests = JoinSet::new();
        (self.writes, self.reads) = (KeyQueue::default(), KeyQueue::default());
        self.set_aside.clear();
        (self.writes_in_flight, self.reads_in_flight, self.wake_at) = (0, 0, None);
    }

    /// The queue that a request of this kind takes its keys from.
    pub(super) fn queue(&mut self, operation: Operation) -> &mut KeyQueue {
        match operation {
            Operation::Get => &mut self.reads,
            Operation::Put | Operation::Delete => &mut self.writes,
        }
    }

    /// Shows itself in the metrics.
    pub(super) fn show(&mut self) {
        self.metrics.requests_in_flight.set(i64::try_from(self.requests.len()).unwrap_or(i64::MAX));
        self.metrics.budget_available.set(self.budget.available(Instant::now()));
    }

    fn judge(&mut self, answer: Answer, sent: Instant) -> Answered {
        let Answer { operation, ids, result } = answer;
        let now = Instant::now();
        match operation {
            Operation::Get => self.reads_in_flight -= 1,
            Operation::Put | Operation::Delete => self.writes_in_flight -= 1,
        }
        let took = now.duration_since(sent);
        self.metrics.request(operation, ids.len(), result.as_ref().err(), took);
        self.gate.learn(result.as_ref().err(), now);
        let verdicts = match result {
            Ok(outcomes) => {
                self.health.set_kv(KvState::Reachable);
                ids.into_iter().zip(outcomes).map(|(id, outcome)| (id, verdict(outcome))).collect()
            }
            Err(failure) => self.judge_failure(operation, ids, failure, now),
        };
        Answered { operation, sent, verdicts }
    }

    fn judge_failure(
        &mut self,
        operation: Operation,
        ids: Vec<TaskId>,
        failure: Failure,
        now: Instant,
    ) -> Vec<(TaskId, Verdict)> {
        match failure {
            Failure::Transient(_) | Failure::Throttled(_) => {
                self.health.set_kv(KvState::Failing(failure.to_string()));
                let in_doubt = matches!(failure, Failure::Transient(_)) && operation != Operation::Get;
                let again = || Verdict::TryAgain { failure: failure.clone(), in_doubt };
                ids.into_iter().map(|id| (id, again())).collect()
            }
            Failure::Config(what) => {
                if self.gate.may_report(now) {
                    warn!("KV cannot be used: {what}. Events wait, and it is tried again every half minute");
                }
                self.health.set_kv(KvState::Misconfigured(what));
                ids.iter().for_each(|id| self.queue(operation).retry(id, now));
                Vec::new()
            }
            Failure::Refused(what) if ids.len() > 1 => {
                debug!("{} keys refused together ({what}): trying halves", ids.len());
                let mut first = ids;
                let second = first.split_off(first.len() / 2);
                for half in [first, second] {
                    self.set_aside.push_back(match operation {
                        Operation::Get => Batch::Read(half),
                        Operation::Put | Operation::Delete => Batch::Write(half),
                    });
                }
                Vec::new()
            }
            Failure::Refused(what) => {
                ids.into_iter().map(|id| (id, Verdict::Refused(what.clone()))).collect()
            }
        }
    }
}

/// How long to wait after `attempts` failed attempts, at least as long as KV asked for; nothing when they are
/// used up. One throw of the dice does for all keys of a request: what failed together comes back together.
pub(super) fn delay_after(tuning: &Tuning, attempts: u32, failure: &Failure, dice: f64) -> Option<Duration> {
    let delay = tuning.retry.delay_after(attempts, dice)?;
    Some(match failure {
        Failure::Throttled(wait) => delay.max(*wait),
        _ => delay,
    })
}

fn verdict(outcome: KeyOutcome) -> Verdict {
    match outcome {
        KeyOutcome::Landed => Verdict::Landed,
        KeyOutcome::Read(value) => Verdict::Read(value),
        KeyOutcome::NotWritten => Verdict::TryAgain {
            failure: Failure::Transient("KV names this key as not written".to_owned()),
            in_doubt: false,
        },
    }
}
