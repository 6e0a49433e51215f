//! Dead letters: what cannot go on, published with its original bytes and headers and the reason.
//!
//! The letter is an envelope: headers copied as headers could have the publish refused or dropped
//! (`Nats-Expected-*`, `Nats-Msg-Id`), so they travel inside it, and the payload as base64, since it may be
//! anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, HeaderMap};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use taskpipeline_contract::{DecodeError, Timestamp};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, warn};
use uuid::Uuid;

use super::ingest::Carried;
use super::source::{Received, round_trip};
use crate::telemetry::metrics::Metrics;

/// How many letters may wait to be published while NATS is away.
const CAPACITY: usize = 1_024;

/// How often to look whether NATS is back.
const RECONNECT_POLL: Duration = Duration::from_millis(250);

/// Room left in a message for everything of the envelope but payload and headers.
const ENVELOPE_ROOM: usize = 8 * 1024;

/// Why an event ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Reason {
    /// The message is no event.
    Invalid,
    /// KV did not take it in as many attempts as the policy allows.
    AttemptsUsedUp,
    /// KV refuses this task, however it is sent.
    RefusedByKv,
    /// It changes a task whose value in KV is not one.
    UnreadableInKv,
    /// There was no time left at shutdown.
    Shutdown,
}

impl Reason {
    /// As it stands in the letter and in the metric's label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::AttemptsUsedUp => "attempts-used-up",
            Self::RefusedByKv => "refused-by-kv",
            Self::UnreadableInKv => "unreadable-in-kv",
            Self::Shutdown => "shutdown",
        }
    }
}

/// A message that cannot go on, and why.
pub(super) struct Letter {
    id: Uuid,
    reason: Reason,
    detail: String,
    faults: Vec<Fault>,
    attempts: u32,
    received: Received,
}

#[derive(Clone, Serialize)]
struct Fault {
    field: &'static str,
    problem: String,
}

impl Letter {
    pub(super) fn undecodable(received: Received, error: &DecodeError) -> Self {
        let faults = error
            .faults()
            .iter()
            .map(|fault| Fault { field: fault.field, problem: fault.problem.to_string() })
            .collect();
        let id = Uuid::new_v4();
        Self { id, reason: Reason::Invalid, detail: error.to_string(), faults, attempts: 0, received }
    }

    pub(super) fn unwritable(carried: Carried, reason: Reason, detail: &str, attempts: u32) -> Self {
        let (id, detail) = (Uuid::new_v4(), detail.to_owned());
        Self { id, reason, detail, faults: Vec::new(), attempts, received: carried.received }
    }

    #[cfg(test)]
    pub(super) fn reason(&self) -> Reason {
        self.reason
    }

    #[cfg(test)]
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }
}

/// What is published. A payload that does not fit one message comes in `parts`, all with the same id.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    id: Uuid,
    part: usize,
    parts: usize,
    reason: Reason,
    detail: &'a str,
    faults: &'a [Fault],
    attempts: u32,
    subject: &'a str,
    received_at: Timestamp,
    headers: BTreeMap<&'a str, Vec<&'a str>>,
    payload: String,
}

/// Where letters are handed in.
#[derive(Clone)]
pub(super) struct DeadLetters {
    letters: mpsc::Sender<Letter>,
    unpublished: Unpublished,
}

/// How many letters were handed in that the server is not known to have.
#[derive(Clone, Default)]
pub(super) struct Unpublished(Arc<AtomicUsize>);

impl Unpublished {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, count: usize) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }
}

impl DeadLetters {
    /// Starts publishing on `dead-letters.{prefix}`. The handle ends once every clone of the other is
    /// dropped and every letter is out.
    pub(super) fn start(client: Client, prefix: &str, metrics: Arc<Metrics>) -> (Self, JoinHandle<()>) {
        let subject = format!("dead-letters.{prefix}");
        let (letters, waiting) = mpsc::channel::<Letter>(CAPACITY);
        let unpublished = Unpublished::default();
        let publishing = tokio::spawn(publish_all(client, subject, waiting, unpublished.clone(), metrics));
        (Self { letters, unpublished }, publishing)
    }

    /// The count of letters that are not out yet; it outlives the last handle.
    pub(super) fn unpublished(&self) -> Unpublished {
        self.unpublished.clone()
    }

    /// Letters that stay in the process, for tests of those who write them.
    #[cfg(test)]
    pub(super) fn kept(capacity: usize) -> (Self, mpsc::Receiver<Letter>) {
        let (letters, waiting) = mpsc::channel(capacity);
        (Self { letters, unpublished: Unpublished::default() }, waiting)
    }

    /// Hands in a letter; waits while too many are waiting.
    pub(super) async fn send(&self, letter: Letter) {
        self.unpublished.add();
        // The other end is gone only when the process ends.
        let _ = self.letters.send(letter).await;
    }
}

