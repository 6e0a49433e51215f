//! The names of all objects of a pipeline in NATS. Pure.
//!
//! All names derive from the names of the stream and the queue group, so two pipelines on one
//! server have different names.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use taskpipeline_contract::{EventKind, TaskId};

use crate::dead_letters;
use crate::fold::Version;
use crate::settings::{DurableSettings, EventSettings};

/// The names of one pipeline.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// The stream that captures the events.
    pub(crate) stream: String,
    /// The prefix of the subjects of events.
    pub(crate) prefix: String,
    /// The three subjects of events.
    pub(crate) subjects: Vec<(String, EventKind)>,
    pub(crate) queue_group: String,
    /// The stream of the ledger's bucket.
    pub(crate) ledger_stream: String,
    ledger_prefix: String,
    pub(crate) dead_letter_stream: String,
    pub(crate) dead_letter_subject: String,
}

impl Names {
    pub(crate) fn new(events: &EventSettings, durable: &DurableSettings) -> Self {
        Self::of(&durable.stream, &events.queue_group, &events.subject_prefix)
    }

    /// The names of a pipeline with this stream, this queue group and this subject prefix.
    pub(crate) fn of(stream: &str, queue_group: &str, prefix: &str) -> Self {
        // Neither name has two dashes in a row, nor a dash at an end, so the two stay distinct.
        let bucket = format!("{stream}--{queue_group}");
        Self {
            stream: stream.to_owned(),
            prefix: prefix.to_owned(),
            subjects: EventKind::ALL.map(|kind| (kind.subject(prefix), kind)).to_vec(),
            queue_group: queue_group.to_owned(),
            ledger_stream: format!("KV_{bucket}"),
            ledger_prefix: format!("$KV.{bucket}."),
            dead_letter_stream: format!("{stream}-DEAD-LETTERS"),
            dead_letter_subject: dead_letters::subject(prefix),
        }
    }

    /// The kind of events on this subject, or `None` for a foreign subject.
    pub(crate) fn kind(&self, subject: &str) -> Option<EventKind> {
        self.subjects.iter().find(|(known, _)| known == subject).map(|(_, kind)| *kind)
    }

    /// The durable consumer of this incarnation of the stream.
    pub(crate) fn consumer(&self, incarnation: u32) -> String {
        format!("{}-{incarnation}", self.queue_group)
    }

    /// All subjects in the bucket of the ledger.
    pub(crate) fn ledger_all(&self) -> String {
        format!("{}>", self.ledger_prefix)
    }

    /// The records of all tasks.
    pub(crate) fn tasks(&self) -> String {
        format!("{}task.>", self.ledger_prefix)
    }

    /// The record of one task.
    pub(crate) fn task(&self, id: &TaskId) -> String {
        let mut subject = format!("{}task.", self.ledger_prefix);
        encode(id.as_str(), &mut subject);
        subject
    }

    /// The task of a record's subject, or `None` for another subject.
    pub(crate) fn task_of(&self, subject: &str) -> Option<TaskId> {
        let encoded = subject.strip_prefix(&self.ledger_prefix)?.strip_prefix("task.")?;
        TaskId::new(&decode(encoded)?).ok()
    }

    /// The record of the stream: its incarnations, and the highest high water.
    pub(crate) fn source(&self) -> String {
        format!("{}source", self.ledger_prefix)
    }

    /// The high water of one replica.
    pub(crate) fn high_water(&self, replica: &str) -> String {
        format!("{}high-water.{replica}", self.ledger_prefix)
    }

    /// The high waters of all replicas.
    pub(crate) fn high_waters(&self) -> String {
        format!("{}high-water.*", self.ledger_prefix)
    }

    /// The record that a replica examines an event that NATS delivered again and again.
    pub(crate) fn suspect(&self, version: Version) -> String {
        format!("{}suspect.{version}", self.ledger_prefix)
    }

    /// The control record for one KV namespace.
    pub(crate) fn control(&self, target: &Target) -> String {
        format!("{}control.{}", self.ledger_prefix, target.0)
    }

    /// The control records of all KV namespaces of this ledger.
    pub(crate) fn controls(&self) -> String {
        format!("{}control.*", self.ledger_prefix)
    }

    /// The record of the requests that a command wants to send, or may send.
    pub(crate) fn loan(&self, target: &Target) -> String {
        format!("{}loan.{}", self.ledger_prefix, target.0)
    }

    /// The record of a running resync of one KV namespace.
    pub(crate) fn resync(&self, target: &Target) -> String {
        format!("{}resync.{}", self.ledger_prefix, target.0)
    }
}

/// A KV namespace of an account, as a part of names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target(String);

impl Target {
    /// Hashes the address of the namespace, because an address may be longer than a token of a
    /// subject.
    pub(crate) fn new(namespace_url: &str) -> Self {
        let digest = Sha256::digest(namespace_url.as_bytes());
        let mut name = String::with_capacity(16);
        for byte in digest.iter().take(8) {
            // Writing to a string does not fail.
            let _ = write!(name, "{byte:02x}");
        }
        Self(name)
    }
}

/// Encodes an id as one token of a subject and a valid key of a bucket.
///
/// Letters, digits, `-` and `_` stay. Every other byte becomes `=` and two hex digits.
fn encode(id: &str, into: &mut String) {
    for byte in id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => into.push(char::from(byte)),
            _ => {
                // Writing to a string does not fail.
                let _ = write!(into, "={byte:02X}");
            }
        }
    }
}

fn decode(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'=' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_id_comes_back_from_its_subject(id in "\\PC{1,60}") {
            prop_assume!(TaskId::new(&id).is_ok());
            let mut encoded = String::new();
            encode(&id, &mut encoded);
            prop_assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b)));
            prop_assert_eq!(decode(&encoded), Some(id));
        }
    }

    #[test]
    fn what_is_no_encoding_is_no_id() {
        for text in ["=", "=4", "=GG", "=FF"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
