//! Dead letters: messages and tasks that cannot be processed, with the original bytes, the headers
//! and the reason.
//!
//! This module has the letter and its envelope. Each mode publishes letters in its own way.
//!
//! Headers travel inside the envelope. As message headers, some could make NATS refuse or drop the
//! publish (`Nats-Expected-*`, `Nats-Msg-Id`). The payload is base64, because it may be any bytes.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use taskpipeline_contract::{DecodeError, Task, TaskId, Timestamp};
use uuid::Uuid;

use super::fold::Version;
use super::message::Received;
use super::reason::Reason;

/// Bytes reserved in a message for its own headers, which count against the server's limit: the
/// message id and the name of the stream.
const HEADER_ROOM: usize = 1024;

/// The least payload of a part, in bytes.
const LEAST_CHUNK: usize = 256;

/// The subject of dead letters for events under this prefix.
pub(crate) fn subject(prefix: &str) -> String {
    format!("dead-letters.{prefix}")
}

/// A field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) field: String,
    pub(crate) problem: String,
}

/// A message or a task that cannot be processed, and why.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    /// The same each time this letter is published.
    pub(super) id: String,
    pub(super) reason: Reason,
    pub(super) detail: String,
    pub(super) faults: Vec<Fault>,
    /// The number of attempts to write it.
    pub(super) attempts: u32,
    pub(super) subject: String,
    pub(super) received_at: Timestamp,
    pub(super) headers: Option<HeaderMap>,
    /// Headers that no client can read, as NATS stored them.
    pub(super) header_block: Option<Bytes>,
    pub(super) payload: Bytes,
    pub(super) origin: Origin,
}

/// The origin of a letter, in mode `Durable`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Origin {
    /// The version of the event: the incarnation of the stream, and the sequence in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<Version>,
    /// How often NATS has delivered the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deliveries: Option<i64>,
    /// The queue group of the replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) queue_group: Option<String>,
    /// The task that cannot be written. Then the letter is not about a single event, and has no
    /// payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task_id: Option<TaskId>,
    /// The task as KV should have it, or `None` if it should be deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<Task>,
    /// The versions of the events that the task was built from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<Version>,
}

impl Letter {
    /// The letter of a message as it was received.
    pub(super) fn new(received: Received, reason: Reason, detail: &str, attempts: u32) -> Self {
        Self {
            id: Uuid::new_v4().to_string(),
            reason,
            detail: detail.to_owned(),
            faults: Vec::new(),
            attempts,
            subject: received.subject.to_string(),
            received_at: received.at,
            headers: received.headers.map(|headers| *headers),
            header_block: None,
            payload: received.payload,
            origin: Origin::default(),
        }
    }

    /// The letter of a message that is not an event.
    pub(super) fn undecodable(received: Received, error: &DecodeError) -> Self {
        let faults = error
            .faults()
            .iter()
            .map(|fault| Fault { field: fault.field.to_owned(), problem: fault.problem.to_string() })
            .collect();
        Self { faults, ..Self::new(received, Reason::Invalid, &error.to_string(), 0) }
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

/// The published form. A payload that does not fit into one message is split into `parts` with the
/// same id.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Envelope {
    pub(crate) id: String,
    pub(crate) part: usize,
    pub(crate) parts: usize,
    pub(crate) reason: Reason,
    pub(crate) detail: String,
    pub(crate) faults: Vec<Fault>,
    pub(crate) attempts: u32,
    pub(crate) subject: String,
    pub(crate) received_at: Timestamp,
    #[serde(flatten)]
    pub(crate) heads: Heads,
    /// If the headers are too large for the envelope: the length of their JSON in bytes, at the
    /// start of the whole payload.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) header_bytes: usize,
    #[serde(flatten)]
    pub(crate) origin: Origin,
    /// Base64.
    pub(crate) payload: String,
}

/// The headers of the message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Heads {
    pub(crate) headers: BTreeMap<String, Vec<String>>,
    /// Headers that no client can read: as NATS stored them, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) header_block: Option<String>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Envelope {
    /// Removes the headers from the start of the whole payload. Returns `false` if they cannot be
    /// read.
    pub(crate) fn take_headers(&mut self, payload: &mut Vec<u8>) -> bool {
        let bytes = std::mem::take(&mut self.header_bytes);
        if bytes == 0 {
            return true;
        }
        let heads = payload.get(..bytes).and_then(|heads| serde_json::from_slice(heads).ok());
        let Some(heads) = heads else { return false };
        self.heads = heads;
        payload.drain(..bytes);
        true
    }
}

