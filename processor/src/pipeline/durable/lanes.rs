//! Writes to the bucket of which none waits for another: all are sent, and their answers are taken as they come, by
//! one subscription for all of them, which is used again; for questions with many answers too. Knows nothing of what is
//! written, and tries nothing again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, HeaderMap, HeaderValue, Message, StatusCode, SubscribeError, Subscriber};
use futures_util::StreamExt;
use serde::Deserialize;

use super::ANSWER;
use super::bucket::{ReadError, Revision, WriteError};

/// How many subscriptions wait to be used again at the most.
const MOST_IDLE: usize = 64;

/// Subscriptions that wait to be used again: nats-server takes longer to begin and end one than to store a record.
#[derive(Clone)]
pub(super) struct Lanes {
    client: Client,
    idle: Arc<Mutex<Vec<Lane>>>,
}

/// A subscription for answers.
struct Lane {
    /// Answers come to this subject with the write's number behind it.
    inbox: String,
    answers: Subscriber,
    /// The number of the next write; no number is used twice.
    next: u64,
}

impl Lanes {
    pub(super) fn new(client: Client) -> Self {
        Self { client, idle: Arc::default() }
    }

    /// Begins writes that do not wait for each other.
    pub(super) async fn begin(&self) -> Result<Writes, WriteError> {
        let lane = self.lane().await.map_err(|error| unknown(&error))?;
        Ok(Writes { lanes: self.clone(), first: lane.next, lane: Some(lane), answered: 0 })
    }

    /// Asks what is answered by many messages.
    pub(super) async fn ask(&self, subject: String, request: Vec<u8>) -> Result<Answers, ReadError> {
        let failed = |error: &dyn std::error::Error| ReadError(error.to_string());
        let mut lane = self.lane().await.map_err(|error| failed(&error))?;
        let answer_to = format!("{}.{}", lane.inbox, lane.next);
        lane.next += 1;
        let sent = self.client.publish_with_reply(subject, answer_to.clone(), request.into()).await;
        sent.map_err(|error| failed(&error))?;
        Ok(Answers { lanes: self.clone(), lane, answer_to })
    }

    async fn lane(&self) -> Result<Lane, SubscribeError> {
        let idle = self.idle().pop();
        if let Some(lane) = idle {
            return Ok(lane);
        }
        let inbox = self.client.new_inbox();
        let answers = self.client.subscribe(format!("{inbox}.*")).await?;
        Ok(Lane { inbox, answers, next: 0 })
    }

