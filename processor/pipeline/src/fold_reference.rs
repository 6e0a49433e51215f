//! The reference of the fold: replays the events of one task in order, as the design describes.
//!
//! A create sets every field, an update changes a task that exists, and a delete removes it. A task
//! that KV had existed before the first event. The reference shares no code with the fold, not even
//! the order of versions: each event knows its place.
//!
//! Below it are the generators of histories for the tests.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use taskpipeline_contract::{
    Description, EventData, NewTask, Status, Task, TaskId, TaskPatch, Timestamp, Title,
};

use super::fold::Version;

/// An event of the task.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Happened {
    /// Its place in the order of all events.
    pub(super) nth: usize,
    pub(super) version: Version,
    pub(super) at: Timestamp,
    pub(super) data: EventData,
}

/// The answer of KV about the time before the first event.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    NotYet,
    ItKnewNone,
    ItKnew(Task),
}

/// The request that KV needs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Duty {
    Put(Task),
    Delete,
    LookUp,
    Nothing,
}

/// Each event once, in order.
fn in_order(events: &[Happened]) -> impl Iterator<Item = &Happened> {
    events.iter().map(|event| (event.nth, event)).collect::<BTreeMap<_, _>>().into_values()
}

/// The task after these events.
pub(super) fn replay(before: Option<&Task>, events: &[Happened]) -> Option<Task> {
    let mut task = before.cloned();
    for event in in_order(events) {
        match &event.data {
            EventData::Created(new) => {
                task = Some(Task {
                    id: new.id.clone(),
                    title: new.title.clone(),
                    description: new.description.clone(),
                    status: new.status,
                    created_at: event.at,
                    updated_at: event.at,
                });
            }
            EventData::Updated(patch) => {
                let Some(task) = &mut task else { continue };
                patch.title.iter().for_each(|title| task.title = title.clone());
                patch.description.iter().for_each(|text| task.description = text.clone());
                patch.status.iter().for_each(|status| task.status = *status);
                task.updated_at = event.at;
            }
            EventData::Deleted(_) => task = None,
        }
    }
    task
}

/// Returns whether only KV can tell the result: all events are updates, and KV has not been read.
pub(super) fn needs_base(asked: &Asked, events: &[Happened]) -> bool {
    let is_update = |event: &Happened| matches!(event.data, EventData::Updated(_));
    *asked == Asked::NotYet && !events.is_empty() && events.iter().all(is_update)
}

/// The request that follows from the events and the answer of KV.
pub(super) fn duty(asked: &Asked, events: &[Happened]) -> Duty {
    if needs_base(asked, events) {
        return Duty::LookUp;
    }
    let before = if let Asked::ItKnew(task) = asked { Some(task) } else { None };
    match replay(before, events) {
        Some(task) => Duty::Put(task),
        None if events.iter().any(|event| matches!(event.data, EventData::Deleted(_))) => Duty::Delete,
        None => Duty::Nothing,
    }
}

/// The versions of the events that set a field of the task: for each field, the last one.
pub(super) fn setters(exists_before: bool, events: &[Happened]) -> BTreeSet<Version> {
    let mut exists = exists_before;
    let mut fields: BTreeMap<&str, Version> = BTreeMap::new();
    for event in in_order(events) {
        let mut set = |names: &[&'static str]| fields.extend(names.iter().map(|name| (*name, event.version)));
        match &event.data {
            EventData::Created(_) => {
                exists = true;
                set(&["title", "description", "status", "created", "updated"]);
            }
            EventData::Updated(patch) if exists => {
                set(&["updated"]);
                patch.title.iter().for_each(|_| set(&["title"]));
                patch.description.iter().for_each(|_| set(&["description"]));
                patch.status.iter().for_each(|_| set(&["status"]));
            }
            EventData::Updated(_) => {}
            EventData::Deleted(_) => {
                exists = false;
                fields.clear();
            }
        }
    }
    fields.into_values().collect()
}

pub(super) fn at(seconds: usize) -> Timestamp {
    Timestamp::from_unix_millis(i64::try_from(seconds).unwrap() * 1000).unwrap()
}

/// The task as KV had it.
pub(super) fn base(id: &TaskId) -> Task {
    Task {
        id: id.clone(),
        title: Title::new("from KV").unwrap(),
        description: Description::new("").unwrap(),
        status: Status::Pending,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
    }
}

/// Any event of this task.
pub(super) fn data(id: TaskId) -> impl Strategy<Value = EventData> {
    let title = || (0..9_u8).prop_map(|n| Title::new(format!("title {n}")).unwrap());
    let description = || (0..9_u8).prop_map(|n| Description::new(format!("{n}")).unwrap());
    let status = || select(Status::ALL.to_vec());
    let (created, updated, deleted) = (id.clone(), id.clone(), id);
    prop_oneof![
        3 => (title(), description(), status()).prop_map(move |(title, description, status)| {
            EventData::Created(NewTask { id: created.clone(), title, description, status })
        }),
        5 => (option::of(title()), option::of(description()), option::of(status())).prop_map(
            move |(title, description, status)| {
                EventData::Updated(TaskPatch { id: updated.clone(), title, description, status })
            }
        ),
        2 => Just(EventData::Deleted(deleted)),
    ]
}

/// Up to `most` events, in two incarnations of the stream. The second uses the sequences of the
/// first again.
pub(super) fn history(id: &TaskId, most: usize) -> impl Strategy<Value = Vec<Happened>> {
    (vec((data(id.clone()), 0..40_usize), 0..most), 0..most, 0..5_u64).prop_map(|(drawn, lives, from)| {
        let happened = |(n, (data, seconds))| {
            let n: usize = n;
            let (incarnation, before) = if n < lives { (1, 0) } else { (2, lives) };
            let sequence = from + u64::try_from(n - before).unwrap();
            Happened { nth: n, version: Version::new(incarnation, sequence + 1), at: at(seconds), data }
        };
        drawn.into_iter().enumerate().map(happened).collect()
    })
}

/// The numbers below `count` in any order, each at least once, with repeats.
pub(super) fn deliveries(count: usize) -> impl Strategy<Value = Vec<usize>> {
    let again = if count == 0 { vec(0..1_usize, 0..1).boxed() } else { vec(0..count, 0..=count).boxed() };
    again.prop_map(move |again| (0..count).chain(again).collect::<Vec<_>>()).prop_shuffle()
}
