//! Compares the outcome of a history with the expectation: KV with the replay, and the dead letters with the invalid events.
//!
//! Pure. It names every difference.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;
use taskpipeline_contract::{KEY_PREFIX, Task, TaskMetadata};

use super::capture::Captured;
use super::events::POISON;
use super::letters::Letter;
use super::replay::{Expectation, Expected, decoded, kind_of};

/// A value in KV and its metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    /// The bytes of the value.
    pub(crate) value: Vec<u8>,
    /// The metadata of the value.
    pub(crate) metadata: Option<Value>,
}

/// A difference between the outcome and the expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// A task that must be in KV is not.
    Missing {
        /// The id of the task.
        id: String,
        /// The expected task.
        expected: String,
    },
    /// A task in KV has another value or other metadata than expected.
    Stale {
        /// The id of the task.
        id: String,
        /// The expected task.
        expected: String,
        /// The task in KV.
        found: String,
    },
    /// A key in KV that must not be there.
    Extra {
        /// The key.
        key: String,
        /// The value in KV.
        found: String,
    },
    /// An invalid event without a dead letter with its bytes.
    Unlettered {
        /// The incarnation of the stream.
        incarnation: u32,
        /// The sequence of the event.
        sequence: u64,
    },
    /// A dead letter that no event should have become.
    Unexpected {
        /// The letter's id.
        id: String,
        /// The reason in the letter.
        reason: String,
        /// The event that the letter names.
        place: Option<(u64, u64)>,
    },
    /// A task that KV refuses, and that no dead letter names.
    Unreported {
        /// The id of the task.
        id: String,
    },
    /// New tasks that are not in KV in time, because look-ups wait.
    Delayed {
        /// The number of tasks.
        creates: usize,
    },
    /// Events that had to wait only because replicas wrote the same records at the same time.
    Contended {
        /// The log line of the replica.
        line: String,
    },
    /// A difference in the second KV namespace.
    InSecond(Box<Difference>),
}

impl Difference {
    /// The task of the difference, if it concerns one.
    #[must_use]
    pub(crate) fn task_id(&self) -> Option<&str> {
        match self {
            Self::Missing { id, .. } | Self::Stale { id, .. } | Self::Unreported { id } => Some(id),
            Self::Extra { key, .. } => key.strip_prefix(KEY_PREFIX),
            Self::InSecond(difference) => difference.task_id(),
            Self::Unlettered { .. }
            | Self::Unexpected { .. }
            | Self::Delayed { .. }
            | Self::Contended { .. } => None,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { id, expected } => write!(f, "missing {id:?}\n  expected {expected}"),
            Self::Stale { id, expected, found } => {
                write!(f, "stale {id:?}\n  expected {expected}\n  found    {found}")
            }
            Self::Extra { key, found } => write!(f, "extra key {key:?}\n  found    {found}"),
            Self::Unlettered { incarnation, sequence } => {
                write!(f, "no dead letter for the invalid event {incarnation}-{sequence}")
            }
            Self::Unexpected { id, reason, place } => {
                write!(f, "unexpected dead letter {id} of {place:?}, reason {reason:?}")
            }
            Self::Unreported { id } => write!(f, "{id:?} is refused by KV, and no dead letter says so"),
            Self::Delayed { creates } => {
                write!(
                    f,
                    "{creates} creates are not in KV in time: they wait behind the look-ups of other tasks"
                )
            }
            Self::Contended { line } => {
                write!(f, "events wait because two replicas wrote the same record at a time\n  {line}")
            }
            Self::InSecond(difference) => write!(f, "in the second namespace: {difference}"),
        }
    }
}

/// Compares the content of KV with the expected tasks.
#[must_use]
pub(crate) fn tasks(expected: &Expectation, found: &BTreeMap<String, Found>) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut keys = BTreeSet::new();
    for (id, expected) in expected {
        let key = format!("{KEY_PREFIX}{id}");
        let difference = task(id, expected, found.get(&key));
        keys.insert(key);
        // KV refuses the task, so it has an older value or none. The task's dead letter is checked instead.
        if !refused(expected) {
            differences.extend(difference);
        }
    }
    let extra = found.iter().filter(|(key, _)| !keys.contains(*key));
    differences.extend(extra.map(|(key, found)| Difference::Extra { key: key.clone(), found: shown(found) }));
    differences
}

/// Compares the content of a second namespace, which refuses nothing, with the expected tasks.
#[must_use]
pub(crate) fn tasks_in_second(expected: &Expectation, found: &BTreeMap<String, Found>) -> Vec<Difference> {
    let refused = expected.iter().filter(|(_, expected)| refused(expected));
    let of_these =
        refused.filter_map(|(id, expected)| task(id, expected, found.get(&format!("{KEY_PREFIX}{id}"))));
    tasks(expected, found).into_iter().chain(of_these).map(|it| Difference::InSecond(Box::new(it))).collect()
}

