//! Writes to the bucket that do not wait for each other, and questions with many answers.
//!
//! All writes are sent first, and one subscription, which is reused, receives their answers. This
//! module does not know the meaning of the records, and retries nothing.
//!
//! Anyone who may publish an event can direct its ack to any subject of the account, because NATS
//! does not check reply subjects. So each answer arrives on a subject with a random token, and the
//! answer to a write must name the stream of the ledger.

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

/// The most subscriptions that wait to be reused.
const MOST_IDLE: usize = 64;

/// Subscriptions that wait to be reused. nats-server takes longer to open and close one than to
/// store a record.
#[derive(Clone)]
pub(crate) struct Lanes {
    client: Client,
    /// The stream whose answers count for writes.
    stream: Arc<str>,
    idle: Arc<Mutex<Vec<Lane>>>,
    /// Counts messages that answer nothing.
    forged: IntCounter,
}

/// The random part of a reply subject, which only the receiver of the request knows.
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
    /// The prefix of reply subjects. The number and the token of the write follow.
    inbox: String,
    answers: Subscriber,
    /// The number of the next write. No number is used twice.
    next: u64,
}

impl Lanes {
    pub(crate) fn new(client: Client, stream: &str, forged: IntCounter) -> Self {
        Self { client, stream: stream.into(), idle: Arc::default(), forged }
    }

    /// Starts a series of writes.
    pub(crate) async fn begin(&self) -> Result<Writes, WriteError> {
        let lane = self.lane().await.map_err(|error| unknown(&error))?;
        Ok(Writes { lanes: self.clone(), lane: Some(lane), tokens: Vec::new(), answered: 0 })
    }

    /// Sends a request that many messages answer.
    pub(crate) async fn request(&self, subject: String, request: Vec<u8>) -> Result<Answers, ReadError> {
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

    /// Keeps a subscription for reuse. A subscription with missing answers must not come here,
    /// because they may still arrive.
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

/// The answers to one request.
pub(crate) struct Answers {
    lanes: Lanes,
    lane: Lane,
    answer_to: String,
}

impl Answers {
    /// Waits up to `patience` for the next answer.
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

    /// Ends the answers after the last one.
    pub(crate) fn end(self) {
        self.lanes.give_back(self.lane);
    }
}

/// The write of one record.
pub(crate) struct Write {
    pub(crate) subject: String,
    pub(crate) value: Vec<u8>,
    /// The revision that the record must have. `None` writes at any revision.
    pub(crate) expected: Option<Revision>,
    /// How long the record lives; `None` means indefinitely.
    pub(crate) time_to_live: Option<Duration>,
}

/// Sends writes to the bucket without waiting for each other, and receives their answers on one
/// subscription.
pub(crate) struct Writes {
    lanes: Lanes,
    /// `Some` until this is dropped.
    lane: Option<Lane>,
    /// The token of each write, in order; `None` after its answer.
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
    /// Sends the next write. Writes are numbered from 0 in the order of sending; a write that fails
    /// here has no number.
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

    /// Waits for the next answer, and returns it with the number of its write.
    ///
    /// `None` after the last answer, or if the other answers do not arrive. Then the outcome of
    /// their writes is unknown.
    pub(crate) async fn answer(&mut self) -> Option<(usize, Result<Revision, WriteError>)> {
        let lane = self.lane.as_mut()?;
        // The numbers continue from one use of a lane to the next.
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

    /// Sends all these writes before it waits for the first answer. Returns the outcome of each.
    ///
    /// The iterator builds each write only when it is sent.
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

    /// Waits for the answer to the only write.
    pub(crate) async fn only(mut self) -> Result<Revision, WriteError> {
        self.answer().await.map_or_else(|| Err(unanswered()), |(_, outcome)| outcome)
    }
}

/// Counts a message that answers nothing. Logs it at counts of 1, 2, 4, 8, and so on.
pub(crate) fn note_forged(forged: &IntCounter) {
    forged.inc();
    let count = forged.get();
    // There may be as many such messages as events.
    if count.is_power_of_two() {
        warn!(
            count,
            "ignored a message that arrived as an answer and answers nothing: a publisher in this NATS account forges \
             reply subjects. Give producers an account of their own (docs/security.md)"
        );
    }
}

/// The write, counted from `first`, that an answer belongs to. The last two tokens of its subject
/// tell, and each counts once.
fn number_of(subject: &str, first: u64, tokens: &mut [Option<Token>]) -> Option<usize> {
    let mut parts = subject.rsplit('.');
    let token: Token = parts.next()?.parse().ok()?;
    let number: u64 = parts.next()?.parse().ok()?;
    let number = usize::try_from(number.checked_sub(first)?).ok()?;
    tokens.get_mut(number)?.take_if(|known| *known == token)?;
    Some(number)
}

/// The error of a write without an answer.
pub(crate) fn unanswered() -> WriteError {
    WriteError::Unknown(format!("no answer within {} s", ANSWER.as_secs()))
}

fn unknown(error: &dyn std::error::Error) -> WriteError {
    WriteError::Unknown(error.to_string())
}

/// Reads the answer to a write. `stream`: the stream whose answers count.
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
        .map_err(|error| WriteError::Unknown(format!("the answer is invalid: {error}")))?;
    match answer {
        Answer { error: Some(error), .. } => Err(refusal(&error)),
        Answer { stream: other, .. } if other != stream => {
            Err(WriteError::Unknown(format!("the answer names the stream {other:?}")))
        }
        Answer { seq: 0, .. } => Err(WriteError::Unknown("the answer has no sequence".to_owned())),
        Answer { seq, .. } => Ok(Revision(seq)),
    }
}

/// The meaning of an error in an answer for the write.
fn refusal(error: &jetstream::Error) -> WriteError {
    match error.error_code() {
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE => WriteError::Conflict,
        // Only a cluster answers these: another write of the record is on its way and may still
        // fail, or a new leader has not caught up.
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
