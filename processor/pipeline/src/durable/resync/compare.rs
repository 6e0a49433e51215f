//! Compares the expected state of KV with what was read. Pure: it takes records and reads of KV,
//! and returns differences.
//!
//! It may not decide that a difference is real: a read of KV may be old, so each difference is read
//! again.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use taskpipeline_contract::{Task, TaskId, TaskMetadata};

use crate::durable::bucket::Revision;
use crate::durable::ledger::cache::Known;
use crate::durable::ledger::record::{Due, Record};

/// Eight bytes that stand for a value or its metadata, because a million tasks must fit into
/// memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest(u64);

impl Digest {
    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    /// The digest of the JSON of a value. Texts with the same meaning have the same digest.
    fn of_json(what: &impl Serialize) -> Self {
        Self::of(&serde_json::to_vec(what).unwrap_or_default())
    }

    /// The digest of a value in KV. A value that is not a task has a digest that no task has.
    pub(super) fn of_value(text: &str) -> Self {
        match serde_json::from_str::<Task>(text) {
            Ok(task) => Self::of_json(&task),
            Err(_) => Self::of(text.as_bytes()),
        }
    }

    /// The digest of the metadata of a key in KV.
    pub(super) fn of_metadata(metadata: Option<&Value>) -> Self {
        match metadata.map(TaskMetadata::deserialize) {
            Some(Ok(metadata)) => Self::of_json(&metadata),
            Some(Err(_)) => Self::of(b"not a task's"),
            None => Self::of(b"none"),
        }
    }
}

/// The state of a task in KV that the ledger expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// KV should have a task with these digests.
    There { metadata: Digest, value: Digest },
    /// KV should not have the task, which was deleted.
    Gone,
    /// Any state, because the projector is about to read the task from KV.
    Whatever,
    /// KV should not have the task, which the ledger does not know.
    Unheard,
}

impl Expected {
    pub(super) fn by(id: &TaskId, record: Option<&Record>) -> Self {
        match record.map(|record| record.due(id)) {
            Some(Due::Put(task)) => Self::There {
                metadata: Digest::of_json(&TaskMetadata::from(&task)),
                value: Digest::of_json(&task),
            },
            Some(Due::Delete) => Self::Gone,
            Some(Due::LookUp) => Self::Whatever,
            Some(Due::Nothing) | None => Self::Unheard,
        }
    }
}

/// The state of one key as read from KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyState {
    Absent,
    /// The key exists; `None` for a part that was not read.
    There {
        metadata: Option<Digest>,
        value: Option<Digest>,
    },
}

/// The kinds of differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Class {
    /// The ledger has the task, and KV does not.
    Missing,
    /// KV has another state of the task.
    Stale,
    /// The task was deleted, and KV still has it.
    Extra,
    /// Only KV has the task.
    Unmanaged,
}

impl Class {
    /// All kinds, in the order of a report.
    pub(crate) const ALL: [Self; 4] = [Self::Missing, Self::Stale, Self::Extra, Self::Unmanaged];

    /// The name in reports.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Stale => "stale",
            Self::Extra => "extra",
            Self::Unmanaged => "unmanaged",
        }
    }
}

/// The difference between the expected state and the read one, or `None`.
pub(super) fn compare(expected: Expected, seen: KeyState) -> Option<Class> {
    match (expected, seen) {
        (Expected::There { .. }, KeyState::Absent) => Some(Class::Missing),
        (
            Expected::There { metadata, value },
            KeyState::There { metadata: seen_metadata, value: seen_value },
        ) => {
            let differs = seen_metadata.is_some_and(|seen| seen != metadata)
                || seen_value.is_some_and(|seen| seen != value);
            differs.then_some(Class::Stale)
        }
        (Expected::Gone, KeyState::There { .. }) => Some(Class::Extra),
        (Expected::Unheard, KeyState::There { .. }) => Some(Class::Unmanaged),
        (Expected::Gone | Expected::Unheard, KeyState::Absent) | (Expected::Whatever, _) => None,
    }
}

/// The ledger as it was read, for a comparison with the keys of KV one by one.
#[derive(Debug, Default)]
pub(super) struct Table {
    expected: HashMap<TaskId, (Revision, Expected)>,
    tasks: usize,
}

impl Table {
    /// Adds a record, in the order of revisions. It replaces an earlier one of the same task.
    pub(super) fn learn(&mut self, id: TaskId, known: &Known) {
        let expected = Expected::by(&id, Some(&known.record));
        if matches!(expected, Expected::There { .. }) {
            self.tasks += 1;
        }
        let before = self.expected.insert(id, (known.revision, expected));
        if matches!(before, Some((_, Expected::There { .. }))) {
            self.tasks -= 1;
        }
    }

    /// The number of tasks that KV should have.
    pub(super) fn tasks(&self) -> usize {
        self.tasks
    }

    /// Returns whether KV should have the task, so that its value is worth reading.
    pub(super) fn should_hold(&self, id: &TaskId) -> bool {
        matches!(self.expected.get(id), Some((_, Expected::There { .. })))
    }

