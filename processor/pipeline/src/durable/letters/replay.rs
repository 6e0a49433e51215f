//! Replays letters one after the other, in the order of their events.
//!
//! It collects the facts for the decision, carries the decision out, and only then deletes the
//! letter.

use std::collections::HashSet;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use async_nats::header::{HeaderName, HeaderValue};
use async_nats::jetstream::context::{ConsumerInfoErrorKind, PublishError};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Stream;
use async_nats::{HeaderMap, header};
use taskpipeline_contract::{TaskId, Timestamp};
use tokio::time::Instant;

use super::decide::{Action, Facts, Refusal, decide, task_of};
use super::entry::Entry;
use super::store::{Opened, StoreError};
use super::{Desk, name};
use crate::dead_letters::Envelope;
use crate::durable::ledger::LedgerError;
use crate::durable::stream::incarnation::Source;

/// How long the replicas may take to catch up with the events in the stream.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The interval between two checks whether they have caught up.
const LOOK: Duration = Duration::from_millis(100);

/// Why a letter was not replayed, or not completely.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplayError {
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(
        "its header {0} cannot be sent again. Have its producer publish the event again, and drop the letter"
    )]
    Header(String),
    #[error("the stream did not confirm the event: {0}. Try again soon: the stream stores it once")]
    Publish(String),
    #[error(
        "the stream {0} stored the event, and the pipeline reads another stream. Set STREAM_NAME to the stream that \
         captures the events; the letter is kept"
    )]
    OtherStream(String),
    #[error("replayed, but cannot delete the letter: {0}. Do not replay it again; drop it")]
    Kept(StoreError),
}

/// The state of one command for all its letters.
pub(super) struct Replay<'a> {
    desk: &'a Desk,
    as_new: bool,
    behind: u64,
    memory: Option<Duration>,
    published: HashSet<u64>,
    touched: HashSet<TaskId>,
}

impl<'a> Replay<'a> {
    /// Starts the command. If the letters are of events, waits a little until the ledger has the
    /// events in the stream.
    pub(super) async fn begin(desk: &'a Desk, as_new: bool, events: bool) -> Result<Self, ReplayError> {
        let (published, touched) = (HashSet::new(), HashSet::new());
        let mut replay = Self { desk, as_new, behind: 0, memory: None, published, touched };
        // With `as_new` nothing is compared, so nothing must be waited for.
        if events && !as_new {
            let name = &desk.names.stream;
            let stream = desk
                .jetstream
                .get_stream(name)
                .await
                .map_err(|error| StoreError::Read { stream: name.clone(), reason: error.to_string() })?;
            replay.memory = Some(stream.cached_info().config.max_age).filter(|age| !age.is_zero());
            replay.behind = replay.catch_up(&stream).await?;
        }
        Ok(replay)
    }

    /// Replays one letter. Returns the text of the outcome.
    pub(super) async fn one(&mut self, entry: &Entry) -> Result<String, ReplayError> {
        let letter = self.desk.store.open_letter(entry).await?;
        let newest = match task_of(&letter, &self.desk.names) {
            Some(task) => self.desk.ledger.newest(&task).await?.map(|known| known.record.last.version),
            None => None,
        };
        let facts = Facts {
            newest,
            own: &self.published,
            behind: self.behind,
            memory: self.memory,
            age: letter.envelope.as_ref().map_or(Duration::ZERO, age),
            as_new: self.as_new,
        };
        let done = match decide(&letter, &self.desk.names, &facts)? {
            Action::Publish => self.publish(&letter).await?,
            Action::Touch(task) => self.touch(task).await?,
        };
        self.desk.store.delete(entry).await.map_err(ReplayError::Kept)?;
        Ok(format!("{} {done}", name(entry)))
    }

    async fn publish(&mut self, letter: &Opened) -> Result<String, ReplayError> {
        let envelope = letter.envelope.as_ref().ok_or(Refusal::Foreign)?;
        let mut headers = original_headers(envelope)?;
        // If the answer is lost, the letter can be replayed again, and the stream stores the event
        // once. The receipt time distinguishes letters with the same id from before and after a
        // deletion of everything in NATS.
        let once = format!("replay/{}/{}", envelope.id, envelope.received_at.to_unix_millis());
        let most = self.desk.jetstream.client().server_info().max_payload;
        let room = most.saturating_sub(letter.payload.len() + wire_size(&headers));
        if room >= wire_size_of(header::NATS_MESSAGE_ID.as_ref(), &once) {
            headers.insert(header::NATS_MESSAGE_ID, once.as_str());
        }
        let mut message = PublishMessage::build().payload(letter.payload.clone().into());
        if !headers.is_empty() {
            message = message.headers(headers);
        }
        let subject = envelope.subject.clone();
        let unconfirmed = |error: PublishError| ReplayError::Publish(error.to_string());
        let sent = self.desk.jetstream.send_publish(subject, message).await.map_err(unconfirmed)?;
        let ack = sent.await.map_err(unconfirmed)?;
        if ack.stream != self.desk.names.stream {
            return Err(ReplayError::OtherStream(ack.stream));
        }
        self.published.insert(ack.sequence);
        let again = if ack.duplicate { " (the stream had it already)" } else { "" };
        Ok(format!("was published again on {} as message {}{again}", envelope.subject, ack.sequence))
    }

