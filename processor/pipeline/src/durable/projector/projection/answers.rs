//! The part of the projection that draws the consequences of KV's answers.
//!
//! Landed tasks are settled and may expire, and tasks that KV had are recorded. Failed tasks are
//! retried, and tasks at fault become dead letters.

use std::time::Duration;

use taskpipeline_contract::{Task, TaskId, TaskKey};
use tokio::time::Instant;
use tracing::{enabled, info, warn};

use super::Projection;
use crate::dead_letters::Letter;
use crate::durable::crash;
use crate::durable::ledger::record::{Due, Record, Settler};
use crate::durable::projector::deferred::Why;
use crate::durable::projector::jobs::{Job, Join};
use crate::durable::projector::shares::Share;
use crate::durable::projector::unsettled::Landed;
use crate::reason::Reason;
use crate::schedule::{Answered, Reply, Verdict, delay_after, longest_delay};
use taskpipeline_kv::Failure;
use taskpipeline_kv::Operation;

/// The most records that get their time to live in one job: thousands of deletes land at once.
const EXPIRE: usize = 1_000;

impl Projection {
    /// Adds an answer of KV. `wall`: the time of the wall clock, in ms since 1970.
    pub(crate) fn answered(&mut self, reply: Reply, now: Instant, wall: i64) {
        crash::point("answered");
        let Answered { operation, sent, verdicts } = self.schedule.judged(reply, now);
        self.answered += u64::try_from(verdicts.len()).unwrap_or(0);
        // One time for all keys, so that keys that were written together rest together.
        let dice = self.schedule.throw();
        let (landed, rested) = (At { now, wall }, now + self.tuning.min_write_interval);
        for (id, verdict) in verdicts {
            match verdict {
                Verdict::Landed => self.landed(operation, &id, sent, rested, landed),
                Verdict::Read(value) => self.learned(&id, value.as_deref(), now),
                Verdict::TryAgain { failure, .. } if operation == Operation::Get => {
                    let Some(attempt) = self.unsettled.look_up_failed(&id) else {
                        // The task is written meanwhile.
                        self.schedule.reads.settle(&id, now);
                        continue;
                    };
                    let at = now + self.failed(&id, &failure, attempt, dice);
                    self.schedule.reads.retry(&id, at);
                }
                Verdict::TryAgain { failure, in_doubt, named } => {
                    let attempt = self.unsettled.failed(&id, in_doubt, now);
                    let at = now + self.failed(&id, &failure, attempt, dice);
                    if named {
                        self.retry_later(&id, at, now);
                    } else {
                        self.schedule.queue(operation).retry(&id, at);
                    }
                }
                Verdict::Refused(what) => {
                    // KV wrote nothing of the task.
                    self.schedule.writes.settle(&id, now);
                    if self.unsettled.refused(&id) {
                        self.bury(&id, Reason::RefusedByKv, &what, now);
                    } else {
                        // The task has changed since, and KV may accept its new state.
                        self.unsettled.forgive(&id);
                        self.route(&id, now);
                    }
                }
                Verdict::Unexplained(what) => {
                    let delay = self.schedule.wait_refused(operation, &id, &self.tuning, dice, now);
                    let (correlation_id, seconds) = (self.correlation_id(&id), delay.as_secs_f64());
                    warn!(correlation_id, error = %what, retry_in_seconds = seconds, "KV refused a whole request; retrying");
                }
            }
        }
        crash::point("settled");
    }

    fn landed(&mut self, operation: Operation, id: &TaskId, sent: Instant, rested: Instant, at: At) {
        if let Some(record) = self.unsettled.record(id) {
            self.setup.metrics.landed(age(record, at.wall));
            if enabled!(tracing::Level::INFO) {
                let (key, correlation_id) = (TaskKey::new(id.clone()), self.correlation_id(id));
                info!(correlation_id, operation = operation.verb(), %key, "written");
            }
        }
        let landed = self.unsettled.landed(id, sent);
        self.rest_after(id, &landed, rested, at.now);
        if landed == Landed::Settled {
            self.finish(id);
        }
    }

    /// Adds the value that KV has for a task with waiting updates.
    fn learned(&mut self, id: &TaskId, value: Option<&str>, now: Instant) {
        crash::point("looked-up");
        self.schedule.reads.settle(id, now);
        self.unsettled.forgive(id);
        let known = match value.map(serde_json::from_str::<Task>) {
            Some(Ok(task)) => Some(task),
            None => None,
            Some(Err(error)) => {
                let detail = format!("the value of tasks:{id} in KV is not a task: {error}");
                return self.bury(id, Reason::UnreadableInKv, &detail, now);
            }
        };
        self.join(id, known, None);
    }