/// Finds events that waited because another replica wrote the record of their task at the same time.
///
/// An event must not wait for that: the replica decides again at once. The replicas' logs show it.
#[must_use]
pub(crate) fn contention<'a>(lines: impl IntoIterator<Item = &'a String>) -> Vec<Difference> {
    let waits = |line: &&String| line.contains("have to wait") && line.contains("wrong last sequence");
    lines.into_iter().filter(waits).map(|line| Difference::Contended { line: line.clone() }).collect()
}

/// Whether KV refuses the task.
fn refused(expected: &Expected) -> bool {
    expected.task.title.as_str().contains(POISON)
}

fn task(id: &str, expected: &Expected, found: Option<&Found>) -> Option<Difference> {
    let metadata = serde_json::to_value(TaskMetadata::from(&expected.task)).unwrap_or_default();
    let says = || {
        let task = serde_json::to_string(&expected.task).unwrap_or_default();
        if expected.touched { format!("{task} {metadata}") } else { format!("{task}, untouched") }
    };
    let Some(found) = found else { return Some(Difference::Missing { id: id.to_owned(), expected: says() }) };
    let same_task = serde_json::from_slice::<Task>(&found.value).is_ok_and(|task| task == expected.task);
    // A task from before the start has any metadata.
    let same_metadata = !expected.touched || found.metadata.as_ref() == Some(&metadata);
    (!same_task || !same_metadata).then(|| Difference::Stale {
        id: id.to_owned(),
        expected: says(),
        found: shown(found),
    })
}

fn shown(found: &Found) -> String {
    let metadata = found.metadata.as_ref().map(Value::to_string).unwrap_or_default();
    format!("{} {metadata}", String::from_utf8_lossy(&found.value))
}

/// The reason of dead letters whose headers no client can read.
const UNREADABLE: &str = "unreadable-headers";

/// Compares the dead letters with the events.
///
/// Each invalid event needs one letter with its bytes. Other events have letters only if KV refuses their tasks.
#[must_use]
pub(crate) fn letters(expected: &Expectation, events: &[Captured], letters: &[Letter]) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut invalid: BTreeMap<(u64, u64), &Captured> = BTreeMap::new();
    for event in events.iter().filter(|event| kind_of(&event.subject).is_some() && decoded(event).is_none()) {
        invalid.insert((u64::from(event.incarnation), event.sequence), event);
    }
    let (about_events, others): (Vec<_>, Vec<_>) =
        letters.iter().partition(|letter| ["invalid", UNREADABLE].contains(&letter.reason.as_str()));
    for letter in about_events {
        // Each letter with the right bytes counts for one event only.
        let right = |event: &&Captured| {
            let same = event.payload == letter.payload && event.subject == letter.subject;
            same && event.unreadable == (letter.reason == UNREADABLE)
        };
        let place = letter.place.filter(|place| invalid.get(place).is_some_and(right));
        if place.and_then(|place| invalid.remove(&place)).is_none() {
            differences.push(unexpected(letter));
        }
    }
    differences.extend(
        invalid
            .into_values()
            .map(|event| Difference::Unlettered { incarnation: event.incarnation, sequence: event.sequence }),
    );
    differences
        .extend(others.iter().filter(|letter| !is_of_a_refused_value(letter)).map(|it| unexpected(it)));
    // The task is in the envelope, or in the bytes of an event about it.
    let text = |letter: &&Letter| format!("{} {}", letter.envelope, String::from_utf8_lossy(&letter.payload));
    let reported: Vec<_> = others.iter().map(text).collect();
    let names = |id: &str| {
        let named = serde_json::to_string(id).unwrap_or_default();
        reported.iter().any(|letter| letter.contains(&named))
    };
    let refused = expected.iter().filter(|(_, expected)| refused(expected));
    differences.extend(
        refused.filter(|(id, _)| !names(id)).map(|(id, _)| Difference::Unreported { id: id.clone() }),
    );
    differences
}

/// Whether the letter is about a value that KV refuses. No other task may be blamed for a refusal.
fn is_of_a_refused_value(letter: &Letter) -> bool {
    let title = letter.envelope["task"]["title"].as_str();
    letter.reason == "refused-by-kv" && title.is_some_and(|title| title.contains(POISON))
}

