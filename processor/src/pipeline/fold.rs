//! The fold: a task's state out of its events, in whatever order and however often they come. Pure.
//!
//! Commutative, associative and idempotent: each field is kept with the version of the event that set it,
//! and the higher version wins. The result equals a replay of the events in the order of their versions,
//! in which a create sets everything, an update changes what exists and is nothing otherwise, and a delete
//! removes.

use taskpipeline_contract::{Description, EventData, Status, Task, TaskId, Timestamp, Title};

/// An event's place in the order of all events. In `Core` it is the order of receipt in this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u64);

impl Version {
    /// Older than any event: what KV knew before the first one.
    pub(super) const ZERO: Self = Self(0);

    /// The version that follows.
    #[must_use]
    pub(super) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A value and the version of the event that set it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Versioned<T> {
    version: Version,
    value: T,
}

/// What is known of one task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TaskState {
    created: Option<Versioned<Timestamp>>,
    deleted: Option<Version>,
    updated: Option<Versioned<Timestamp>>,
    title: Option<Versioned<Title>>,
    description: Option<Versioned<Description>>,
    status: Option<Versioned<Status>>,
}

impl TaskState {
    /// Takes in one event.
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

    /// Takes in the task as KV knew it before any event: at version zero, so that every event outranks it.
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

    /// Whether nothing but updates are known, so that only KV can say what they change.
    #[must_use]
    pub(super) fn needs_base(&self) -> bool {
        self.created.is_none() && self.deleted.is_none()
    }

    /// The task as it should be seen; nothing when it was deleted or never created.
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

    /// What a delete outranks is as if it had never been; only the delete itself is remembered.
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

fn drop_up_to<T>(slot: &mut Option<Versioned<T>>, deleted: Version) {
    if slot.as_ref().is_some_and(|known| known.version <= deleted) {
        *slot = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use taskpipeline_contract::{NewTask, TaskPatch};

    use super::*;

    fn id() -> TaskId {
        TaskId::new("a").unwrap()
    }

    fn event() -> impl Strategy<Value = EventData> {
        let title = (0..9_u8).prop_map(|n| Title::new(format!("title {n}")).unwrap());
        let description = (0..9_u8).prop_map(|n| Description::new(format!("{n}")).unwrap());
        let status = proptest::sample::select(Status::ALL.to_vec());
        let option = proptest::option::of::<proptest::sample::Select<Status>>;
        prop_oneof![
            3 => (title.clone(), description.clone(), status.clone()).prop_map(
                |(title, description, status)| {
                    EventData::Created(NewTask { id: id(), title, description, status })
                }
            ),
            5 => (proptest::option::of(title), proptest::option::of(description), option(status)).prop_map(
                |(title, description, status)| {
                    EventData::Updated(TaskPatch { id: id(), title, description, status })
                }
            ),
            2 => Just(EventData::Deleted(id())),
        ]
    }

    fn at(n: usize) -> Timestamp {
        Timestamp::from_unix_millis(i64::try_from(n).unwrap() * 1000).unwrap()
    }

    fn version(n: usize) -> Version {
        Version(u64::try_from(n).unwrap() + 1)
    }

    /// The definition to hold the fold to: the events one after the other, as the replaced system would.
    fn replay(base: Option<Task>, events: &[EventData]) -> Option<Task> {
        let mut task = base;
        for (n, event) in events.iter().enumerate() {
            match event {
                EventData::Created(new) => {
                    task = Some(Task {
                        id: id(),
                        title: new.title.clone(),
                        description: new.description.clone(),
                        status: new.status,
                        created_at: at(n),
                        updated_at: at(n),
                    });
                }
                EventData::Updated(patch) => {
                    if let Some(task) = &mut task {
                        task.title = patch.title.clone().unwrap_or_else(|| task.title.clone());
                        task.description =
                            patch.description.clone().unwrap_or_else(|| task.description.clone());
                        task.status = patch.status.unwrap_or(task.status);
                        task.updated_at = at(n);
                    }
                }
                EventData::Deleted(_) => task = None,
            }
        }
        task
    }

    fn base() -> Task {
        Task {
            id: id(),
            title: Title::new("from KV").unwrap(),
            description: Description::new("").unwrap(),
            status: Status::Pending,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    proptest! {
        #[test]
        fn any_order_with_repeats_equals_the_replay_in_order(
            events in proptest::collection::vec(event(), 0..12),
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
            seed in any::<u64>(),
            known_in_kv in any::<bool>(),
        ) {
            // Every event at least once, some again, shuffled, KV's answer somewhere among them.
            let mut order: Vec<Option<usize>> = (0..events.len()).map(Some).collect();
            if !events.is_empty() {
                order.extend(picks.iter().map(|pick| Some(pick.index(events.len()))));
            }
            if known_in_kv {
                order.push(None);
            }
            let mut shuffled: Vec<_> = order.into_iter().enumerate().collect();
            shuffled.sort_by_key(|(n, _)| (*n as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));

            let mut state = TaskState::default();
            for (_, which) in shuffled {
                match which {
                    Some(n) => state.fold(version(n), at(n), &events[n]),
                    None => state.join(&base()),
                }
            }
            let expected = replay(known_in_kv.then(base), &events);
            prop_assert_eq!(state.visible(&id()), expected);
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
        let task = base();
        let new = NewTask { id: id(), title: task.title, description: task.description, status: task.status };
        state.fold(version(0), at(0), &EventData::Created(new));
        assert_eq!(state.visible(&id()).unwrap().status, Status::Completed);
    }

    #[test]
    fn a_delete_is_not_undone_by_what_came_before_it() {
        let mut state = TaskState::default();
        state.fold(version(5), at(5), &EventData::Deleted(id()));
        state.join(&base());
        assert!(!state.needs_base());
        assert_eq!(state.visible(&id()), None);
    }
}
