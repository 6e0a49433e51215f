//! The fold: computes the state of a task from its events, in any order and with repeats. Pure.
//!
//! It is commutative, associative and idempotent: each field is kept with the version of the event
//! that set it, and the higher version wins.
//!
//! The result equals a replay of the events in the order of their versions. In this replay, a
//! create sets every field, an update changes only a task that exists, and a delete removes the
//! task.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use taskpipeline_contract::{Description, EventData, Status, Task, TaskId, Timestamp, Title};

/// The place of an event in the order of all events.
///
/// In `Durable`: the incarnation of the stream, and the sequence in it. In `Core`: the order of
/// receipt in this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Version {
    incarnation: u32,
    sequence: u64,
}

impl Version {
    /// Older than any event: the version of a task that KV had before the first event.
    pub(super) const ZERO: Self = Self { incarnation: 0, sequence: 0 };

    /// The version of the message with this sequence in this incarnation.
    pub(super) fn new(incarnation: u32, sequence: u64) -> Self {
        Self { incarnation, sequence }
    }

    /// The sequence in the incarnation.
    #[must_use]
    pub(super) fn sequence(self) -> u64 {
        self.sequence
    }

    /// The version of the next message.
    #[must_use]
    pub(super) fn next(self) -> Self {
        Self { incarnation: self.incarnation, sequence: self.sequence + 1 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.incarnation, self.sequence)
    }
}

/// A value and the version of the event that set it. Stored as an array without names, because each
/// record has six of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Versioned<T> {
    pub(super) version: Version,
    pub(super) value: T,
}

impl<T: Serialize> Serialize for Versioned<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.version.incarnation, self.version.sequence, &self.value).serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Versioned<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EitherForm(PhantomData))
    }
}

/// Reads the array, or the older form, which ledgers may still contain.
///
/// The older form is an object: `{"v": {...}, "is": ...}`.
struct EitherForm<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for EitherForm<T> {
    type Value = Versioned<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[incarnation, sequence, value]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Versioned<T>, A::Error> {
        let short = |length| A::Error::invalid_length(length, &"three parts");
        let incarnation = parts.next_element()?.ok_or_else(|| short(0))?;
        let sequence = parts.next_element()?.ok_or_else(|| short(1))?;
        let value = parts.next_element()?.ok_or_else(|| short(2))?;
        Ok(Versioned { version: Version { incarnation, sequence }, value })
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Versioned<T>, A::Error> {
        #[derive(Deserialize)]
        struct Named<T> {
            v: Version,
            is: T,
        }
        let Named { v, is } = Named::deserialize(MapAccessDeserializer::new(fields))?;
        Ok(Versioned { version: v, value: is })
    }
}

/// The state of one task as its events set it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TaskState {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<Versioned<Timestamp>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deleted: Option<Version>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    updated: Option<Versioned<Timestamp>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    title: Option<Versioned<Title>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<Versioned<Description>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<Versioned<Status>>,
    /// Whether a read of KV found no such task before the first event.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    absent_before: bool,
}

impl TaskState {
    /// A task that was deleted before any event, so that every event outranks the delete.
    pub(super) fn tombstone() -> Self {
        Self { deleted: Some(Version::ZERO), ..Self::default() }
    }

    /// Adds one event.
    pub(super) fn fold(&mut self, version: Version, at: Timestamp, data: &EventData) {
        match data {
            EventData::Created(task) => {
                self.set_all(version, at, at, &task.title, &task.description, task.status);
            }
            EventData::Updated(patch) => {
                raise(&mut self.updated, version, &at);
                patch.title.iter().for_each(|title| raise(&mut self.title, version, title));
                patch.description.iter().for_each(|text| raise(&mut self.description, version, text));
                patch.status.iter().for_each(|status| raise(&mut self.status, version, status));
            }
            EventData::Deleted(_) => self.deleted = self.deleted.max(Some(version)),
        }
        self.forget_what_was_deleted();
    }

    /// Adds the task as KV had it before any event, at version zero, so that every event outranks
    /// it.
    pub(super) fn join(&mut self, task: &Task) {
        self.set_all(
            Version::ZERO,
            task.created_at,
            task.updated_at,
            &task.title,
            &task.description,
            task.status,
        );
        self.forget_what_was_deleted();
    }

    /// Adds that KV had no such task before any event.
    pub(super) fn join_absent(&mut self) {
        self.absent_before = true;
    }

    /// Adds another state of the same task.
    pub(super) fn merge(&mut self, other: &Self) {
        merge_slot(&mut self.created, &other.created);
        merge_slot(&mut self.updated, &other.updated);
        merge_slot(&mut self.title, &other.title);
        merge_slot(&mut self.description, &other.description);
        merge_slot(&mut self.status, &other.status);
        self.deleted = self.deleted.max(other.deleted);
        self.absent_before |= other.absent_before;
        self.forget_what_was_deleted();
    }

