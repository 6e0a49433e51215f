//! The events as they were published, independent of the pipeline.

use std::collections::BTreeSet;

use bytes::Bytes;
use taskpipeline_contract::{Description, EventData, NewTask, Status, Task, TaskPatch, Title};

use super::dice::Dice;
use super::kv::POISON;
use super::world::task;
use crate::durable::clock::timestamp;
use crate::fold::Version;
use crate::fold_reference::{Happened, base, replay};

/// A message that is published.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) subject: &'static str,
    pub(super) payload: String,
    /// The content; `None` if the message is invalid.
    pub(super) data: Option<EventData>,
}

/// The events as they were published.
#[derive(Default)]
pub(super) struct Truth {
    pub(super) events: Vec<Happened>,
    /// The payloads of invalid messages.
    pub(super) invalid: Vec<Bytes>,
    pub(super) published: usize,
    /// Whether faults may still happen.
    pub(super) faults: bool,
}

impl Truth {
    /// Records a message that the stream has stored.
    pub(super) fn published(&mut self, message: &Message, payload: &Bytes, time: i64) {
        self.published += 1;
        match &message.data {
            Some(data) => {
                let (nth, at) = (self.published, timestamp(time));
                self.events.push(Happened { nth, version: Version::new(0, 0), at, data: data.clone() });
            }
            None => self.invalid.push(payload.clone()),
        }
    }

    /// The expected state of the task.
    pub(super) fn expected(&self, n: usize, known: bool) -> Option<Task> {
        let id = task(n);
        let before = known.then(|| base(&id));
        let own: Vec<_> = self.events.iter().filter(|event| *event.data.task_id() == id).cloned().collect();
        replay(before.as_ref(), &own)
    }

    /// The tasks of which KV refused a value.
    pub(super) fn poisoned(&self) -> BTreeSet<String> {
        let is_poison = |title: &Option<Title>| title.as_ref().is_some_and(|it| it.as_str().contains(POISON));
        let poisoned = self.events.iter().filter(|event| match &event.data {
            EventData::Created(new) => is_poison(&Some(new.title.clone())),
            EventData::Updated(patch) => is_poison(&patch.title),
            EventData::Deleted(_) => false,
        });
        poisoned.map(|event| event.data.task_id().as_str().to_owned()).collect()
    }
}

/// Draws a message about this task.
pub(super) fn message(n: usize, poison: bool, dice: &mut Dice) -> Message {
    let id = task(n);
    let number = dice.below(1_000);
    if dice.chance(3) {
        let payload = format!(r#"{{"correlationId":"c-{number}","data":{{"id":"task-{n}","title":7}}}}"#);
        return Message { subject: "tasks.created", payload, data: None };
    }
    let title =
        if poison && dice.chance(15) { format!("{POISON} {number}") } else { format!("title {number}") };
    let (status, description) = (dice.pick(&Status::ALL), format!("{}", dice.below(9)));
    let status_text = serde_json::to_string(&status).unwrap();
    let head = format!(r#"{{"correlationId":"c-{number}","data":{{"id":"task-{n}""#);
    match dice.below(10) {
        0..=2 => {
            let payload = format!(
                r#"{head},"title":"{title}","description":"{description}","status":{status_text}}}}}"#
            );
            let (title, description) = (Title::new(title).unwrap(), Description::new(description).unwrap());
            let data = EventData::Created(NewTask { id, title, description, status });
            Message { subject: "tasks.created", payload, data: Some(data) }
        }
        3..=7 => {
            let (mut payload, mut patch) =
                (head, TaskPatch { id, title: None, description: None, status: None });
            if dice.chance(60) {
                payload.push_str(&format!(r#","title":"{title}""#));
                patch.title = Some(Title::new(title).unwrap());
            }
            if dice.chance(40) {
                payload.push_str(&format!(r#","description":"{description}""#));
                patch.description = Some(Description::new(description).unwrap());
            }
            if dice.chance(40) || patch.title.is_none() && patch.description.is_none() {
                payload.push_str(&format!(r#","status":{status_text}"#));
                patch.status = Some(status);
            }
            payload.push_str("}}");
            Message { subject: "tasks.updated", payload, data: Some(EventData::Updated(patch)) }
        }
        _ => Message {
            subject: "tasks.deleted",
            payload: format!("{head}}}}}"),
            data: Some(EventData::Deleted(id)),
        },
    }
}
