//! Builds letters from messages of the stream: one letter from several parts, and one from repeats.
//! Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;
use taskpipeline_contract::Timestamp;

use crate::dead_letters::{Envelope, Heads};

/// More parts than any letter has. A higher number is invalid.
const MOST_PARTS: usize = 100_000;

/// A letter in the stream, without its payload.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The envelope without its large fields; `None` if this version cannot read the message as a
    /// letter.
    pub(super) head: Option<Envelope>,
    /// The sequences of each part, counted from 1. A part that was stored twice has two.
    pub(super) parts: BTreeMap<usize, Vec<u64>>,
    /// When its first message was stored.
    pub(super) stored: Timestamp,
    /// The id of the task, valid or not, if it can be read from a single part.
    pub(super) task: Option<String>,
}

impl Entry {
    /// The sequence of its first message, which names the letter.
    pub(super) fn sequence(&self) -> u64 {
        self.parts.values().flatten().min().copied().unwrap_or(0)
    }

    /// The sequences of all its messages.
    pub(super) fn sequences(&self) -> Vec<u64> {
        let mut sequences: Vec<_> = self.parts.values().flatten().copied().collect();
        sequences.sort_unstable();
        sequences
    }

    /// The number of parts of the whole letter.
    pub(super) fn expected(&self) -> usize {
        self.head.as_ref().map_or(1, |head| head.parts)
    }

    /// The numbers of the missing parts.
    pub(super) fn missing(&self) -> Vec<usize> {
        (1..=self.expected()).filter(|part| !self.parts.contains_key(part)).collect()
    }

    /// Returns whether the letter is about an event, not about a task.
    pub(super) fn is_event(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.origin.task_id.is_none())
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.head.as_ref().map(|head| head.id.as_str())
    }
}

/// Builds letters from messages.
///
/// Messages of one letter have the same id, receipt time and number of parts. Ids alone may repeat
/// after everything in NATS was deleted and created again.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: Vec<Entry>,
    known: HashMap<(String, Timestamp, usize), usize>,
}

impl Index {
    /// Adds the next message.
    pub(super) fn add(&mut self, sequence: u64, stored: Timestamp, payload: &[u8]) {
        let Some(mut head) = parse(payload) else {
            let parts = BTreeMap::from([(1, vec![sequence])]);
            self.entries.push(Entry { head: None, parts, stored, task: None });
            return;
        };
        let key = (head.id.clone(), head.received_at, head.parts);
        if let Some(entry) = self.known.get(&key).and_then(|at| self.entries.get_mut(*at)) {
            entry.parts.entry(head.part).or_default().push(sequence);
            return;
        }
        let task = match &head.origin.task_id {
            Some(id) => Some(id.as_str().to_owned()),
            None if head.parts == 1 => {
                decoded(&head).as_deref().and_then(|payload| task_in(payload.get(head.header_bytes..)?))
            }
            None => None,
        };
        let parts = BTreeMap::from([(head.part, vec![sequence])]);
        head.payload = String::new();
        head.heads = Heads::default();
        head.faults = Vec::new();
        head.origin.task = None;
        head.origin.sources = Vec::new();
        self.known.insert(key, self.entries.len());
        self.entries.push(Entry { head: Some(head), parts, stored, task });
    }

    /// All letters, in the order in which they were stored.
    pub(super) fn into_entries(self) -> Vec<Entry> {
        self.entries
    }
}

/// The envelope of a message, or `None` if it has no valid one.
pub(super) fn parse(payload: &[u8]) -> Option<Envelope> {
    let envelope: Envelope = serde_json::from_slice(payload).ok()?;
    let plausible =
        (1..=MOST_PARTS).contains(&envelope.parts) && (1..=envelope.parts).contains(&envelope.part);
    plausible.then_some(envelope)
}

/// The original bytes in an envelope.
pub(super) fn decoded(envelope: &Envelope) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(&envelope.payload).ok()
}

/// The id of the task of an event, however invalid the event is otherwise.
pub(super) fn task_in(payload: &[u8]) -> Option<String> {
    let event: Value = serde_json::from_slice(payload).ok()?;
    event.get("data")?.get("id")?.as_str().map(str::to_owned)
}

#[cfg(test)]
pub(super) mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;

    /// The envelope of an event's letter, as stored.
    pub(crate) fn message(id: &str, part: usize, parts: usize, payload: &[u8]) -> Value {
        json!({"id": id, "part": part, "parts": parts, "reason": "invalid", "detail": "no", "faults": [],
            "attempts": 0, "subject": "tasks.created", "receivedAt": "2026-11-22T08:00:00.000Z",
            "headers": {}, "version": {"incarnation": 1, "sequence": 5}, "deliveries": 1,
            "queueGroup": "tasks-processor", "payload": STANDARD.encode(payload)})
    }

    fn index(messages: &[Value]) -> Vec<Entry> {
        let mut index = Index::default();
        for (n, message) in messages.iter().enumerate() {
            let sequence = u64::try_from(n).unwrap() + 1;
            index.add(sequence, Timestamp::UNIX_EPOCH, message.to_string().as_bytes());
        }
        index.into_entries()
    }

    #[test]
    fn parts_and_repeats_make_one_letter() {
        let entries = index(&[
            message("g-1-5", 1, 2, b"{"),
            message("g-1-6", 1, 1, br#"{"data":{"id":"\u0007?"}}"#),
            message("g-1-5", 2, 2, b"}"),
            message("g-1-5", 1, 2, b"{"),
        ]);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].sequences(), [1, 3, 4]);
        assert!(entries[0].missing().is_empty());
        assert_eq!((entries[1].sequence(), entries[1].task.as_deref()), (2, Some("\u{7}?")));
    }

    #[test]
    fn a_missing_part_is_known() {
        let entries = index(&[message("g-1-5", 2, 3, b"")]);
        assert_eq!(entries[0].missing(), [1, 3]);
    }

    #[test]
    fn the_same_id_after_everything_began_anew_is_another_letter() {
        let mut later = message("g-1-5", 1, 1, b"");
        later["receivedAt"] = json!("2026-11-23T08:00:00.000Z");
        assert_eq!(index(&[message("g-1-5", 1, 1, b""), later]).len(), 2);
    }

    #[test]
    fn what_is_no_letter_is_listed_all_the_same() {
        let entries = index(&[json!("hello"), message("g-1-5", 9, 2, b""), message("g-1-5", 0, 0, b"")]);
        assert_eq!(entries.len(), 3);
        assert!(entries.iter().all(|entry| entry.head.is_none() && entry.missing().is_empty()));
    }
}