    /// Returns whether only updates are known, so that only KV can tell what they change.
    #[must_use]
    pub(super) fn needs_base(&self) -> bool {
        self.created.is_none() && self.deleted.is_none() && !self.absent_before
    }

    /// Returns whether a create is known.
    #[must_use]
    pub(super) fn is_created(&self) -> bool {
        self.created.is_some()
    }

    /// Returns whether a delete is known that no newer create has undone.
    #[must_use]
    pub(super) fn is_deleted(&self) -> bool {
        self.deleted.is_some() && self.created.is_none()
    }

    /// The bytes of the title and the description.
    #[must_use]
    pub(super) fn text_bytes(&self) -> usize {
        let title = self.title.as_ref().map_or(0, |title| title.value.as_str().len());
        title + self.description.as_ref().map_or(0, |text| text.value.as_str().len())
    }

    /// The versions of the events that set something in this state, oldest first.
    #[must_use]
    pub(super) fn sources(&self) -> Vec<Version> {
        fn of<T>(slot: &Option<Versioned<T>>) -> Option<Version> {
            slot.as_ref().map(|known| known.version)
        }
        let all = [
            of(&self.created),
            of(&self.updated),
            of(&self.title),
            of(&self.description),
            of(&self.status),
            self.deleted,
        ];
        let mut sources: Vec<_> = all.into_iter().flatten().collect();
        sources.sort_unstable();
        sources.dedup();
        sources
    }

    /// The task, or `None` if it was deleted or never created.
    #[must_use]
    pub(super) fn visible(&self, id: &TaskId) -> Option<Task> {
        Some(Task {
            id: id.clone(),
            created_at: self.created.as_ref()?.value,
            updated_at: self.updated.as_ref()?.value,
            title: self.title.as_ref()?.value.clone(),
            description: self.description.as_ref()?.value.clone(),
            status: self.status.as_ref()?.value,
        })
    }

    fn set_all(
        &mut self,
        version: Version,
        created: Timestamp,
        updated: Timestamp,
        title: &Title,
        description: &Description,
        status: Status,
    ) {
        raise(&mut self.created, version, &created);
        raise(&mut self.updated, version, &updated);
        raise(&mut self.title, version, title);
        raise(&mut self.description, version, description);
        raise(&mut self.status, version, &status);
    }

    /// Drops all that a delete outranks; only the delete itself stays.
    fn forget_what_was_deleted(&mut self) {
        let Some(deleted) = self.deleted else { return };
        drop_up_to(&mut self.created, deleted);
        drop_up_to(&mut self.updated, deleted);
        drop_up_to(&mut self.title, deleted);
        drop_up_to(&mut self.description, deleted);
        drop_up_to(&mut self.status, deleted);
    }
}

fn raise<T: Clone>(slot: &mut Option<Versioned<T>>, version: Version, value: &T) {
    if slot.as_ref().is_none_or(|known| known.version < version) {
        *slot = Some(Versioned { version, value: value.clone() });
    }
}

fn merge_slot<T: Clone>(slot: &mut Option<Versioned<T>>, other: &Option<Versioned<T>>) {
    other.iter().for_each(|other| raise(slot, other.version, &other.value));
}