/// Encodes the letter as messages of at most `most` bytes, including their headers.
pub(super) fn encode(letter: &Letter, most: usize) -> Result<Vec<Vec<u8>>, serde_json::Error> {
    let most = most.saturating_sub(HEADER_ROOM);
    let mut heads = Heads {
        headers: letter.headers.as_ref().map(header_map).unwrap_or_default(),
        header_block: letter.header_block.as_ref().map(|block| BASE64.encode(block)),
    };
    let (mut payload, mut header_bytes) = (letter.payload.clone(), 0);
    // In JSON a header may need six times its bytes, which may exceed the limit of a message.
    let json = serde_json::to_vec(&heads)?;
    if json.len() > most / 2 {
        header_bytes = json.len();
        payload = [json, payload.to_vec()].concat().into();
        heads = Heads::default();
    }
    let envelope = |part: usize, parts: usize, slice: &[u8]| {
        serde_json::to_vec(&Envelope {
            id: letter.id.clone(),
            part,
            parts,
            reason: letter.reason,
            detail: letter.detail.clone(),
            faults: letter.faults.clone(),
            attempts: letter.attempts,
            subject: letter.subject.clone(),
            received_at: letter.received_at,
            heads: if part == 1 { heads.clone() } else { Heads::default() },
            header_bytes,
            origin: letter.origin.clone(),
            payload: BASE64.encode(slice),
        })
    };
    // The bytes beside the payload, with numbers of the greatest length.
    let beside = envelope(1, usize::MAX, &[])?.len() + usize::MAX.to_string().len();
    // Base64 needs four bytes for three.
    let chunk = (most.saturating_sub(beside) / 4 * 3).max(LEAST_CHUNK);
    let parts = payload.len().div_ceil(chunk).max(1);
    (0..parts)
        .map(|part| {
            let from = part * chunk;
            envelope(part + 1, parts, &payload[from..payload.len().min(from + chunk)])
        })
        .collect()
}

fn header_map(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    headers
        .iter()
        .map(|(name, values)| (name.to_string(), values.iter().map(ToString::to_string).collect()))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
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
            headers: Some(Box::new(headers)),
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

    /// The headers and the payload of all parts together.
    fn joined(messages: &[Vec<u8>]) -> (BTreeMap<String, Vec<String>>, Vec<u8>) {
        let mut parts = messages.iter().map(|message| serde_json::from_slice::<Envelope>(message).unwrap());
        let mut first = parts.next().unwrap();
        let mut payload = BASE64.decode(&first.payload).unwrap();
        for part in parts {
            assert_eq!(part.heads, Heads::default());
            payload.extend(BASE64.decode(&part.payload).unwrap());
        }
        assert!(first.take_headers(&mut payload));
        (first.heads.headers, payload)
    }

    #[test]
    fn headers_of_quotes_and_a_large_payload_fit_the_servers_limit() {
        let most = 1 << 20;
        let mut letter = letter(vec![b'x'; 800 * 1024]);
        let quotes = "\"".repeat(60 * 1024);
        letter.headers.as_mut().unwrap().insert("X-Quotes", quotes.as_str());
        let messages = encode(&letter, most).unwrap();
        assert!(messages.iter().all(|message| message.len() + HEADER_ROOM <= most));
        let (headers, payload) = joined(&messages);
        assert_eq!((headers["X-Quotes"].as_slice(), payload.len()), ([quotes].as_slice(), 800 * 1024));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_letter_fits_the_servers_limit_and_comes_back_whole(
            headers in proptest::collection::vec(("[A-Za-z-]{1,40}", "[ -~\u{0}-\u{1f}\u{7f}é🦀]{0,6000}"), 0..6),
            payload in proptest::collection::vec(any::<u8>(), 0..40_000),
            most in 8_192_usize..70_000,
        ) {
            let mut letter = letter(payload.clone());
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                // A message cannot have headers that the client does not accept.
                if let Ok(value) = value.parse::<async_nats::HeaderValue>() {
                    map.append(name.as_str(), value);
                }
            }
            let expected = header_map(&map);
            letter.headers = Some(map);
            let messages = encode(&letter, most).unwrap();
            prop_assert!(messages.iter().all(|message| message.len() + HEADER_ROOM <= most));
            prop_assert_eq!(joined(&messages), (expected, payload));
        }
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
