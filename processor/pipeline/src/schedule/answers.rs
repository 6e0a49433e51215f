//! Draws the consequences of KV's answers: the outcome of each key, the cause of a refusal, and the
//! effect on later requests.

use std::time::Duration;

use rand::RngExt;
use taskpipeline_contract::TaskId;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::blame::{AttemptId, Ruling};
use super::request::{Answer, KeyOutcome, Reply};
use super::{Aside, Batch, Schedule, longest_delay};
use crate::settings::Tuning;
use crate::telemetry::health::KvState;
use taskpipeline_kv::Operation;
use taskpipeline_kv::{Allowance, Failure, LONGEST_WAIT};

/// The outcome of the request of a key.
///
/// Keys that are only sent again do not show here, if another key or the configuration was at
/// fault. The schedule queues them again.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// KV wrote or deleted the key.
    Landed,
    /// The value in KV, or `None` if KV has none.
    Read(Option<String>),
    /// The key must be retried after a delay.
    TryAgain {
        /// The cause of the failure.
        failure: Failure,
        /// Whether the write may have taken effect, or may still take effect.
        in_doubt: bool,
        /// Whether KV accepted the request and named this key as not written.
        named: bool,
    },
    /// KV refuses this key, and has accepted others that were sent with it.
    Refused(String),
    /// KV refuses this key without proof that the key is at fault. The key waits.
    Unexplained(String),
}

/// The outcome of one request.
pub(crate) struct Answered {
    pub(crate) operation: Operation,
    /// When the request was sent.
    pub(crate) sent: Instant,
    pub(crate) verdicts: Vec<(TaskId, Verdict)>,
}

impl Schedule {
    /// Interprets an answer: the outcome of each key.
    pub(crate) fn judged(&mut self, reply: Reply, now: Instant) -> Answered {
        let Reply { answer: Answer { operation, mut ids, result }, sent, attempt, allowance } = reply;
        match operation {
            Operation::Get => self.reads_in_flight -= 1,
            Operation::Put | Operation::Delete => self.writes_in_flight -= 1,
        }
        let took = now.duration_since(sent);
        self.metrics.request(operation, ids.len(), result.as_ref().err(), took);
        self.gate.learn(result.as_ref().err(), now);
        if let Some(allowance) = allowance {
            self.heed(allowance, now);
        }
        // A control belongs to no task, so it has no outcome to return.
        if ids == self.control {
            ids.clear();
        }
        if operation != Operation::Get && !ids.is_empty() {
            self.resize(ids.len(), result.as_ref().err(), now);
        }
        let verdicts = match result {
            Ok(outcomes) => self.judge_success(operation, ids, outcomes, attempt, now),
            Err(failure) => self.judge_failure(operation, ids, failure, attempt, now),
        };
        Answered { operation, sent, verdicts }
    }

    fn judge_success(
        &mut self,
        operation: Operation,
        ids: Vec<TaskId>,
        outcomes: Vec<KeyOutcome>,
        attempt: AttemptId,
        now: Instant,
    ) -> Vec<(TaskId, Verdict)> {
        self.health.set_kv(KvState::Reachable);
        let witness = outcomes.iter().any(|outcome| !matches!(outcome, KeyOutcome::NotWritten));
        if witness && operation != Operation::Get {
            let refused_all = self.gate.is_probing();
            self.gate.wrote();
            if refused_all {
                self.rouse_suspects();
            }
        }
        self.acquit(&ids);
        let ruling = self.blame.accepted(attempt, witness, self.dice.random());
        let mut verdicts: Vec<_> =
            ids.into_iter().zip(outcomes).map(|(id, outcome)| (id, verdict(outcome))).collect();
        verdicts.append(&mut self.carry_out(operation, attempt, ruling, now));
        verdicts
    }

