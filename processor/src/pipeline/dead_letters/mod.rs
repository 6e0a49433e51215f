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

/// Room left in a message for everything of the envelope but payload and headers.
const ENVELOPE_ROOM: usize = 16 * 1024;

/// The subject of the dead letters of the events under this prefix.
pub(crate) fn subject(prefix: &str) -> String {
    format!("dead-letters.{prefix}")
}

/// Why an event ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reason {
    /// The message is no event.
    Invalid,
    /// It was delivered again and again, and no replica lived to say what it is.
    DeliveredTooOften,
    /// KV did not take it in as many attempts as the policy allows.
    AttemptsUsedUp,
    /// KV refuses this task, however it is sent.
    RefusedByKv,
    /// It changes a task whose value in KV is not one.
    UnreadableInKv,
    /// It is a task's record in the ledger that something else has written over.
    UnreadableInLedger,
    /// There was no time left at shutdown.
    Shutdown,
}

impl Reason {
    pub(crate) const ALL: [Self; 7] = [
        Self::Invalid,
        Self::DeliveredTooOften,
        Self::AttemptsUsedUp,
        Self::RefusedByKv,
        Self::UnreadableInKv,
        Self::UnreadableInLedger,
        Self::Shutdown,
    ];

    /// As it stands in the letter and in the metric's label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::DeliveredTooOften => "delivered-too-often",
            Self::AttemptsUsedUp => "attempts-used-up",
            Self::RefusedByKv => "refused-by-kv",
            Self::UnreadableInKv => "unreadable-in-kv",
            Self::UnreadableInLedger => "unreadable-in-ledger",
            Self::Shutdown => "shutdown",
        }
    }
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
    pub(crate) headers: BTreeMap<String, Vec<String>>,
    #[serde(flatten)]
    pub(crate) origin: Origin,
    /// In base64.
    pub(crate) payload: String,
}

/// The letter as one or more messages of at most `most` bytes.
pub(super) fn encode(letter: &Letter, most: usize) -> Result<Vec<Vec<u8>>, serde_json::Error> {
    let headers = letter.headers.as_ref().map(header_map).unwrap_or_default();
    let header_bytes: usize = headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(|value| name.len() + value.len() + 8))
        .sum();
    // Base64 makes four bytes of three.
    let chunk = (most.saturating_sub(ENVELOPE_ROOM + header_bytes) / 4 * 3).max(1_024);
    let parts = letter.payload.len().div_ceil(chunk).max(1);
    let envelope = |part: usize| {
        let from = part * chunk;
        let slice = &letter.payload[from..letter.payload.len().min(from + chunk)];
        serde_json::to_vec(&Envelope {
            id: letter.id.clone(),
            part: part + 1,
            parts,
            reason: letter.reason,
            detail: letter.detail.clone(),
            faults: letter.faults.clone(),
            attempts: letter.attempts,
            subject: letter.subject.clone(),
            received_at: letter.received_at,
            headers: if part == 0 { headers.clone() } else { BTreeMap::new() },
            origin: letter.origin.clone(),
            payload: BASE64.encode(slice),
        })
    };
    (0..parts).map(envelope).collect()
}

fn header_map(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    headers
        .iter()
        .map(|(name, values)| (name.to_string(), values.iter().map(ToString::to_string).collect()))
        .collect()
}

#[cfg(test)]
mod tests {
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
