//! Dead letters: what cannot go on, with its original bytes and headers and the reason. This is the letter and
//! the envelope it travels in; each mode publishes it in its own way.
//!
//! Headers copied as headers could have the publish refused or dropped (`Nats-Expected-*`, `Nats-Msg-Id`),
//! so they travel inside the envelope, and the payload as base64, since it may be anything.

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

/// Room left in a message for its own headers, which count against the server's limit: the message id and the stream's name.
const HEADER_ROOM: usize = 1024;

/// The least payload of a part, in bytes.
const LEAST_CHUNK: usize = 256;

/// The subject of the dead letters of the events under this prefix.
pub(crate) fn subject(prefix: &str) -> String {
    format!("dead-letters.{prefix}")
}

/// A field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) field: String,
    pub(crate) problem: String,
}

/// What cannot go on, and why.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    /// The same each time the same letter is published.
    pub(super) id: String,
    pub(super) reason: Reason,
    pub(super) detail: String,
    pub(super) faults: Vec<Fault>,
    /// How often writing it was tried.
    pub(super) attempts: u32,
    pub(super) subject: String,
    pub(super) received_at: Timestamp,
    pub(super) headers: Option<HeaderMap>,
    /// Headers that no client can read, as they were stored.
    pub(super) header_block: Option<Bytes>,
    pub(super) payload: Bytes,
    pub(super) origin: Origin,
}

/// What is known of where a letter comes from, in mode `Durable`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Origin {
    /// The version of the event: which life of the stream, and the sequence in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<Version>,
    /// How often NATS has delivered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deliveries: Option<i64>,
    /// The replicas' queue group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) queue_group: Option<String>,
    /// The task that cannot be written. There is no one event to blame then, and no payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task_id: Option<TaskId>,
    /// What KV should hold of it; nothing where it should be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<Task>,
    /// The versions of the events that the task was made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<Version>,
}

impl Letter {
    /// For a message as it was received.
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

    /// For a message that is no event.
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

/// What is published. A payload that does not fit one message comes in `parts`, all with the same id.
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
    /// Headers too large for the envelope: so many bytes at the beginning of the payload, all parts together, are their JSON.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) header_bytes: usize,
    #[serde(flatten)]
    pub(crate) origin: Origin,
    /// In base64.
    pub(crate) payload: String,
}

/// The headers that a message came with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Heads {
    pub(crate) headers: BTreeMap<String, Vec<String>>,
    /// Where no client can read them: as they were stored, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) header_block: Option<String>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Envelope {
    /// Takes headers that begin the whole letter's payload out of it; `false` where they cannot be read.
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

/// The letter as one or more messages of at most `most` bytes, their headers included.
pub(super) fn encode(letter: &Letter, most: usize) -> Result<Vec<Vec<u8>>, serde_json::Error> {
    let most = most.saturating_sub(HEADER_ROOM);
    let mut heads = Heads {
        headers: letter.headers.as_ref().map(header_map).unwrap_or_default(),
        header_block: letter.header_block.as_ref().map(|block| BASE64.encode(block)),
    };
    let (mut payload, mut header_bytes) = (letter.payload.clone(), 0);
    // In JSON a header may take six times its bytes, and more than a message holds.
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
    // All that is beside the payload, with numbers as long as they can be.
    let beside = envelope(1, usize::MAX, &[])?.len() + usize::MAX.to_string().len();
    // Base64 makes four bytes of three.
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

    /// What the parts say together: headers and payload.
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
                // What the client does not accept cannot have come.
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
