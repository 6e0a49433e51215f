//! Writes to the bucket that do not wait for each other: all are sent, and their answers are taken as they come, by one
//! subscription, which is used again. Also questions with many answers. Knows nothing of what is written, and retries nothing.
//!
//! Whoever may publish an event can have JetStream send its ack to any subject of the account, since NATS does not check reply
//! subjects. So each answer comes to a subject with a random token, and the answer to a write must name the ledger's stream.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, HeaderMap, HeaderValue, Message, StatusCode, SubscribeError, Subscriber};
use futures_util::StreamExt;
use prometheus::IntCounter;
use serde::Deserialize;
use tracing::warn;

use crate::durable::bucket::{ReadError, Revision, WriteError};
use crate::durable::jetstream::ANSWER;

/// How many subscriptions wait to be used again at the most.
const MOST_IDLE: usize = 64;

/// Subscriptions that wait to be used again: nats-server takes longer to begin and end one than to store a record.
#[derive(Clone)]
pub(crate) struct Lanes {
    client: Client,
    /// The stream that answers writes.
    stream: Arc<str>,
    idle: Arc<Mutex<Vec<Lane>>>,
    /// Messages that are not the answer to anything.
    forged: IntCounter,
}

/// What only the receiver of a question knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token(u64);

impl Token {
    fn new() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Token {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// A subscription for answers.
struct Lane {
    /// Answers come to this subject, followed by the number of the write and its token.
    inbox: String,
    answers: Subscriber,
    /// The number of the next write; no number is used twice.
    next: u64,
}

impl Lanes {
    pub(crate) fn new(client: Client, stream: &str, forged: IntCounter) -> Self {
        Self { client, stream: stream.into(), idle: Arc::default(), forged }
    }

    /// Begins writes that do not wait for each other.
    pub(crate) async fn begin(&self) -> Result<Writes, WriteError> {
        let lane = self.lane().await.map_err(|error| unknown(&error))?;
        Ok(Writes { lanes: self.clone(), lane: Some(lane), tokens: Vec::new(), answered: 0 })
    }

    /// Asks what is answered by many messages.
    pub(crate) async fn ask(&self, subject: String, request: Vec<u8>) -> Result<Answers, ReadError> {
        let failed = |error: &dyn std::error::Error| ReadError(error.to_string());
        let mut lane = self.lane().await.map_err(|error| failed(&error))?;
        let answer_to = format!("{}.{}.{}", lane.inbox, lane.next, Token::new());
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
        let answers = self.client.subscribe(format!("{inbox}.*.*")).await?;
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
pub(crate) struct Answers {
    lanes: Lanes,
    lane: Lane,
    answer_to: String,
}

impl Answers {
    /// The next answer.
    pub(crate) async fn next(&mut self, patience: Duration) -> Result<Message, ReadError> {
        loop {
            let message = tokio::time::timeout(patience, self.lane.answers.next())
                .await
                .map_err(|_| ReadError(format!("no answer within {} s", patience.as_secs())))?
                .ok_or_else(|| ReadError("the connection is closed".to_owned()))?;
            if *message.subject == *self.answer_to {
                return Ok(message);
            }
            note_forged(&self.lanes.forged);
        }
    }

    /// That was the last one.
    pub(crate) fn end(self) {
        self.lanes.give_back(self.lane);
    }
}

/// What is to be written to one record.
pub(crate) struct Write {
    pub(crate) subject: String,
    pub(crate) value: Vec<u8>,
    /// The write is done only where this is the record's revision, if it is said.
    pub(crate) expected: Option<Revision>,
    /// The record lives for ever, if nothing.
    pub(crate) time_to_live: Option<Duration>,
}

/// Sends writes to the bucket without waiting for each other, and reads their answers by one subscription.
pub(crate) struct Writes {
    lanes: Lanes,
    /// There until it is dropped.
    lane: Option<Lane>,
    /// The token of each write, in their order; nothing where it was answered.
    tokens: Vec<Option<Token>>,
    answered: usize,
}

impl Drop for Writes {
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take_if(|_| self.tokens.len() == self.answered) {
            self.lanes.give_back(lane);
        }
    }
}

impl Writes {
    /// Sends the next write. Writes are numbered from 0 on in the order in which they were sent; one that fails here
    /// has no number.
    pub(crate) async fn send(&mut self, write: Write) -> Result<(), WriteError> {
        let Write { subject, value, expected, time_to_live } = write;
        let (Some(lane), client) = (&mut self.lane, &self.lanes.client) else { return Err(unanswered()) };
        let mut headers = HeaderMap::new();
        if let Some(expected) = expected {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(expected.0));
        }
        if let Some(time_to_live) = time_to_live {
            headers.insert(NATS_MESSAGE_TTL, HeaderValue::from(time_to_live.as_secs()));
        }
        let token = Token::new();
        let answer_to = format!("{}.{}.{token}", lane.inbox, lane.next);
        let sent = if headers.is_empty() {
            client.publish_with_reply(subject, answer_to, value.into()).await
        } else {
            client.publish_with_reply_and_headers(subject, answer_to, headers, value.into()).await
        };
        sent.map_err(|error| unknown(&error))?;
        lane.next += 1;
        self.tokens.push(Some(token));
        Ok(())
    }

    /// The next answer, with the number of its write; nothing when all have been answered, or no more answers come
    /// and what became of the rest is unknown.
    pub(crate) async fn answer(&mut self) -> Option<(usize, Result<Revision, WriteError>)> {
        let lane = self.lane.as_mut()?;
        // Numbers go on from one use of a lane to the next.
        let first = lane.next - u64::try_from(self.tokens.len()).ok()?;
        while self.answered < self.tokens.len() {
            let message = tokio::time::timeout(ANSWER, lane.answers.next()).await.ok()??;
            let Some(number) = number_of(&message.subject, first, &mut self.tokens) else {
                note_forged(&self.lanes.forged);
                continue;
            };
            self.answered += 1;
            return Some((number, read(&message, &self.lanes.stream)));
        }
        None
    }

    /// Sends all of these, each made when it is its turn, before the first answer is waited for. Answers what became
    /// of each.
    pub(crate) async fn each<T>(
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
    pub(crate) async fn only(mut self) -> Result<Revision, WriteError> {
        self.answer().await.map_or_else(|| Err(unanswered()), |(_, outcome)| outcome)
    }
}

/// Counts a message that is not the answer to anything, and warns now and then.
pub(crate) fn note_forged(forged: &IntCounter) {
    forged.inc();
    let count = forged.get();
    // There may be as many as there are events.
    if count.is_power_of_two() {
        warn!(
            count,
            "ignored a message that arrived as an answer and answers nothing: a publisher in this NATS account forges reply subjects. Give producers an account of their own (docs/security.md)"
        );
    }
}

/// Which of the writes from `first` on an answer belongs to, by the last two tokens of its subject; each is answered once.
fn number_of(subject: &str, first: u64, tokens: &mut [Option<Token>]) -> Option<usize> {
    let mut parts = subject.rsplit('.');
    let token: Token = parts.next()?.parse().ok()?;
    let number: u64 = parts.next()?.parse().ok()?;
    let number = usize::try_from(number.checked_sub(first)?).ok()?;
    tokens.get_mut(number)?.take_if(|known| *known == token)?;
    Some(number)
}

/// What is to be said of a write that was not answered.
pub(crate) fn unanswered() -> WriteError {
    WriteError::Unknown(format!("no answer within {} s", ANSWER.as_secs()))
}

fn unknown(error: &dyn std::error::Error) -> WriteError {
    WriteError::Unknown(error.to_string())
}

/// Reads the answer to a write. `stream`: the stream that answers writes.
pub(crate) fn read(message: &Message, stream: &str) -> Result<Revision, WriteError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        stream: String,
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
        Answer { stream: other, .. } if other != stream => {
            Err(WriteError::Unknown(format!("an answer of the stream {other:?}")))
        }
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
    fn an_answer_is_taken_once_and_by_its_token_alone() {
        let (one, other) = (Token(0x1f), Token::new());
        assert_eq!(one.to_string(), "000000000000001f");
        let mut tokens = [Some(one), Some(other)];
        let mut of = |subject: &str| number_of(subject, 7, &mut tokens);
        for forged in [
            "_INBOX.a.7.0000000000000020".to_owned(),
            format!("_INBOX.a.8.{one}"),
            format!("_INBOX.a.6.{one}"),
            format!("_INBOX.a.9.{one}"),
            format!("_INBOX.a.{}.{one}", u64::MAX),
            format!("{one}"),
            "_INBOX.a.7.".to_owned(),
            String::new(),
        ] {
            assert_eq!(of(&forged), None, "{forged}");
        }
        assert_eq!(of(&format!("_INBOX.a.8.{other}")), Some(1));
        assert_eq!(of(&format!("_INBOX.a.7.{one}")), Some(0));
        assert_eq!(of(&format!("_INBOX.a.7.{one}")), None, "a second answer");
    }

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