    /// Compares one key of KV. A key that is listed twice counts as unmanaged, and is read again
    /// like any other difference.
    pub(super) fn see(&mut self, id: TaskId, seen: KeyState, into: &mut BTreeMap<TaskId, Class>) {
        let expected = self.expected.remove(&id).map_or(Expected::Unheard, |(_, expected)| expected);
        if let Some(class) = compare(expected, seen) {
            into.insert(id, class);
        }
    }

    /// Reports all other expected tasks as missing, after the last key.
    pub(super) fn finish(self, into: &mut BTreeMap<TaskId, Class>) {
        for (id, (_, expected)) in self.expected {
            if let Some(class) = compare(expected, KeyState::Absent) {
                into.insert(id, class);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use taskpipeline_contract::{
        CorrelationId, Description, EventData, NewTask, Status, TaskPatch, Timestamp, Title,
    };

    use super::*;
    use crate::fold::Version;

    fn id(text: &str) -> TaskId {
        TaskId::new(text).unwrap()
    }

    fn record(data: &EventData) -> Record {
        let correlation_id = CorrelationId::new("c").unwrap();
        Record::of(Version::new(1, 1), Timestamp::UNIX_EPOCH, correlation_id, data)
    }

    fn created(name: &str, title: &str) -> Record {
        record(&EventData::Created(NewTask {
            id: id(name),
            title: Title::new(title).unwrap(),
            description: Description::new("d").unwrap(),
            status: Status::Pending,
        }))
    }

    fn updated(name: &str) -> Record {
        let status = Some(Status::Completed);
        record(&EventData::Updated(TaskPatch { id: id(name), title: None, description: None, status }))
    }

    fn deleted(name: &str) -> Record {
        record(&EventData::Deleted(id(name)))
    }

    fn known(record: Record, revision: u64) -> Known {
        Known { record: Arc::new(record), revision: Revision(revision) }
    }

    fn task(record: &Record, name: &str) -> Task {
        match record.due(&id(name)) {
            Due::Put(task) => task,
            other => panic!("{other:?}"),
        }
    }

    /// A key in a list of KV, with the content of this record.
    fn listed(record: &Record, name: &str) -> KeyState {
        let metadata = serde_json::to_value(TaskMetadata::from(&task(record, name))).unwrap();
        KeyState::There { metadata: Some(Digest::of_metadata(Some(&metadata))), value: None }
    }

    #[test]
    fn each_difference_has_its_class_and_nothing_else_is_one() {
        let mut table = Table::default();
        for (revision, (name, record)) in [
            ("equal", created("equal", "t")),
            ("missing", created("missing", "t")),
            ("stale", created("stale", "new")),
            ("extra", deleted("extra")),
            ("gone", deleted("gone")),
            ("asked", updated("asked")),
        ]
        .into_iter()
        .enumerate()
        {
            table.learn(id(name), &known(record, revision as u64 + 1));
        }
        assert_eq!(table.tasks(), 3);
        let any = created("x", "t");
        let mut found = BTreeMap::new();
        for (name, seen) in [
            ("equal", listed(&created("equal", "t"), "equal")),
            ("stale", listed(&created("stale", "old"), "stale")),
            ("extra", listed(&any, "x")),
            ("asked", listed(&any, "x")),
            ("stranger", listed(&any, "x")),
        ] {
            table.see(id(name), seen, &mut found);
        }
        table.finish(&mut found);
        let found: Vec<_> = found.iter().map(|(id, class)| (id.as_str(), *class)).collect();
        assert_eq!(
            found,
            [
                ("extra", Class::Extra),
                ("missing", Class::Missing),
                ("stale", Class::Stale),
                ("stranger", Class::Unmanaged)
            ]
        );
    }

    #[test]
    fn the_newest_record_counts() {
        let mut table = Table::default();
        table.learn(id("a"), &known(created("a", "t"), 1));
        table.learn(id("a"), &known(deleted("a"), 2));
        assert_eq!((table.tasks(), table.should_hold(&id("a"))), (0, false));
        let mut found = BTreeMap::new();
        table.finish(&mut found);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn values_and_metadata_are_compared_by_what_they_say() {
        let record = created("a", "t");
        let expected = Expected::by(&id("a"), Some(&record));
        let value = serde_json::to_string_pretty(&task(&record, "a")).unwrap();
        let seen = |metadata, value: &str| KeyState::There { metadata, value: Some(Digest::of_value(value)) };
        assert_eq!(compare(expected, seen(None, &value)), None, "spaces say nothing");
        assert_eq!(compare(expected, seen(None, "no task")), Some(Class::Stale));
        let other = value.replace("\"d\"", "\"e\"");
        assert_eq!(compare(expected, seen(None, &other)), Some(Class::Stale));
        let none = Some(Digest::of_metadata(None));
        assert_eq!(compare(expected, seen(none, &value)), Some(Class::Stale), "the list page needs it");
    }

    #[test]
    fn updates_of_what_never_was_leave_a_key_unmanaged() {
        let mut record = updated("a");
        record.join(None);
        assert_eq!(Expected::by(&id("a"), Some(&record)), Expected::Unheard);
        record.task.merge(&Record::tombstone(Timestamp::UNIX_EPOCH, CorrelationId::new("c").unwrap()).task);
        assert_eq!(Expected::by(&id("a"), Some(&record)), Expected::Gone);
    }
}
