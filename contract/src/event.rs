//! The three events, and how bytes are decoded to an event.

use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::fault::{DecodeError, FieldFault};
use crate::text::{check_length, checked_text};
use crate::wire::{RawData, RawEvent, Slot, Text};
use crate::{Description, RuleError, Status, TaskId, Title};

checked_text! {
    /// The id of an event in logs, answers and dead letters: 1 to 128 printable ASCII characters, spaces
    /// included.
    CorrelationId, check_correlation_id
}

fn check_correlation_id(text: &str) -> Result<(), RuleError> {
    match text.chars().find(|c| !matches!(c, ' '..='~')) {
        Some(c) => Err(RuleError::new(format!("must be printable ASCII, got U+{:04X}", u32::from(c)))),
        None => check_length(text.len(), 1, 128, "characters"),
    }
}

/// The kind of an event: the last token of its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// `tasks.created`
    Created,
    /// `tasks.updated`
    Updated,
    /// `tasks.deleted`
    Deleted,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Created, Self::Updated, Self::Deleted];

    /// The last token of the subject.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
        }
    }

    /// The subject under a prefix: `tasks` gives `tasks.created`.
    #[must_use]
    pub fn subject(self, prefix: &str) -> String {
        format!("{prefix}.{}", self.as_str())
    }
}

/// A valid event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The id under which the producer follows the event.
    pub correlation_id: CorrelationId,
    /// The change of the task.
    pub data: EventData,
}

/// The change of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventData {
    /// The task is created. A task with this id is replaced, with all its fields.
    Created(NewTask),
    /// Some fields of the task change.
    Updated(TaskPatch),
    /// The task is deleted.
    Deleted(TaskId),
}

/// The data of `tasks.created`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NewTask {
    /// The task's id.
    pub id: TaskId,
    /// The task's title.
    pub title: Title,
    /// The task's description.
    pub description: Description,
    /// The task's status.
    pub status: Status,
}

/// The data of `tasks.updated`. A field that is `None` does not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskPatch {
    /// The task's id.
    pub id: TaskId,
    /// The new title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<Title>,
    /// The new description.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<Description>,
    /// The new status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

impl Event {
    /// Decodes and validates an event of this kind.
    ///
    /// Ignores unknown fields. A repeated field is an error, because two readers could take different values.
    /// Never panics.
    ///
    /// # Errors
    /// If the bytes are not such an event. The error names every invalid field.
    pub fn decode(kind: EventKind, bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Err(DecodeError::Malformed("the message is empty".to_owned()));
        }
        let raw: Slot<RawEvent<'_>> =
            serde_json::from_slice(bytes).map_err(|error| DecodeError::Malformed(error.to_string()))?;

        let mut faults = Faults::default();
        let event = match raw {
            Slot::Is(raw) => Self::check(kind, raw, &mut faults),
            Slot::Wrong(kind) => faults.wrong_type("event", "an object", kind),
            Slot::Missing => faults.missing("event"),
        };
        match event {
            Some(event) if faults.0.is_empty() => Ok(event),
            _ => Err(DecodeError::Invalid(faults.0)),
        }
    }

    fn check(kind: EventKind, raw: RawEvent<'_>, faults: &mut Faults) -> Option<Self> {
        let correlation_id = faults.required("correlationId", &raw.correlation_id);
        let data = match raw.data {
            Slot::Is(raw) => EventData::check(kind, &raw, faults),
            Slot::Wrong(kind) => faults.wrong_type("data", "an object", kind),
            Slot::Missing => faults.missing("data"),
        };
        Some(Self { correlation_id: correlation_id?, data: data? })
    }

    /// Encodes the event as JSON, as producers publish it on NATS.
    ///
    /// # Errors
    /// If `serde_json` cannot write the event; every valid event can be written.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The kind of the event.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        match self.data {
            EventData::Created(_) => EventKind::Created,
            EventData::Updated(_) => EventKind::Updated,
            EventData::Deleted(_) => EventKind::Deleted,
        }
    }

    /// The id of the task that changes.
    #[must_use]
    pub fn task_id(&self) -> &TaskId {
        self.data.task_id()
    }
}

impl EventData {
    /// The id of the task that changes.
    #[must_use]
    pub fn task_id(&self) -> &TaskId {
        match self {
            Self::Created(task) => &task.id,
            Self::Updated(patch) => &patch.id,
            Self::Deleted(id) => id,
        }
    }

    fn check(kind: EventKind, raw: &RawData<'_>, faults: &mut Faults) -> Option<Self> {
        let id = faults.required("data.id", &raw.id);
        match kind {
            EventKind::Created => {
                let title = faults.required("data.title", &raw.title);
                let description = faults.required("data.description", &raw.description);
                let status = faults.required("data.status", &raw.status);
                Some(Self::Created(NewTask {
                    id: id?,
                    title: title?,
                    description: description?,
                    status: status?,
                }))
            }
            EventKind::Updated => {
                let title = faults.optional("data.title", &raw.title);
                let description = faults.optional("data.description", &raw.description);
                let status = faults.optional("data.status", &raw.status);
                Some(Self::Updated(TaskPatch { id: id?, title, description, status }))
            }
            EventKind::Deleted => Some(Self::Deleted(id?)),
        }
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Data<'a> {
            Created(&'a NewTask),
            Updated(&'a TaskPatch),
            Deleted { id: &'a TaskId },
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'a> {
            correlation_id: &'a CorrelationId,
            data: Data<'a>,
        }
        let data = match &self.data {
            EventData::Created(task) => Data::Created(task),
            EventData::Updated(patch) => Data::Updated(patch),
            EventData::Deleted(id) => Data::Deleted { id },
        };
        Wire { correlation_id: &self.correlation_id, data }.serialize(serializer)
    }
}

/// The faults found so far. Each method returns the value, or notes a fault and returns `None`.
#[derive(Default)]
struct Faults(Vec<FieldFault>);

impl Faults {
    fn required<T: FromStr<Err = RuleError>>(&mut self, field: &'static str, raw: &Text<'_>) -> Option<T> {
        match raw {
            Slot::Missing => self.missing(field),
            _ => self.optional(field, raw),
        }
    }

    fn optional<T: FromStr<Err = RuleError>>(&mut self, field: &'static str, raw: &Text<'_>) -> Option<T> {
        match raw {
            Slot::Missing => None,
            Slot::Wrong(kind) => self.wrong_type(field, "a string", kind),
            Slot::Is(text) => text.parse().map_err(|problem| self.0.push(FieldFault { field, problem })).ok(),
        }
    }

    fn missing<T>(&mut self, field: &'static str) -> Option<T> {
        self.0.push(FieldFault { field, problem: RuleError::new("is missing") });
        None
    }

    fn wrong_type<T>(&mut self, field: &'static str, wanted: &str, got: &str) -> Option<T> {
        self.0.push(FieldFault { field, problem: RuleError::new(format!("must be {wanted}, got {got}")) });
        None
    }
}
