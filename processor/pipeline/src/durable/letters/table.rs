//! The list of letters, as a table for people and as JSON for programs. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::fmt::Write;

use serde::Serialize;
use taskpipeline_contract::Timestamp;

use super::entry::Entry;
use super::text::{cut, line};

/// The most characters of a subject and of the id of a task.
const MOST: usize = 36;

/// The least characters of the detail, however narrow the terminal is.
const LEAST_DETAIL: usize = 20;

const HEAD: [&str; 6] = ["SEQ", "WHEN", "REASON", "SUBJECT", "TASK", "DETAIL"];

/// The fields of a letter in the list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    sequence: u64,
    /// The sequences of all its messages.
    sequences: Vec<u64>,
    id: Option<&'a str>,
    stored_at: Timestamp,
    received_at: Option<Timestamp>,
    reason: Option<&'static str>,
    subject: Option<&'a str>,
    task: Option<&'a str>,
    detail: &'a str,
    parts: usize,
    missing_parts: Vec<usize>,
}

impl<'a> Row<'a> {
    fn of(entry: &'a Entry) -> Self {
        let head = entry.head.as_ref();
        Self {
            sequence: entry.sequence(),
            sequences: entry.sequences(),
            id: entry.id(),
            stored_at: entry.stored,
            received_at: head.map(|head| head.received_at),
            reason: head.map(|head| head.reason.as_str()),
            subject: head.map(|head| head.subject.as_str()),
            task: entry.task.as_deref(),
            detail: head.map_or("not a dead letter that this version can read", |head| &head.detail),
            parts: entry.expected(),
            missing_parts: entry.missing(),
        }
    }

    fn cells(&self) -> [String; 6] {
        let detail = match self.missing_parts.len() {
            0 => line(self.detail),
            missing => format!("({missing} of {} parts missing) {}", self.parts, line(self.detail)),
        };
        [
            self.sequence.to_string(),
            self.stored_at.to_string(),
            self.reason.unwrap_or("?").to_owned(),
            cut(&self.subject.map_or("?".to_owned(), line), MOST),
            cut(&self.task.map_or("-".to_owned(), line), MOST),
            detail,
        ]
    }
}

/// One line for each letter. If there is a `width`, the details are cut to fit into it.
pub(super) fn table(entries: &[Entry], width: Option<usize>) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(entries.iter().map(|entry| Row::of(entry).cells()));
    let widths: [usize; 5] =
        std::array::from_fn(|n| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0));
    let before: usize = widths.iter().map(|width| width + 2).sum();
    let mut shown = String::new();
    for [sequence, when, reason, subject, task, detail] in rows {
        let [w0, w1, w2, w3, w4] = widths;
        let detail = match width {
            Some(width) => cut(&detail, width.saturating_sub(before).max(LEAST_DETAIL)),
            None => detail,
        };
        // Writing to a string does not fail.
        let _ =
            writeln!(shown, "{sequence:>w0$}  {when:w1$}  {reason:w2$}  {subject:w3$}  {task:w4$}  {detail}");
    }
    shown
}

/// All fields of the table, and more, for programs.
pub(super) fn json(entries: &[Entry]) -> Result<String, serde_json::Error> {
    let rows: Vec<_> = entries.iter().map(Row::of).collect();
    Ok(serde_json::to_string_pretty(&rows)? + "\n")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::entry::Index;
    use super::super::entry::tests::message;
    use super::*;

    fn entries() -> Vec<Entry> {
        let mut index = Index::default();
        let mut first = message("g-1-5", 1, 1, br#"{"data":{"id":"task-1"}}"#);
        first["detail"] = json!("data.title: must be 1 to 200 characters, got 0\u{1b}[2J");
        let second = message("g-1-6", 1, 3, b"{");
        for (sequence, message) in [(9, first), (10, second), (11, json!([]))] {
            index.add(sequence, Timestamp::UNIX_EPOCH, message.to_string().as_bytes());
        }
        index.into_entries()
    }

    #[test]
    fn a_line_a_letter_the_newest_last() {
        assert_eq!(
            table(&entries(), None),
            r"SEQ  WHEN                      REASON   SUBJECT        TASK    DETAIL
  9  1970-01-01T00:00:00.000Z  invalid  tasks.created  task-1  data.title: must be 1 to 200 characters, got 0\u{1b}[2J
 10  1970-01-01T00:00:00.000Z  invalid  tasks.created  -       (2 of 3 parts missing) no
 11  1970-01-01T00:00:00.000Z  ?        ?              -       not a dead letter that this version can read
"
        );
    }

    #[test]
    fn details_are_cut_to_the_width_that_is_left() {
        for width in [0, 80, 100] {
            let table = table(&entries(), Some(width));
            let longest = table.lines().map(|line| line.chars().count()).max().unwrap();
            assert_eq!(longest, width.max(63 + LEAST_DETAIL), "{table}");
            assert!(table.contains('…'));
        }
    }

    #[test]
    fn json_says_it_all_uncut() {
        let rows: Value = serde_json::from_str(&json(&entries()).unwrap()).unwrap();
        assert_eq!(
            rows[0],
            json!({"sequence": 9, "sequences": [9], "id": "g-1-5", "storedAt": "1970-01-01T00:00:00.000Z",
                "receivedAt": "2026-11-22T08:00:00.000Z", "reason": "invalid", "subject": "tasks.created",
                "task": "task-1", "detail": "data.title: must be 1 to 200 characters, got 0\u{1b}[2J",
                "parts": 1, "missingParts": []})
        );
        assert_eq!(rows[1]["missingParts"], json!([2, 3]));
        assert_eq!(rows[2]["id"], Value::Null);
    }
}