fn unexpected(letter: &Letter) -> Difference {
    Difference::Unexpected { id: letter.id.clone(), reason: letter.reason.clone(), place: letter.place }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use taskpipeline_contract::{Status, Timestamp};

    use super::*;

    fn expected(id: &str, title: &str, touched: bool) -> (String, Expected) {
        let task = Task {
            id: id.parse().unwrap(),
            title: title.parse().unwrap(),
            description: "".parse().unwrap(),
            status: Status::Pending,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        };
        (id.to_owned(), Expected { task, touched })
    }

    fn found(id: &str, title: &str) -> (String, Found) {
        let (_, Expected { task, .. }) = expected(id, title, true);
        let metadata = serde_json::to_value(TaskMetadata::from(&task)).unwrap();
        let value = serde_json::to_vec(&task).unwrap();
        (format!("tasks:{id}"), Found { value, metadata: Some(metadata) })
    }

    fn names(differences: &[Difference]) -> Vec<String> {
        let name = |it: &Difference| it.to_string().split('\n').next().unwrap_or_default().to_owned();
        differences.iter().map(name).collect()
    }

    #[test]
    fn what_is_right_makes_no_difference() {
        let must = [expected("a", "A", true), expected("b", "B", false)].into();
        let mut is: BTreeMap<_, _> = [found("a", "A"), found("b", "B")].into();
        is.get_mut("tasks:b").unwrap().metadata = None;
        assert_eq!(tasks(&must, &is), []);
    }

    #[test]
    fn a_wrong_value_wrong_metadata_a_missing_key_and_an_extra_key_are_each_reported() {
        let must = [expected("a", "A", true), expected("b", "B", true), expected("c", "C", true)].into();
        let mut is: BTreeMap<_, _> = [found("a", "old"), found("b", "B"), found("d", "D")].into();
        is.get_mut("tasks:b").unwrap().metadata = Some(json!({"title": "old"}));
        let differences = tasks(&must, &is);
        let expected = ["stale \"a\"", "stale \"b\"", "missing \"c\"", "extra key \"tasks:d\""];
        assert_eq!(names(&differences), expected);
        assert!(differences[0].to_string().contains("\"title\":\"old\""), "{}", differences[0]);
        assert_eq!(differences.iter().map(Difference::task_id).collect::<Vec<_>>().len(), 4);
    }

    #[test]
    fn a_value_that_is_no_task_is_stale() {
        let must = [expected("a", "A", false)].into();
        let is = [("tasks:a".to_owned(), Found { value: b"?".into(), metadata: None })].into();
        assert_eq!(names(&tasks(&must, &is)), ["stale \"a\""]);
    }

    fn event(sequence: u64, payload: &str) -> Captured {
        let payload = payload.to_owned().into();
        let subject = "tasks.deleted".to_owned();
        Captured { incarnation: 1, sequence, nanos: 0, subject, unreadable: false, payload }
    }

    fn letter(id: &str, reason: &str, sequence: u64, payload: &str) -> Letter {
        Letter {
            id: id.to_owned(),
            reason: reason.to_owned(),
            subject: "tasks.deleted".to_owned(),
            place: Some((1, sequence)),
            payload: payload.as_bytes().into(),
            envelope: json!({"payload": "", "task": {"id": "poisoned", "title": "a POISON"}}),
        }
    }

    #[test]
    fn each_invalid_event_wants_a_letter_and_no_other_does() {
        let good = r#"{"correlationId": "c", "data": {"id": "a"}}"#;
        let events = [event(1, good), event(2, "?"), event(3, "?"), event(4, "!")];
        let there = [letter("1-2", "invalid", 2, "?"), letter("1-4", "invalid", 4, "other bytes")];
        assert_eq!(
            names(&letters(&Expectation::new(), &events, &there)),
            [
                "unexpected dead letter 1-4 of Some((1, 4)), reason \"invalid\"",
                "no dead letter for the invalid event 1-3",
                "no dead letter for the invalid event 1-4",
            ]
        );
        let valid = [letter("1-1", "invalid", 1, good), letter("1-1", "retries-exhausted", 1, good)];
        assert_eq!(letters(&Expectation::new(), &events[..1], &valid).len(), 2);
    }

    #[test]
    fn a_second_namespace_has_to_hold_what_the_first_one_refuses() {
        let must = [expected("poisoned", "a POISON", true), expected("b", "B", true)].into();
        assert_eq!(
            names(&tasks_in_second(&must, &[found("b", "B")].into())),
            ["in the second namespace: missing \"poisoned\""]
        );
        let is = [found("poisoned", "a POISON"), found("b", "old")].into();
        assert_eq!(names(&tasks_in_second(&must, &is)), ["in the second namespace: stale \"b\""]);
    }

    #[test]
    fn an_event_that_waits_for_no_room_is_fine_and_one_that_waits_for_a_conflict_is_not() {
        let lines = [
            r#"events have to wait events=3 error="NATS refuses the write: maximum bytes exceeded""#,
            "wrong last sequence",
        ];
        let lines = lines.map(str::to_owned);
        assert_eq!(contention(&lines), []);
        let line =
            r#"events have to wait events=3 error="NATS refuses the write: wrong last sequence""#.to_owned();
        assert_eq!(contention([&line]).len(), 1);
    }

    #[test]
    fn what_kv_refuses_must_be_told_and_need_not_be_there() {
        let must = [expected("poisoned", "a POISON", true), expected("silent", "a POISON", true)].into();
        assert_eq!(tasks(&must, &BTreeMap::new()), []);
        let there = [letter("x", "refused-by-kv", 1, "")];
        assert_eq!(
            names(&letters(&must, &[], &there)),
            ["\"silent\" is refused by KV, and no dead letter says so"]
        );
        let mut blamed = letter("y", "refused-by-kv", 2, "");
        blamed.envelope["task"] = json!({"id": "good", "title": "good"});
        assert_eq!(
            names(&letters(&Expectation::new(), &[], &[blamed])),
            ["unexpected dead letter y of Some((1, 2)), reason \"refused-by-kv\""]
        );
    }
}