    async fn touch(&mut self, task: TaskId) -> Result<String, ReplayError> {
        // Several letters may be about the same task.
        if !self.touched.contains(&task) {
            if !self.desk.ledger.touch(&task).await? {
                return Err(Refusal::NoRecord(task).into());
            }
            self.touched.insert(task.clone());
        }
        Ok(format!("was replayed: the task {task} is written to KV again"))
    }

    /// The number of events in the stream that the ledger lacks, after a wait of at most
    /// [`CATCH_UP`].
    async fn catch_up(&self, events: &Stream) -> Result<u64, ReplayError> {
        let names = &self.desk.names;
        let failed = |reason: String| StoreError::Read { stream: names.stream.clone(), reason };
        let state = &events.cached_info().state;
        let source = self.desk.ledger.bucket().get(&names.source()).await.map_err(LedgerError::from)?;
        let Some(source) = source.and_then(|it| serde_json::from_slice::<Source>(&it.value).ok()) else {
            // No replica has ever read the stream.
            return Ok(state.messages);
        };
        let consumer = names.consumer(source.current().incarnation);
        let (last, deadline) = (state.last_sequence, Instant::now() + CATCH_UP);
        loop {
            let info = match events.consumer_info(&consumer).await {
                Ok(info) => info,
                // No replica has checked the stream since it was created again.
                Err(error) if matches!(error.kind(), ConsumerInfoErrorKind::NotFound) => {
                    return Ok(state.messages);
                }
                Err(error) => return Err(failed(error.to_string()).into()),
            };
            let waiting = info.num_pending + u64::try_from(info.num_ack_pending).unwrap_or(0);
            if waiting == 0 || info.ack_floor.stream_sequence >= last {
                return Ok(0);
            }
            if Instant::now() >= deadline {
                return Ok(waiting);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// How long ago the event was received, by the clock of this machine.
fn age(envelope: &Envelope) -> Duration {
    let now = Timestamp::from(SystemTime::now()).to_unix_millis();
    let millis = now.saturating_sub(envelope.received_at.to_unix_millis());
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// The original headers, without those that instruct the server; none if no client can read them.
///
/// Instructions for the first publish could make the server refuse or drop the message now.
fn original_headers(envelope: &Envelope) -> Result<HeaderMap, ReplayError> {
    let mut headers = HeaderMap::new();
    for (name, values) in &envelope.heads.headers {
        if name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("Nats-")) {
            continue;
        }
        let unfit = || ReplayError::Header(super::line(name));
        for value in values {
            headers.append(
                HeaderName::from_str(name).map_err(|_| unfit())?,
                HeaderValue::from_str(value).map_err(|_| unfit())?,
            );
        }
    }
    Ok(headers)
}

/// The bytes of headers in a message, which count against the server's limit.
fn wire_size(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| {
        values.iter().map(move |value| wire_size_of(name.as_ref(), value.as_str()))
    });
    "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>()
}

fn wire_size_of(name: &str, value: &str) -> usize {
    name.len() + value.len() + ": \r\n".len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::entry::tests::message;
    use super::*;

    #[test]
    fn only_headers_that_are_not_for_the_server_go_out_again() {
        let mut envelope = message("g-1-5", 1, 1, b"");
        envelope["headers"] = json!({"Nats-Msg-Id": ["1"], "nats-expected-stream": ["X"], "Nats-TTL": ["1s"],
            "X-Many": ["a", "b"], "Natsume": ["c"], "N": ["ä"]});
        let headers = original_headers(&serde_json::from_value(envelope).unwrap()).unwrap();
        let many: Vec<_> = headers.get_all("X-Many").map(ToString::to_string).collect();
        assert_eq!((headers.len(), many), (3, vec!["a".to_owned(), "b".to_owned()]));
        assert!(headers.get("Natsume").is_some() && headers.get("N").is_some());
    }

    #[test]
    fn a_header_that_cannot_be_one_is_named() {
        let mut envelope = message("g-1-5", 1, 1, b"");
        envelope["headers"] = json!({"X": ["a\r\nY: b"]});
        let error = original_headers(&serde_json::from_value(envelope).unwrap()).unwrap_err();
        assert!(error.to_string().contains("header X "), "{error}");
    }
}
