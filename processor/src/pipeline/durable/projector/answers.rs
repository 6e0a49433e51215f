//! The part of the projector that draws the consequences of KV's answers: what landed is settled and may expire, what KV knew
//! is recorded, what failed is tried again, and what is at fault becomes a dead letter.

use std::sync::Arc;
use std::time::Duration;

use taskpipeline_contract::{Task, TaskId, TaskKey};
use tokio::time::Instant;
use tracing::{enabled, info, warn};

use super::{Done, PAUSE, Projector};
use crate::kv::{BulkApi, Failure};
use crate::pipeline::dead_letters::{Letter, Reason};
use crate::pipeline::durable::crash;
use crate::pipeline::durable::dead_letters::DeadLetters;
use crate::pipeline::durable::deferred::Why;
use crate::pipeline::durable::holder::now;
use crate::pipeline::durable::record::{Due, Record, Settler};
use crate::pipeline::durable::shares::Share;
use crate::pipeline::durable::unsettled::Landed;
use crate::pipeline::projector::{Answered, Verdict, delay_after, longest_delay};
use crate::telemetry::metrics::Operation;

/// How many records are given their time to live at a time: thousands of deletes land at once.
const EXPIRE: usize = 1_000;

/// How often a record is tried to be given its time to live, before it is left in the ledger for good.
const EXPIRE_TRIES: usize = 5;

impl<K: BulkApi> Projector<K> {
    pub(super) fn settle(&mut self, answered: Answered) {
        crash::point("answered");
        let Answered { operation, sent, verdicts } = answered;
        self.answered += u64::try_from(verdicts.len()).unwrap_or(0);
        // One moment for all, so that what was written together rests together.
        let (dice, now) = (rand::random(), Instant::now());
        let rested = now + self.parts.tuning.min_write_interval;
        for (id, verdict) in verdicts {
            match verdict {
                Verdict::Landed => self.landed(operation, &id, sent, rested, now),
                Verdict::Read(value) => self.learned(&id, value.as_deref()),
                Verdict::TryAgain { failure, .. } if operation == Operation::Get => {
                    let Some(attempt) = self.unsettled.look_up_failed(&id) else {
                        // It is written meanwhile.
                        self.dispatch.reads.settle(&id, now);
                        continue;
                    };
                    let at = self.failed(&id, &failure, attempt, dice);
                    self.dispatch.reads.retry(&id, at);
                }
                Verdict::TryAgain { failure, in_doubt, named } => {
                    let attempt = self.unsettled.failed(&id, in_doubt, now);
                    let at = self.failed(&id, &failure, attempt, dice);
                    if named {
                        self.retry_later(&id, at);
                    } else {
                        self.dispatch.queue(operation).retry(&id, at);
                    }
                }
                Verdict::Refused(what) => {
                    // Nothing of it was written.
                    self.dispatch.writes.settle(&id, now);
                    if self.unsettled.refused(&id) {
                        self.bury(&id, Reason::RefusedByKv, &what);
                    } else {
                        // The task has changed since, and KV may take what it is now.
                        self.unsettled.forgive(&id);
                        self.route(&id);
                    }
                }
                Verdict::Unexplained(what) => {
                    let delay = self.dispatch.wait_refused(operation, &id, &self.parts.tuning, dice);
                    let (correlation_id, seconds) = (self.correlation_id(&id), delay.as_secs_f64());
                    warn!(correlation_id, "Refused, which proves nothing: {what}; next in {seconds:.1} s");
                }
            }
        }
        crash::point("settled");
    }

    pub(super) fn landed(
        &mut self,
        operation: Operation,
        id: &TaskId,
        sent: Instant,
        rested: Instant,
        now: Instant,
    ) {
        if let Some(record) = self.unsettled.record(id) {
            self.parts.metrics.landed(age(record));
            if enabled!(tracing::Level::INFO) {
                let (key, correlation_id) = (TaskKey::new(id.clone()), self.correlation_id(id));
                info!(correlation_id, %key, "{} {key} successful", operation.verb());
            }
        }
        let landed = self.unsettled.landed(id, sent);
        self.rest_after(id, &landed, rested, now);
        if landed == Landed::Settled {
            self.finish(id);
        }
    }

    /// KV has said what it knows of a task that updates are waiting for.
    pub(super) fn learned(&mut self, id: &TaskId, value: Option<&str>) {
        crash::point("looked-up");
        self.dispatch.reads.settle(id, Instant::now());
        self.unsettled.forgive(id);
        let known = match value.map(serde_json::from_str::<Task>) {
            Some(Ok(task)) => Some(task),
            None => None,
            Some(Err(error)) => {
                let detail = format!("the value of tasks:{id} in KV is not a task: {error}");
                return self.bury(id, Reason::UnreadableInKv, &detail);
            }
        };
        self.join(id, known, None);
    }