    /// Applies the rest of the token's limit that KV reports.
    fn heed(&mut self, allowance: Allowance, now: Instant) {
        let out = u32::try_from(self.in_flight()).unwrap_or(u32::MAX);
        self.budget.at_most(allowance.remaining.saturating_sub(out), now);
        if allowance.remaining <= out {
            if allowance.resets_in > LONGEST_WAIT {
                warn!(
                    asked_seconds = allowance.resets_in.as_secs(),
                    waiting_seconds = LONGEST_WAIT.as_secs(),
                    "KV reports a used-up limit that lasts longer than its limits do"
                );
            }
            self.gate.wait(allowance.resets_in, now);
        }
        if let Some(others) = self.others.learn(allowance, now) {
            self.metrics.external_requests.inc_by(others.into());
            warn!(requests = %others, "other clients use the same Cloudflare token. All requests together must stay below \
                                       the limit of Cloudflare: give each pipeline a token of its own account, or lower \
                                       its request budget");
        }
    }

    /// Adapts the size of the next writes to the outcome of a write of `keys` keys.
    fn resize(&mut self, keys: usize, failure: Option<&Failure>, now: Instant) {
        match failure {
            None => self.size.taken(keys, now),
            Some(Failure::TooLarge(_) | Failure::TooSlow(_)) if self.size.failed(keys, now) => {
                debug!(keys, next = self.size.keys(), "a request had too many keys for KV");
            }
            Some(_) => {}
        }
    }

    fn judge_failure(
        &mut self,
        operation: Operation,
        ids: Vec<TaskId>,
        failure: Failure,
        attempt: AttemptId,
        now: Instant,
    ) -> Vec<(TaskId, Verdict)> {
        let (mut verdicts, ruling) = match failure {
            Failure::Transient(_) | Failure::TooSlow(_) | Failure::Throttled(_) => {
                self.health.set_kv(KvState::Failing(failure.to_string()));
                let in_doubt = !matches!(failure, Failure::Throttled(_)) && operation != Operation::Get;
                let again = || Verdict::TryAgain { failure: failure.clone(), in_doubt, named: false };
                let verdicts = ids.into_iter().map(|id| (id, again())).collect();
                (verdicts, self.blame.failed(attempt))
            }
            Failure::Config(what) | Failure::DailyQuota(what) => {
                self.report_misconfigured(what, now);
                ids.iter().for_each(|id| self.queue(operation).retry(id, now));
                (Vec::new(), self.blame.failed(attempt))
            }
            Failure::Refused(ref what) | Failure::TooLarge(ref what) => {
                debug!(keys = ids.len(), error = %what, "KV refused keys");
                let too_large = matches!(failure, Failure::TooLarge(_));
                let dice = self.dice.random();
                (Vec::new(), self.blame.refused(attempt, ids, what, too_large, dice))
            }
        };
        verdicts.append(&mut self.carry_out(operation, attempt, ruling, now));
        verdicts
    }

    /// Carries out a ruling: queues requests, returns keys to their queue, and makes verdicts.
    fn carry_out(
        &mut self,
        operation: Operation,
        attempt: AttemptId,
        ruling: Ruling,
        now: Instant,
    ) -> Vec<(TaskId, Verdict)> {
        for ids in ruling.next {
            let batch = match operation {
                Operation::Get => Batch::Read(ids),
                Operation::Put | Operation::Delete => Batch::Write(ids),
            };
            self.set_aside.push_back((attempt, Aside::Batch(batch)));
        }
        if ruling.control {
            self.set_aside.push_back((attempt, Aside::Control));
        }
        let tried = ruling.unexplained.len() + ruling.untried.len();
        if let Some((id, what)) = ruling.unexplained.first() {
            if tried > 1 && operation != Operation::Get && !ruling.others_accepted {
                self.gate.refused_all(now);
                self.report_misconfigured(
                    format!(
                        "KV refuses every task that was tried, which proves nothing about the tasks: check the proxies on the \
                         way to Cloudflare, and the account ({what})"
                    ),
                    now,
                );
            } else {
                warn!(task_id = id.as_str(), error = %what, "KV refuses a task and accepted others before and after it");
            }
        }
        let mut verdicts = Vec::new();
        match ruling.unexplained.first() {
            // Refused reads must not use up the requests of others, so the untried keys wait too.
            Some((_, what)) if operation == Operation::Get => {
                verdicts
                    .extend(ruling.untried.into_iter().map(|id| (id, Verdict::Unexplained(what.clone()))));
            }
            _ => ruling.untried.iter().for_each(|id| self.queue(operation).retry(id, now)),
        }
        for (id, what) in ruling.blamed {
            // The refusal of a read proves nothing about the task.
            if operation == Operation::Get {
                verdicts.push((id, Verdict::Unexplained(what)));
            } else {
                self.acquit(std::slice::from_ref(&id));
                verdicts.push((id, Verdict::Refused(what)));
            }
        }
        let unexplained = ruling.unexplained.into_iter();
        verdicts.extend(unexplained.map(|(id, what)| (id, Verdict::Unexplained(what))));
        verdicts
    }

