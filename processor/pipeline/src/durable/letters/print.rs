//! Prints one letter with all its contents, for people. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::store::Opened;
use super::text::{block, line, payload};
use crate::dead_letters::Envelope;

/// The indentation of all lines with foreign text.
const INDENT: &str = "    ";

/// Prints everything, with the payload last.
pub(super) fn print(letter: &Opened) -> String {
    let mut shown = String::new();
    if let Some(envelope) = &letter.envelope {
        field(&mut shown, "letter", &envelope.id);
    } else {
        field(&mut shown, "letter", "not a dead letter that this version can read; its bytes are below");
    }
    let sequences: Vec<_> = letter.sequences.iter().map(ToString::to_string).collect();
    let stored = if sequences.len() > 1 { "messages" } else { "message" };
    field(&mut shown, stored, &sequences.join(", "));
    field(&mut shown, "stored at", &letter.stored.to_string());
    if let Some(envelope) = &letter.envelope {
        fields(&mut shown, envelope, &letter.missing);
    }
    if !letter.payload.is_empty() || letter.envelope.as_ref().is_none_or(|it| it.origin.task_id.is_none()) {
        let (kind, bytes) = payload(&letter.payload, INDENT);
        // Writing to a string does not fail.
        let _ = writeln!(shown, "payload ({} bytes, {kind})", letter.payload.len());
        shown.push_str(&bytes);
    }
    shown
}

fn fields(shown: &mut String, envelope: &Envelope, missing: &[usize]) {
    let origin = &envelope.origin;
    if !missing.is_empty() {
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        field(shown, "missing", &format!("parts {} of {}", missing.join(", "), envelope.parts));
    }
    field(shown, "reason", envelope.reason.as_str());
    field(shown, "detail", &envelope.detail);
    field(shown, "subject", &envelope.subject);
    field(shown, "received at", &envelope.received_at.to_string());
    if let Some(version) = origin.version {
        field(shown, "version", &format!("{version} (incarnation of the stream, and sequence in it)"));
    }
    if let Some(deliveries) = origin.deliveries {
        field(shown, "deliveries", &deliveries.to_string());
    }
    if envelope.attempts > 0 {
        field(shown, "attempts", &envelope.attempts.to_string());
    }
    if let Some(group) = &origin.queue_group {
        field(shown, "queue group", group);
    }
    if let Some(id) = &origin.task_id {
        field(shown, "task id", id.as_str());
        let task = match origin.task.as_ref().map(serde_json::to_string_pretty) {
            Some(Ok(json)) => block(&json, INDENT),
            Some(Err(error)) => block(&error.to_string(), INDENT),
            None => block("none: KV should not have it", INDENT),
        };
        section(shown, "task, as KV should have it", &task);
    }
    let faults: String = envelope
        .faults
        .iter()
        .map(|fault| block(&line(&format!("{}: {}", fault.field, fault.problem)), INDENT))
        .collect();
    section(shown, "faults", &faults);
    let headers = envelope
        .heads
        .headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    let headers: String =
        headers.map(|(name, value)| block(&line(&format!("{name}: {value}")), INDENT)).collect();
    section(shown, "headers", &headers);
    if let Some(stored) = &envelope.heads.header_block {
        let bytes = BASE64.decode(stored).unwrap_or_else(|_| stored.clone().into_bytes());
        let (kind, shown_bytes) = payload(&bytes, INDENT);
        section(shown, &format!("headers as they were stored ({} bytes, {kind})", bytes.len()), &shown_bytes);
    }
    let sources: String = origin.sources.iter().map(|version| block(&version.to_string(), INDENT)).collect();
    section(shown, "sources (the events it is built from)", &sources);
}

fn field(shown: &mut String, name: &str, value: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(shown, "{name:12} {}", line(value));
}

fn section(shown: &mut String, name: &str, lines: &str) {
    if !lines.is_empty() {
        let _ = writeln!(shown, "{name}");
        shown.push_str(lines);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use taskpipeline_contract::Timestamp;

    use super::super::entry::tests::message;
    use super::*;

    fn letter(payload: &[u8], missing: Vec<usize>, change: impl Fn(&mut Value)) -> Opened {
        let mut envelope = message("tasks-processor-1-5", 1, 3, b"");
        change(&mut envelope);
        Opened {
            sequences: vec![7, 8, 9],
            stored: Timestamp::UNIX_EPOCH,
            missing,
            envelope: Some(serde_json::from_value(envelope).unwrap()),
            payload: payload.to_vec(),
        }
    }

    #[test]
    fn an_event_with_all_that_is_known_of_it() {
        let letter = letter(b"{\"data\":\n\x1b[2J}", vec![2], |envelope| {
            envelope["headers"] = json!({"X-Many": ["a", "b\u{7}"]});
            envelope["faults"] = json!([{"field": "data", "problem": "is missing"},
                {"field": "correlationId", "problem": "is\nmissing"}]);
        });
        assert_eq!(
            print(&letter),
            r#"letter       tasks-processor-1-5
messages     7, 8, 9
stored at    1970-01-01T00:00:00.000Z
missing      parts 2 of 3
reason       invalid
detail       no
subject      tasks.created
received at  2026-11-22T08:00:00.000Z
version      1-5 (incarnation of the stream, and sequence in it)
deliveries   1
queue group  tasks-processor
faults
    data: is missing
    correlationId: is\nmissing
headers
    X-Many: a
    X-Many: b\u{7}
payload (14 bytes, text)
    {"data":
    \u{1b}[2J}
"#
        );
    }

    #[test]
    fn a_task_with_what_kv_should_hold_and_where_it_comes_from() {
        let task = json!({"id": "a", "title": "T", "description": "", "status": "pending",
            "createdAt": "2026-11-22T08:00:00.000Z", "updatedAt": "2026-11-22T08:00:00.000Z"});
        let letter = letter(b"", Vec::new(), |envelope| {
            envelope["reason"] = json!("refused-by-kv");
            envelope["attempts"] = json!(1);
            envelope["taskId"] = json!("a");
            envelope["task"] = task.clone();
            envelope["sources"] =
                json!([{"incarnation": 1, "sequence": 3}, {"incarnation": 1, "sequence": 5}]);
        });
        let shown = print(&letter);
        for part in
            ["attempts     1\n", "task id      a\n", "\"title\": \"T\"", "built from)\n    1-3\n    1-5\n"]
        {
            assert!(shown.contains(part), "{part}\n{shown}");
        }
        assert!(!shown.contains("payload"), "{shown}");
    }

    #[test]
    fn what_is_no_letter_is_shown_as_bytes() {
        let letter = Opened { envelope: None, ..letter(&[0xff], Vec::new(), |_| {}) };
        let shown = print(&letter);
        assert!(shown.contains("not a dead letter") && shown.contains("00000000  ff"), "{shown}");
    }
}