    /// Of a subscription that misses answers, nobody knows when they come: such a one must not come back.
    fn give_back(&self, lane: Lane) {
        let mut idle = self.idle();
        if idle.len() < MOST_IDLE {
            idle.push(lane);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answers to one question.
pub(super) struct Answers {
    lanes: Lanes,
    lane: Lane,
    answer_to: String,
}

impl Answers {
    /// The next answer.
    pub(super) async fn next(&mut self, patience: Duration) -> Result<Message, ReadError> {
        loop {
            let message = tokio::time::timeout(patience, self.lane.answers.next())
                .await
                .map_err(|_| ReadError(format!("no answer within {} s", patience.as_secs())))?
                .ok_or_else(|| ReadError("the connection is closed".to_owned()))?;
            if *message.subject == *self.answer_to {
                return Ok(message);
            }
        }
    }

    /// That was the last one.
    pub(super) fn end(self) {
        self.lanes.give_back(self.lane);
    }
}

/// What is to be written to one record.
pub(super) struct Write {
    pub(super) subject: String,
    pub(super) value: Vec<u8>,
    /// The write is done only where this is the record's revision, if it is said.
    pub(super) expected: Option<Revision>,
    /// The record lives for ever, if nothing.
    pub(super) time_to_live: Option<Duration>,
}

/// See the module's head.
pub(super) struct Writes {
    lanes: Lanes,
    /// There until it is dropped.
    lane: Option<Lane>,
    /// The number of the first write.
    first: u64,
    answered: u64,
}

impl Drop for Writes {
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take_if(|lane| lane.next - self.first == self.answered) {
            self.lanes.give_back(lane);
        }
    }
}

impl Writes {
    /// Sends the next write. Writes are numbered from 0 on in the order in which they were sent; one that fails here
    /// has no number.
    pub(super) async fn send(&mut self, write: Write) -> Result<(), WriteError> {
        let Write { subject, value, expected, time_to_live } = write;
        let (Some(lane), client) = (&mut self.lane, &self.lanes.client) else { return Err(unanswered()) };
        let mut headers = HeaderMap::new();
        if let Some(expected) = expected {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(expected.0));
        }
        if let Some(time_to_live) = time_to_live {
            headers.insert(NATS_MESSAGE_TTL, HeaderValue::from(time_to_live.as_secs()));
        }
        let answer_to = format!("{}.{}", lane.inbox, lane.next);
        let sent = if headers.is_empty() {
            client.publish_with_reply(subject, answer_to, value.into()).await
        } else {
            client.publish_with_reply_and_headers(subject, answer_to, headers, value.into()).await
        };
        sent.map_err(|error| unknown(&error))?;
        lane.next += 1;
        Ok(())
    }

    /// The next answer, with the number of its write; nothing when all have been answered, or no more answers come
    /// and what became of the rest is unknown.
    pub(super) async fn answer(&mut self) -> Option<(usize, Result<Revision, WriteError>)> {
        let lane = self.lane.as_mut()?;
        while self.answered < lane.next - self.first {
            let message = tokio::time::timeout(ANSWER, lane.answers.next()).await.ok()??;
            let number = message.subject.as_str().rsplit('.').next().and_then(|number| number.parse().ok());
            let Some(number) = number.and_then(|number: u64| number.checked_sub(self.first)) else {
                continue;
            };
            self.answered += 1;
            return Some((usize::try_from(number).ok()?, read(&message)));
        }
        None
    }

    /// Sends all of these, each made when it is its turn, before the first answer is waited for. Answers what became
    /// of each.
    pub(super) async fn each<T>(
        mut self,
        writes: impl Iterator<Item = (T, Result<Write, WriteError>)>,
    ) -> Vec<(T, Result<Revision, WriteError>)> {
        let (mut outcomes, mut pending) = (Vec::new(), Vec::new());
        for (what, write) in writes {
            let sent = match write {
                Ok(write) => self.send(write).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok(()) => pending.push(Some(what)),
                Err(error) => outcomes.push((what, Err(error))),
            }
        }
        while let Some((number, outcome)) = self.answer().await {
            let what = pending.get_mut(number).and_then(Option::take);
            outcomes.extend(what.map(|what| (what, outcome)));
        }
        outcomes.extend(pending.into_iter().flatten().map(|what| (what, Err(unanswered()))));
        outcomes
    }

    /// The answer to the only write.
    pub(super) async fn only(mut self) -> Result<Revision, WriteError> {
        self.answer().await.map_or_else(|| Err(unanswered()), |(_, outcome)| outcome)
    }
}

/// What is to be said of a write that was not answered.
fn unanswered() -> WriteError {
    WriteError::Unknown(format!("no answer within {} s", ANSWER.as_secs()))
}

fn unknown(error: &dyn std::error::Error) -> WriteError {
    WriteError::Unknown(error.to_string())
}

fn read(message: &Message) -> Result<Revision, WriteError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        seq: u64,
        error: Option<jetstream::Error>,
    }
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(WriteError::Missing);
    }
    let answer = serde_json::from_slice(&message.payload)
        .map_err(|error| WriteError::Unknown(format!("an answer that cannot be read: {error}")))?;
    match answer {
        Answer { error: Some(error), .. } => Err(refusal(&error)),
        Answer { seq: 0, .. } => Err(WriteError::Unknown("an answer without a sequence".to_owned())),
        Answer { seq, .. } => Ok(Revision(seq)),
    }
}

/// What an error in an answer means for the write.
fn refusal(error: &jetstream::Error) -> WriteError {
    match error.error_code() {
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE => WriteError::Conflict,
        // From a cluster only: a write of the same record is on its way through it and may still fail; or a new leader
        // has not caught up.
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
        | ErrorCode::STREAM_EXPECTED_LAST_SEQ_PER_SUBJECT_NOT_READY => WriteError::Busy,
        _ => WriteError::Refused(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_refuses_a_compare_and_set_in_three_ways_and_none_of_them_is_taken_for_a_failure() {
        let refused = |code: u64, description: &str| {
            let error = serde_json::json!({"code": 400, "err_code": code, "description": description});
            refusal(&serde_json::from_value(error).unwrap())
        };
        assert!(matches!(refused(10071, "wrong last sequence: 5"), WriteError::Conflict));
        assert!(matches!(refused(10164, "wrong last sequence"), WriteError::Busy));
        let unavailable = "expected last sequence per subject temporarily unavailable";
        assert!(matches!(refused(10163, unavailable), WriteError::Busy));
        for (code, description) in [(10077, "maximum messages exceeded"), (10023, "insufficient resources")] {
            let error = refused(code, description);
            assert!(matches!(&error, WriteError::Refused(what) if what.contains(description)), "{error}");
            assert!(!error.is_contended());
        }
    }
}