    /// Records the task that KV had, after storing the letter.
    fn join(&mut self, id: &TaskId, known: Option<Task>, letter: Option<Letter>) {
        let (id, correlation_id) = (id.clone(), self.correlation_id(id).to_owned());
        self.begin(Job::Join(Box::new(Join { id, known, letter, correlation_id })));
    }

    /// Makes a dead letter of a task that KV refuses, or whose value in KV is not a task.
    fn bury(&mut self, id: &TaskId, reason: Reason, detail: &str, now: Instant) {
        let attempts = self.unsettled.attempts(id);
        let Some(known) = self.unsettled.known(id) else { return };
        if reason == Reason::RefusedByKv {
            self.unsettled.forgive(id);
            if !self.unsettled.has_room_for(Share::Letter) {
                let dice = self.schedule.throw();
                let later = now + longest_delay(&self.tuning, dice);
                return self.unsettled.defer(id, later, Why::Retry);
            }
            self.unsettled.wait_for(id, Share::Letter);
        }
        warn!(correlation_id = self.correlation_id(id), reason = reason.as_str(), %detail, "dead letter");
        let letter = Letter::of_task(&self.setup.names, id, &known, reason, detail, attempts.max(1));
        if reason == Reason::UnreadableInKv {
            return self.join(id, None, Some(letter));
        }
        let (id, revision, letter) = (id.clone(), known.revision, Box::new(letter));
        self.begin(Job::Bury { id, revision, letter });
    }

    /// Counts a failed attempt. Returns the delay before the next one.
    ///
    /// After the last attempt the task waits for the longest delay, and the count starts again: the
    /// projector never drops a task.
    fn failed(&mut self, id: &TaskId, failure: &Failure, attempt: u32, dice: f64) -> Duration {
        let tuning = &self.tuning;
        let most = tuning.retry.max_attempts;
        let used_up = delay_after(tuning, attempt, failure, dice).is_none();
        let delay =
            delay_after(tuning, attempt, failure, dice).unwrap_or_else(|| longest_delay(tuning, dice));
        let (correlation_id, seconds) = (self.correlation_id(id), delay.as_secs_f64());
        warn!(correlation_id, attempt, max_attempts = most, error = %failure, retry_in_seconds = seconds, "attempt failed");
        self.setup.metrics.retries.inc();
        if used_up {
            self.setup.metrics.retries_exhausted.inc();
            self.unsettled.forgive(id);
        }
        delay
    }

    /// Ends the work for a task in KV. The record of a missing task may then expire.
    pub(super) fn finish(&mut self, id: &TaskId) {
        let Some(known) = self.unsettled.known(id) else { return };
        let revision = known.revision;
        let lives_on = matches!(known.record.due(id), Due::Put(_));
        if self.setup.memory.is_none() || lives_on || known.record.expires_by.is_some() {
            self.unsettled.settle(id, revision);
            return;
        }
        self.to_expire.push_back((id.clone(), known));
    }

    /// The identity of this projector in the records that it lets expire.
    pub(super) fn settler(&self) -> Settler {
        Settler::Of { target: self.setup.target.clone(), term: self.held.control.term }
    }

    /// Gives the next settled records their time to live.
    pub(super) fn expire(&mut self) {
        let Some(memory) = self.setup.memory.filter(|_| !self.expiring && !self.to_expire.is_empty()) else {
            return;
        };
        let memory = self.held.time_to_live(memory);
        self.expiring = true;
        let records = self.to_expire.drain(..self.to_expire.len().min(EXPIRE)).collect();
        let settler = self.settler();
        self.begin(Job::Expire { records, settler, memory });
    }

    pub(super) fn correlation_id(&self, id: &TaskId) -> &str {
        self.unsettled.record(id).map_or("", |record| record.last.value.correlation_id.as_str())
    }
}

/// The same time on both clocks.
#[derive(Clone, Copy)]
struct At {
    now: Instant,
    /// In ms since 1970.
    wall: i64,
}

/// How long ago the stream stored the last event of the task.
fn age(record: &Record, wall: i64) -> Duration {
    let at = record.last.value.at.to_unix_millis();
    Duration::from_millis(u64::try_from(wall.saturating_sub(at)).unwrap_or(0))
}