    /// Records what KV knew, after the letter that tells what is lost by it.
    pub(super) fn join(&mut self, id: &TaskId, known: Option<Task>, letter: Option<Letter>) {
        let (ledger, letters, id) = (Arc::clone(&self.parts.ledger), self.parts.letters.clone(), id.clone());
        let (metrics, correlation_id) =
            (Arc::clone(&self.parts.metrics), self.correlation_id(&id).to_owned());
        self.beside.spawn(async move {
            if let Some(letter) = letter {
                store(&letters, &letter).await;
            }
            let recorded = ledger.join(&id, known.as_ref()).await;
            crash::point("joined");
            match &recorded {
                Ok(Some(_)) if known.is_none() => {
                    metrics.updates_unknown.inc();
                    warn!(correlation_id, "The task tasks:{id} does not exist; its update changes nothing");
                }
                Ok(_) => {}
                Err(error) => {
                    warn!("what KV knows of tasks:{id} cannot be recorded: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Done::Joined(id, recorded)
        });
    }

    /// A task that KV does not take, or whose value in KV is none, becomes a dead letter.
    pub(super) fn bury(&mut self, id: &TaskId, reason: Reason, detail: &str) {
        let attempts = self.unsettled.attempts(id);
        let Some(known) = self.unsettled.known(id) else { return };
        if reason == Reason::RefusedByKv {
            self.unsettled.forgive(id);
            if !self.unsettled.has_room_for(Share::Letter) {
                let dice = rand::random();
                let later = Instant::now() + longest_delay(&self.parts.tuning, dice);
                return self.unsettled.defer(id, later, Why::Retry);
            }
            self.unsettled.wait_for(id, Share::Letter);
        }
        warn!(correlation_id = self.correlation_id(id), "Dead letter ({}): {detail}", reason.as_str());
        let letter = Letter::of_task(&self.parts.names, id, &known, reason, detail, attempts.max(1));
        if reason == Reason::UnreadableInKv {
            return self.join(id, None, Some(letter));
        }
        let (letters, id, revision) = (self.parts.letters.clone(), id.clone(), known.revision);
        self.beside.spawn(async move {
            store(&letters, &letter).await;
            Done::Buried(id, revision)
        });
    }

    /// One more failed attempt. Answers when the next one is due. When all attempts are used up, the
    /// task waits for the longest delay and the count starts again: the projector never drops a task.
    pub(super) fn failed(&mut self, id: &TaskId, failure: &Failure, attempt: u32, dice: f64) -> Instant {
        let tuning = &self.parts.tuning;
        let most = tuning.retry.max_attempts;
        let used_up = delay_after(tuning, attempt, failure, dice).is_none();
        let delay =
            delay_after(tuning, attempt, failure, dice).unwrap_or_else(|| longest_delay(tuning, dice));
        let (correlation_id, seconds) = (self.correlation_id(id), delay.as_secs_f64());
        warn!(correlation_id, attempt, "Attempt {attempt}/{most} failed: {failure}; next in {seconds:.1} s");
        self.parts.metrics.retries.inc();
        if used_up {
            self.parts.metrics.attempts_used_up.inc();
            self.unsettled.forgive(id);
        }
        Instant::now() + delay
    }

    /// Nothing is left to be done in KV: a record that says nothing but that there is no task may expire.
    pub(super) fn finish(&mut self, id: &TaskId) {
        let Some(known) = self.unsettled.known(id) else { return };
        let revision = known.revision;
        let lives_on = matches!(known.record.due(id), Due::Put(_));
        if self.parts.memory.is_none() || lives_on || known.record.expires_by.is_some() {
            self.unsettled.settle(id, revision);
            return;
        }
        self.to_expire.push_back((id.clone(), known));
    }

    /// Who this projector is in the records that it lets expire.
    pub(super) fn settler(&self) -> Settler {
        Settler::Of { target: self.parts.holder.target.clone(), term: self.held.control.term }
    }

    /// Gives the next settled records their time to live.
    pub(super) fn expire(&mut self) {
        let Some(memory) = self.parts.memory.filter(|_| !self.expiring && !self.to_expire.is_empty()) else {
            return;
        };
        let memory = self.held.time_to_live(memory);
        self.expiring = true;
        let mut records: Vec<_> = self.to_expire.drain(..self.to_expire.len().min(EXPIRE)).collect();
        let (ledger, settler) = (Arc::clone(&self.parts.ledger), self.settler());
        self.beside.spawn(async move {
            let expired = records.iter().map(|(id, known)| (id.clone(), known.revision)).collect();
            for _ in 0..EXPIRE_TRIES {
                let (left, error) = ledger.expire(records, &settler, memory).await;
                let Some(error) = error else { break };
                warn!(
                    "the records of {} deleted tasks cannot be given their time to live: {error}",
                    left.len()
                );
                tokio::time::sleep(PAUSE).await;
                records = left;
            }
            Done::Expired(expired)
        });
    }

    pub(super) fn correlation_id(&self, id: &TaskId) -> &str {
        self.unsettled.record(id).map_or("", |record| record.last.value.correlation_id.as_str())
    }
}

/// Stores a letter, however long it takes: what it tells of is settled only then.
async fn store(letters: &DeadLetters, letter: &Letter) {
    while let Err(error) = letters.store(letter).await {
        warn!("{error}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// How long ago the stream took in the event that changed the task last.
fn age(record: &Record) -> Duration {
    let at = record.last.value.at.to_unix_millis();
    Duration::from_millis(u64::try_from(now().saturating_sub(at)).unwrap_or(0))
}