fn drop_up_to<T>(slot: &mut Option<Versioned<T>>, deleted: Version) {
    if slot.as_ref().is_some_and(|known| known.version <= deleted) {
        *slot = None;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use taskpipeline_contract::{NewTask, TaskPatch};

    use super::super::fold_reference::{
        Asked, Happened, at, base, deliveries, history, needs_base, replay, setters,
    };
    use super::*;

    fn id() -> TaskId {
        TaskId::new("a").unwrap()
    }

    fn version(n: usize) -> Version {
        Version::new(1, u64::try_from(n).unwrap() + 1)
    }

    /// Checks a state against the reference, for any part of a history.
    fn agree(state: &TaskState, asked: &Asked, events: &[Happened]) {
        let before = if let Asked::ItKnew(task) = asked { Some(task) } else { None };
        assert_eq!(state.needs_base(), needs_base(asked, events), "{state:?}");
        let task = replay(before, events);
        if !state.needs_base() {
            assert_eq!(state.visible(&id()), task);
        } else {
            assert_eq!(state.visible(&id()), None);
        }
        let last = |wanted: fn(&EventData) -> bool| {
            events.iter().filter(|event| wanted(&event.data)).max_by_key(|event| event.nth)
        };
        let delete = last(|data| matches!(data, EventData::Deleted(_)));
        let create = last(|data| matches!(data, EventData::Created(_)));
        let outlives = |event: Option<&Happened>, other: Option<&Happened>| {
            event.is_some() && event.map(|event| event.nth) > other.map(|other| other.nth)
        };
        assert_eq!(state.is_deleted(), outlives(delete, create));
        // The base counts as created, before any event.
        let base_lives = before.is_some() && delete.is_none();
        assert_eq!(state.is_created(), outlives(create, delete) || base_lives);

        let sources = state.sources();
        assert!(sources.is_sorted_by(|one, next| one < next), "oldest first, each once: {sources:?}");
        let mut sources: BTreeSet<_> = sources.into_iter().collect();
        // Version zero stands for the task that KV had.
        assert!(!sources.remove(&Version::ZERO) || before.is_some());
        if task.is_some() || state.needs_base() {
            let mut expected = setters(before.is_some() || state.needs_base(), events);
            expected.extend(delete.map(|delete| delete.version));
            assert_eq!(sources, expected);
        } else {
            assert!(sources.iter().all(|source| events.iter().any(|event| event.version == *source)));
        }
    }

    proptest! {
        #[test]
        fn any_order_with_repeats_equals_the_replay_in_order_at_every_step(
            (events, order, join_at) in history(&id(), 12).prop_flat_map(|events| {
                let count = events.len();
                (Just(events), deliveries(count), 0..=2 * count)
            }),
            asked in prop_oneof![Just(Asked::NotYet), Just(Asked::ItKnewNone), Just(Asked::ItKnew(base(&id())))],
        ) {
            let mut state = TaskState::default();
            let (mut taken, mut said) = (Vec::new(), Asked::NotYet);
            for (n, which) in order.iter().enumerate() {
                let event = &events[*which];
                state.fold(event.version, event.at, &event.data);
                taken.push(event.clone());
                if n == join_at {
                    said = asked.clone();
                    match &asked {
                        Asked::NotYet => {}
                        Asked::ItKnewNone => state.join_absent(),
                        Asked::ItKnew(task) => state.join(task),
                    }
                }
                agree(&state, &said, &taken);
            }
        }

        #[test]
        fn states_merge_in_any_grouping_and_more_than_once(
            (events, splits) in history(&id(), 12).prop_flat_map(|events| {
                let count = events.len();
                (Just(events), proptest::collection::vec(1..8_u8, count))
            }),
            asked in prop_oneof![Just(Asked::NotYet), Just(Asked::ItKnewNone), Just(Asked::ItKnew(base(&id())))],
            joined in 0..3_usize,
        ) {
            // Each event is in one, two or three of the parts.
            let mut parts = [TaskState::default(), TaskState::default(), TaskState::default()];
            for (event, split) in events.iter().zip(&splits) {
                for (n, part) in parts.iter_mut().enumerate() {
                    if split & (1 << n) != 0 {
                        part.fold(event.version, event.at, &event.data);
                    }
                }
            }
            match &asked {
                Asked::NotYet => {}
                Asked::ItKnewNone => parts[joined].join_absent(),
                Asked::ItKnew(task) => parts[joined].join(task),
            }
            let merged = |one: &TaskState, other: &TaskState| {
                let mut merged = one.clone();
                merged.merge(other);
                merged
            };
            let [a, b, c] = &parts;
            prop_assert_eq!(merged(a, b), merged(b, a));
            prop_assert_eq!(merged(&merged(a, b), c), merged(a, &merged(b, c)));
            let all = merged(&merged(a, b), c);
            for part in &parts {
                prop_assert_eq!(&merged(&all, part), &all);
                prop_assert_eq!(&merged(part, part), part);
            }
            if !events.is_empty() {
                agree(&all, &asked, &events);
            }
        }
    }

    #[test]
    fn an_update_before_its_create_waits_unseen_and_then_applies() {
        let mut state = TaskState::default();
        let status = Some(Status::Completed);
        let patch = TaskPatch { id: id(), title: None, description: None, status };
        state.fold(version(1), at(1), &EventData::Updated(patch));
        assert!(state.needs_base());
        assert_eq!(state.visible(&id()), None);
        let task = base(&id());
        let new = NewTask { id: id(), title: task.title, description: task.description, status: task.status };
        state.fold(version(0), at(0), &EventData::Created(new));
        assert_eq!(state.visible(&id()).unwrap().status, Status::Completed);
    }

    #[test]
    fn a_delete_is_not_undone_by_what_came_before_it() {
        let mut state = TaskState::default();
        state.fold(version(5), at(5), &EventData::Deleted(id()));
        state.join(&base(&id()));
        assert!(!state.needs_base());
        assert_eq!(state.visible(&id()), None);
    }
}
