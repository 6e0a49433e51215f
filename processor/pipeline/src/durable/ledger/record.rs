//! The record of a task in the ledger: the state of the task, and the last event that changed it.
//! Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use serde::{Deserialize, Serialize};
use taskpipeline_contract::{CorrelationId, EventData, Task, TaskId, Timestamp};

use crate::durable::bucket::Revision;
use crate::durable::names::Target;
use crate::fold::{TaskState, Version, Versioned};

/// The last event that changed a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cause {
    /// The correlation id of the event.
    #[serde(rename = "id")]
    pub(crate) correlation_id: CorrelationId,
    /// When the stream stored the event.
    pub(crate) at: Timestamp,
}

/// A projector in one term.
///
/// Each KV namespace counts its own terms, so a number alone is not unique if several namespaces
/// share a ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Settler {
    /// The KV namespace of the projector, and its term there.
    Of { target: Target, term: u64 },
    /// From a version that did not record the namespace. It may belong to any projector, so it
    /// equals none.
    Unnamed(u64),
}

/// The record of a task in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) task: TaskState,
    pub(crate) last: Versioned<Cause>,
    /// The projector that settled the record, set with its time to live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_by: Option<Settler>,
    /// The revision of the record that this one replaced; 0 without one. Set at each write.
    #[serde(default = "Revision::last")]
    pub(crate) follows: Revision,
}

impl Record {
    /// The record of one event.
    pub(crate) fn of(
        version: Version,
        at: Timestamp,
        correlation_id: CorrelationId,
        data: &EventData,
    ) -> Self {
        let mut task = TaskState::default();
        task.fold(version, at, data);
        Self {
            task,
            last: Versioned { version, value: Cause { correlation_id, at } },
            expires_by: None,
            follows: Revision::default(),
        }
    }

    /// The record of a task that must not exist, as if it had been deleted before any event.
    pub(crate) fn tombstone(at: Timestamp, correlation_id: CorrelationId) -> Self {
        let last = Versioned { version: Version::ZERO, value: Cause { correlation_id, at } };
        Self { task: TaskState::tombstone(), last, expires_by: None, follows: Revision::default() }
    }

    /// Adds another record of the same task. Returns whether that changed anything; then the record
    /// does not expire.
    pub(crate) fn merge(&mut self, other: &Self) -> bool {
        let before = self.task.clone();
        self.task.merge(&other.task);
        let newer = other.last.version > self.last.version;
        if newer {
            self.last = other.last.clone();
        }
        let news = newer || self.task != before;
        if news {
            self.expires_by = None;
        }
        news
    }

    /// Adds the task as KV had it before any event. Returns whether the record needed that.
    pub(crate) fn join(&mut self, known: Option<&Task>) -> bool {
        if !self.task.needs_base() {
            return false;
        }
        match known {
            Some(task) => self.task.join(task),
            None => self.task.join_absent(),
        }
        true
    }

    /// The bytes of its texts.
    pub(crate) fn text_bytes(&self) -> usize {
        self.task.text_bytes() + self.last.value.correlation_id.as_str().len()
    }

    /// Returns whether [`Self::due`] is [`Due::LookUp`], at less cost.
    pub(crate) fn is_to_be_looked_up(&self) -> bool {
        self.task.needs_base()
    }

    /// The state that KV must have of this task.
    pub(crate) fn due(&self, id: &TaskId) -> Due {
        match self.task.visible(id) {
            Some(task) => Due::Put(task),
            None if self.task.needs_base() => Due::LookUp,
            None if self.task.is_deleted() => Due::Delete,
            None => Due::Nothing,
        }
    }
}

