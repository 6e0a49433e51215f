//! Computes what the tasks must be: it applies the events of the stream one by one, in their order. Pure.
//!
//! It follows the sentences of the design ("it equals an in-order replay"). It must not know or use any part of the
//! processor: no versions, no merging, no ledger.

use std::collections::BTreeMap;

use taskpipeline_contract::{Event, EventData, EventKind, Task, TaskPatch, Timestamp};

use super::capture::Captured;

/// A task that must be in KV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// The expected value.
    pub(crate) task: Task,
    /// Whether any event had an effect on the task; otherwise it is the task from before the start.
    pub(crate) touched: bool,
}

/// The tasks that KV must contain, by id.
pub(crate) type Expectation = BTreeMap<String, Expected>;

/// The kind of event of a subject.
#[must_use]
pub(crate) fn kind_of(subject: &str) -> Option<EventKind> {
    let last = subject.rsplit('.').next()?;
    EventKind::ALL.into_iter().find(|kind| kind.as_str() == last)
}

/// Decodes the event; `None` if the bytes are invalid.
#[must_use]
pub(crate) fn decoded(captured: &Captured) -> Option<Event> {
    let kind = kind_of(&captured.subject).filter(|_| !captured.unreadable)?;
    Event::decode(kind, &captured.payload).ok()
}

/// Applies the events in their order to the tasks from before the start.
#[must_use]
pub(crate) fn replay(before: impl IntoIterator<Item = Task>, events: &[Captured]) -> Expectation {
    let untouched = |task: Task| (task.id.as_str().to_owned(), Expected { task, touched: false });
    let mut tasks: Expectation = before.into_iter().map(untouched).collect();
    for captured in events {
        // Invalid events change nothing.
        let Some(event) = decoded(captured) else { continue };
        apply(&mut tasks, event.data, captured.at());
    }
    tasks
}

fn apply(tasks: &mut Expectation, event: EventData, at: Timestamp) {
    match event {
        EventData::Created(new) => {
            let task = Task {
                id: new.id,
                title: new.title,
                description: new.description,
                status: new.status,
                created_at: at,
                updated_at: at,
            };
            tasks.insert(task.id.as_str().to_owned(), Expected { task, touched: true });
        }
        EventData::Updated(TaskPatch { id, title, description, status }) => {
            let Some(expected) = tasks.get_mut(id.as_str()) else { return };
            let task = &mut expected.task;
            if let Some(title) = title {
                task.title = title;
            }
            if let Some(description) = description {
                task.description = description;
            }
            if let Some(status) = status {
                task.status = status;
            }
            task.updated_at = at;
            expected.touched = true;
        }
        EventData::Deleted(id) => {
            tasks.remove(id.as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use taskpipeline_contract::Status;

    use super::*;

    fn events(list: &[(&str, Value)]) -> Vec<Captured> {
        let event = |(n, (kind, data)): (usize, &(&str, Value))| Captured {
            incarnation: 1,
            sequence: n as u64 + 1,
            nanos: 1_000_999_999 * (n as i128 + 1),
            subject: format!("tasks.{kind}"),
            unreadable: false,
            payload: json!({"correlationId": "c", "data": data}).to_string().into(),
        };
        list.iter().enumerate().map(event).collect()
    }

    fn new(id: &str, title: &str) -> Value {
        json!({"id": id, "title": title, "description": "d", "status": "pending"})
    }

    fn before(id: &str) -> Task {
        let title = "before".parse().unwrap();
        let moment = Timestamp::UNIX_EPOCH;
        let (id, description) = (id.parse().unwrap(), "".parse().unwrap());
        let status = Status::Pending;
        Task { id, title, description, status, created_at: moment, updated_at: moment }
    }

    #[test]
    fn creates_updates_and_deletes_take_effect_in_their_order() {
        let tasks = replay(
            [],
            &events(&[
                ("updated", json!({"id": "a", "title": "too early"})),
                ("created", new("a", "one")),
                ("updated", json!({"id": "a", "title": "two"})),
                ("updated", json!({"id": "a", "status": "completed"})),
                ("created", new("b", "one")),
                ("deleted", json!({"id": "b"})),
                ("updated", json!({"id": "b", "title": "too late"})),
            ]),
        );
        assert_eq!(tasks.keys().collect::<Vec<_>>(), ["a"]);
        let a = &tasks["a"].task;
        assert_eq!((a.title.as_str(), a.status, a.description.as_str()), ("two", Status::Completed, "d"));
        // The stream's nanoseconds, cut to milliseconds.
        assert_eq!(a.created_at.to_string(), "1970-01-01T00:00:02.001Z");
        assert_eq!(a.updated_at.to_string(), "1970-01-01T00:00:04.003Z");
    }

    #[test]
    fn a_create_begins_anew_and_sets_everything() {
        let tasks = replay(
            [],
            &events(&[
                ("created", new("a", "one")),
                ("updated", json!({"id": "a", "status": "completed", "description": "more"})),
                ("created", new("a", "two")),
            ]),
        );
        let a = &tasks["a"].task;
        assert_eq!((a.status, a.description.as_str()), (Status::Pending, "d"));
        assert_eq!(a.created_at, a.updated_at);
    }

    #[test]
    fn what_kv_held_before_is_changed_and_deleted_like_anything_else() {
        let list = [
            ("updated", json!({"id": "a", "title": "now"})),
            ("deleted", json!({"id": "b"})),
            ("updated", json!({"id": "b", "title": "no"})),
        ];
        let tasks = replay(["a", "b", "c"].map(before), &events(&list));
        assert_eq!(tasks.keys().collect::<Vec<_>>(), ["a", "c"]);
        let (a, c) = (&tasks["a"], &tasks["c"]);
        assert_eq!((a.task.title.as_str(), a.touched), ("now", true));
        assert_eq!(a.task.created_at, Timestamp::UNIX_EPOCH);
        assert_eq!((c.task.title.as_str(), c.touched), ("before", false));
    }

    #[test]
    fn what_is_no_event_changes_nothing() {
        let list = [("created", new("a", "")), ("created", json!({})), ("renamed", new("a", "a"))];
        assert!(replay([], &events(&list)).is_empty());
    }
}
