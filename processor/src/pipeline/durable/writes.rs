//! Writes to the bucket of which none waits for another: all are sent, and their answers are taken as they come, by
//! one subscription for all of them. Knows nothing of what is written, and tries nothing again.

use std::time::Duration;

use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, HeaderMap, HeaderValue, Message, StatusCode, Subscriber};
use futures_util::StreamExt;
use serde::Deserialize;

use super::bucket::{Revision, WriteError};

/// How long the next answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// See the module's head.
pub(super) struct Writes {
    client: Client,
    /// Answers come to this subject with the write's number behind it.
    inbox: String,
    answers: Subscriber,
    sent: usize,
    answered: usize,
}

impl Writes {
    pub(super) async fn begin(client: Client) -> Result<Self, WriteError> {
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await.map_err(|error| unknown(&error))?;
        Ok(Self { client, inbox, answers, sent: 0, answered: 0 })
    }

    /// Sends the next write; done only where the record's revision is `expected`, if that is said. Writes are
    /// numbered from 0 on in the order in which they were sent; one that fails here has no number.
    pub(super) async fn send(
        &mut self,
        subject: String,
        value: Vec<u8>,
        expected: Option<Revision>,
        time_to_live: Option<Duration>,
    ) -> Result<(), WriteError> {
        let mut headers = HeaderMap::new();
        if let Some(expected) = expected {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(expected.0));
        }
        if let Some(time_to_live) = time_to_live {
            headers.insert(NATS_MESSAGE_TTL, HeaderValue::from(time_to_live.as_secs()));
        }
        let answer_to = format!("{}.{}", self.inbox, self.sent);
        let sent = match headers.is_empty() {
            true => self.client.publish_with_reply(subject, answer_to, value.into()).await,
            false => {
                self.client
                    .publish_with_reply_and_headers(subject, answer_to, headers, value.into())
                    .await
            }
        };
        sent.map_err(|error| unknown(&error))?;
        self.sent += 1;
        Ok(())
    }

    /// The next answer, with the number of its write; nothing when all have been answered, or no more answers come
    /// and what became of the rest is unknown.
    pub(super) async fn answer(&mut self) -> Option<(usize, Result<Revision, WriteError>)> {
        while self.answered < self.sent {
            let message = tokio::time::timeout(ANSWER, self.answers.next()).await.ok()??;
            let number = message.subject.as_str().rsplit('.').next().and_then(|number| number.parse().ok());
            if let Some(number) = number {
                self.answered += 1;
                return Some((number, read(&message)));
            }
        }
        None
    }

    /// The answer to the only write.
    pub(super) async fn only(mut self) -> Result<Revision, WriteError> {
        self.answer().await.map_or_else(|| Err(unanswered()), |(_, outcome)| outcome)
    }
}

/// What is to be said of a write that was not answered.
pub(super) fn unanswered() -> WriteError {
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
        return Err(WriteError::Unknown("there is no such bucket, or JetStream is off".to_owned()));
    }
    let answer = serde_json::from_slice(&message.payload)
        .map_err(|error| WriteError::Unknown(format!("an answer that cannot be read: {error}")))?;
    match answer {
        Answer { error: Some(error), .. } if error.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE => {
            Err(WriteError::Conflict)
        }
        Answer { error: Some(error), .. } => Err(WriteError::Unknown(error.to_string())),
        Answer { seq: 0, .. } => Err(WriteError::Unknown("an answer without a sequence".to_owned())),
        Answer { seq, .. } => Ok(Revision(seq)),
    }
}