/// Publishes in batches: a letter counts as out when the server has answered a round trip after it. Where it
/// does not answer, the batch is published again, under the same ids: some of it may have been lost with
/// the connection.
async fn publish_all(
    client: Client,
    subject: String,
    mut waiting: mpsc::Receiver<Letter>,
    unpublished: Unpublished,
    metrics: Arc<Metrics>,
) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, CAPACITY).await > 0 {
        loop {
            for letter in &batch {
                if let Err(error) = publish(&client, &subject, letter).await {
                    error!("a dead letter cannot be published: {error}");
                }
            }
            match round_trip(&client).await {
                Ok(()) => break,
                Err(error) => warn!("{} dead letters wait for NATS: {error}", unpublished.count()),
            }
            while client.connection_state() != State::Connected {
                tokio::time::sleep(RECONNECT_POLL).await;
            }
        }
        unpublished.remove(batch.len());
        for letter in batch.drain(..) {
            metrics.dead_letters.with_label_values(&[letter.reason.as_str()]).inc();
        }
    }
}

async fn publish(client: &Client, subject: &str, letter: &Letter) -> Result<(), String> {
    let most = client.server_info().max_payload;
    for bytes in encode(letter, most).map_err(|error| error.to_string())? {
        client.publish(subject.to_owned(), bytes.into()).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The letter as one or more messages of at most `most` bytes.
fn encode(letter: &Letter, most: usize) -> Result<Vec<Vec<u8>>, serde_json::Error> {
    let headers = letter.received.headers.as_ref().map(header_map).unwrap_or_default();
    let header_bytes: usize = headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(|value| name.len() + value.len() + 8))
        .sum();
    // Base64 makes four bytes of three.
    let chunk = (most.saturating_sub(ENVELOPE_ROOM + header_bytes) / 4 * 3).max(1_024);
    let payload = &letter.received.payload;
    let parts = payload.len().div_ceil(chunk).max(1);
    let envelope = |part: usize| {
        let from = part * chunk;
        let slice = &payload[from..payload.len().min(from + chunk)];
        serde_json::to_vec(&Envelope {
            id: letter.id,
            part: part + 1,
            parts,
            reason: letter.reason,
            detail: &letter.detail,
            faults: &letter.faults,
            attempts: letter.attempts,
            subject: letter.received.subject.as_str(),
            received_at: letter.received.at,
            headers: if part == 0 { headers.clone() } else { BTreeMap::new() },
            payload: BASE64.encode(slice),
        })
    };
    (0..parts).map(envelope).collect()
}

fn header_map(headers: &HeaderMap) -> BTreeMap<&str, Vec<&str>> {
    headers.iter().map(|(name, values)| (name.as_ref(), values.iter().map(AsRef::as_ref).collect())).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::Value;
    use taskpipeline_contract::EventKind;

    use super::*;

    fn letter(payload: Vec<u8>) -> Letter {
        let mut headers = HeaderMap::new();
        headers.append("Nats-Msg-Id", "1");
        headers.append("X-Many", "a");
        headers.append("X-Many", "b");
        let received = Received {
            kind: EventKind::Created,
            subject: "tasks.created".into(),
            headers: Some(headers),
            payload: Bytes::from(payload),
            at: Timestamp::UNIX_EPOCH,
            taken: tokio::time::Instant::now(),
        };
        Letter::undecodable(received, &DecodeError::Malformed("no".to_owned()))
    }

    #[test]
    fn a_letter_holds_the_original_bytes_and_headers() {
        let bytes = vec![0, 159, 146, 150, b'"'];
        let messages = encode(&letter(bytes.clone()), 1 << 20).unwrap();
        assert_eq!(messages.len(), 1);
        let envelope: Value = serde_json::from_slice(&messages[0]).unwrap();
        assert_eq!(envelope["reason"], "invalid");
        assert_eq!(envelope["headers"]["X-Many"], serde_json::json!(["a", "b"]));
        assert_eq!(BASE64.decode(envelope["payload"].as_str().unwrap()).unwrap(), bytes);
    }

    #[test]
    fn a_payload_too_large_for_the_envelope_comes_in_parts() {
        let most = 64 * 1024;
        let bytes: Vec<u8> = (0..most).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let messages = encode(&letter(bytes.clone()), most).unwrap();
        let mut whole = Vec::new();
        for (n, message) in messages.iter().enumerate() {
            assert!(message.len() <= most, "{}", message.len());
            let envelope: Value = serde_json::from_slice(message).unwrap();
            assert_eq!(envelope["part"], n + 1);
            assert_eq!(envelope["parts"], messages.len());
            whole.extend(BASE64.decode(envelope["payload"].as_str().unwrap()).unwrap());
        }
        assert!(messages.len() > 1);
        assert_eq!(whole, bytes);
    }
}