    /// Reports that the last batch sent nothing, because none of its keys needs a request any more.
    pub(super) fn note_vanished(&mut self, now: Instant) {
        let Some(attempt) = self.attempt.take() else { return };
        let ruling = self.blame.vanished(attempt, self.dice.random());
        // Only writes can vanish: a read always needs its request.
        for (id, _) in self.carry_out(Operation::Put, attempt, ruling, now) {
            self.writes.retry(&id, now);
        }
    }

    fn report_misconfigured(&mut self, what: String, now: Instant) {
        if self.gate.may_report(now) {
            warn!(error = %what, "KV unavailable; events are queued, retrying");
        }
        self.health.set_kv(KvState::Misconfigured(what));
    }

    /// Makes a refused key wait, because one refusal proves nothing. Returns the delay.
    ///
    /// The delay follows the policy and does not count as an attempt. A key to write may be sent
    /// earlier, together with others.
    pub(crate) fn wait_refused(
        &mut self,
        operation: Operation,
        id: &TaskId,
        tuning: &Tuning,
        dice: f64,
        now: Instant,
    ) -> Duration {
        let (writes, reads) = (&self.writes, &self.reads);
        let times = self.suspects.times(id, |id| writes.contains(id) || reads.contains(id));
        let delay = tuning.retry.delays.get(times).map(|delay| delay.mul_f64(1.0 + dice / 10.0));
        let delay = delay.unwrap_or_else(|| longest_delay(tuning, dice));
        let until = now + delay;
        self.queue(operation).retry(id, until);
        self.suspects.refused(id, Some(until).filter(|_| operation != Operation::Get));
        self.health.set_refused(self.suspects.describe());
        delay
    }

    /// KV accepts tasks again, so the tasks that it refused need not wait for the end of their
    /// delays.
    fn rouse_suspects(&mut self) {
        if !self.gate.is_probing() {
            let writes = &mut self.writes;
            self.suspects.rouse(|id, until| writes.rouse(id, until));
        }
    }

    /// Adds tasks that were refused without a witness to the next write of others, which shows the
    /// cause of the refusal.
    ///
    /// They take at most half of the request, because a request of suspects alone shows nothing.
    pub(super) fn rouse_beside_others(&mut self) {
        if !self.gate.is_probing() {
            let (writes, most) = (&mut self.writes, self.size.keys() / 2);
            self.suspects.rouse_some(most, |id, until| writes.rouse_as_next(id, until));
        }
    }

    /// Removes these keys from the suspects.
    pub(super) fn acquit(&mut self, ids: &[TaskId]) {
        if self.suspects.acquit(ids) {
            self.health.set_refused(self.suspects.describe());
        }
    }
}

fn verdict(outcome: KeyOutcome) -> Verdict {
    match outcome {
        KeyOutcome::Landed => Verdict::Landed,
        KeyOutcome::Read(value) => Verdict::Read(value),
        KeyOutcome::NotWritten => Verdict::TryAgain {
            failure: Failure::Transient("KV names this key as not written".to_owned()),
            in_doubt: false,
            named: true,
        },
    }
}