/// The state that KV must have of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// KV must have this task.
    Put(Task),
    /// KV must not have the task.
    Delete,
    /// Only KV can tell what the updates change.
    LookUp,
    /// The task never existed.
    Nothing,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fold_reference::{Asked, Duty, Happened, base, deliveries, duty, history};

    fn id() -> TaskId {
        TaskId::new("a").unwrap()
    }

    #[test]
    fn a_record_as_it_was_written_at_first_is_read_and_written_as_it_is_now() {
        let at = "2026-11-22T17:00:22.865Z";
        let versioned = |is: &str| format!(r#"{{"v":{{"incarnation":1,"sequence":7}},"is":{is}}}"#);
        let (moment, title) = (versioned(&format!("\"{at}\"")), versioned("\"A\""));
        let last = versioned(&format!(r#"{{"id":"c","at":"{at}"}}"#));
        let old =
            format!(r#"{{"task":{{"created":{moment},"updated":{moment},"title":{title}}},"last":{last}}}"#);
        let read: Record = serde_json::from_str(&old).unwrap();
        let now = serde_json::to_value(&read).unwrap();
        assert_eq!(now["task"]["created"], serde_json::json!([1, 7, at]));
        assert_eq!(now["last"], serde_json::json!([1, 7, {"id": "c", "at": at}]));
        assert_eq!(serde_json::from_value::<Record>(now).unwrap(), read);
    }

    #[test]
    fn a_settler_of_one_namespace_is_not_that_of_another_nor_one_without_a_name() {
        let of = |target: &str, term| Settler::Of { target: Target::new(target), term };
        assert_ne!(of("http://kv/a", 3), of("http://kv/b", 3));
        let written = serde_json::to_string(&of("http://kv/a", 3)).unwrap();
        assert_eq!(serde_json::from_str::<Settler>(&written).unwrap(), of("http://kv/a", 3));
        let old: Settler = serde_json::from_str("3").unwrap();
        assert_eq!(old, Settler::Unnamed(3));
        assert_ne!(old, of("http://kv/a", 3));
    }

    fn record(event: &Happened) -> Record {
        let correlation_id = CorrelationId::new(format!("of {}", event.version)).unwrap();
        Record::of(event.version, event.at, correlation_id, &event.data)
    }

    /// The record after a round trip through the ledger.
    fn stored(record: &Record) -> Record {
        serde_json::from_slice(&serde_json::to_vec(record).unwrap()).unwrap()
    }

    fn merged(one: &Record, other: &Record) -> Record {
        let mut merged = stored(one);
        let news = merged.merge(&stored(other));
        assert_eq!(news, merged != *one, "it is news where it changes something");
        merged
    }

    fn agree(record: &Record, asked: &Asked, events: &[Happened]) {
        assert_eq!(record.is_to_be_looked_up(), record.due(&id()) == Due::LookUp);
        let due = match record.due(&id()) {
            Due::Put(task) => Duty::Put(task),
            Due::Delete => Duty::Delete,
            Due::LookUp => Duty::LookUp,
            Due::Nothing => Duty::Nothing,
        };
        assert_eq!(due, duty(asked, events));
        if due == Duty::Delete {
            let is_delete =
                |event: &Happened| matches!(event.data, taskpipeline_contract::EventData::Deleted(_));
            assert!(events.iter().any(is_delete), "a delete for want of knowledge");
        }
        if due == Duty::Nothing {
            assert_eq!(asked, &Asked::ItKnewNone);
        }
        let newest = events.iter().max_by_key(|event| event.nth).unwrap().version;
        assert_eq!(record.last.version, newest);
        assert_eq!(record.last.value.correlation_id.as_str(), format!("of {newest}"));
    }

    /// The answers of KV to a read.
    fn kv_knows() -> impl Strategy<Value = Option<Task>> {
        proptest::option::of(Just(base(&id())))
    }

    proptest! {
        #[test]
        fn a_record_folded_from_any_deliveries_and_from_the_ledger_each_time_is_the_replay(
            (events, order, asks) in history(&id(), 12).prop_flat_map(|events| {
                let count = events.len();
                (Just(events), deliveries(count), proptest::collection::vec(any::<bool>(), 2 * count))
            }),
            knows in kv_knows(),
        ) {
            let mut known: Option<Record> = None;
            let (mut taken, mut said) = (Vec::new(), Asked::NotYet);
            for (which, ask) in order.iter().zip(asks) {
                let new = record(&events[*which]);
                let mut next = known.map_or_else(|| new.clone(), |known| merged(&known, &new));
                prop_assert!(!next.clone().merge(&new), "the second time it is no news");
                taken.push(events[*which].clone());
                if ask && next.join(knows.as_ref()) {
                    said = knows.clone().map_or(Asked::ItKnewNone, Asked::ItKnew);
                }
                agree(&next, &said, &taken);
                known = Some(stored(&next));
            }
        }

        #[test]
        fn a_delivery_split_into_records_is_the_same_in_any_order_and_grouping(
            (events, parts) in history(&id(), 12).prop_flat_map(|events| {
                let count = events.len();
                (Just(events), proptest::collection::vec(0..3_usize, count))
            }),
            joins in 0..4_usize,
            knows in kv_knows(),
        ) {
            let mut records: Vec<Record> = Vec::new();
            for part in 0..3 {
                let of_part = events.iter().zip(&parts).filter(|(_, of)| **of == part).map(|(event, _)| record(event));
                records.extend(of_part.reduce(|one, next| merged(&one, &next)));
            }
            let mut said = Asked::NotYet;
            if let Some(asking) = records.get_mut(joins) && asking.join(knows.as_ref()) {
                said = knows.clone().map_or(Asked::ItKnewNone, Asked::ItKnew);
            }
            let Some(all) = records.iter().cloned().reduce(|one, next| merged(&one, &next)) else { return Ok(()) };
            let reverse = records.iter().rev().cloned().reduce(|one, next| merged(&one, &next)).unwrap();
            prop_assert_eq!(&all, &reverse);
            if let [a, b, c] = &records[..] {
                prop_assert_eq!(&merged(a, &merged(b, c)), &all);
                prop_assert_eq!(&merged(&merged(a, c), b), &all);
            }
            for record in &records {
                prop_assert_eq!(&merged(&all, record), &all);
            }
            agree(&all, &said, &events);
        }
    }

    #[test]
    fn news_lets_an_expiring_record_live_on_and_no_news_does_not() {
        let delete = |sequence| {
            let (version, data) =
                (Version::new(1, sequence), taskpipeline_contract::EventData::Deleted(id()));
            record(&Happened { nth: 0, version, at: Timestamp::UNIX_EPOCH, data })
        };
        let mut expiring = delete(5);
        let settler = Settler::Of { target: Target::new("http://kv"), term: 3 };
        expiring.expires_by = Some(settler.clone());
        assert!(!expiring.merge(&delete(4)) && expiring.expires_by == Some(settler));
        assert!(expiring.merge(&delete(6)) && expiring.expires_by.is_none());
    }
}
