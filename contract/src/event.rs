//! The three events and how bytes become one.

use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::fault::{DecodeError, FieldFault};
use crate::text::{check_length, checked_text};
use crate::wire::{RawData, RawEvent, Slot, Text};
use crate::{Description, RuleError, Status, TaskId, Title};

checked_text! {
    /// What one event is followed by through logs, answers and dead letters: 1 to 128 printable ASCII
    /// characters, the space included.
    CorrelationId, check_correlation_id
}

fn check_correlation_id(text: &str) -> Result<(), RuleError> {
    match text.chars().find(|c| !matches!(c, ' '..='~')) {
        Some(c) => Err(RuleError::new(format!("must be printable ASCII, got U+{:04X}", u32::from(c)))),
        None => check_length(text.len(), 1, 128, "characters"),
    }
}

/// Which of the three events; the last token of its subject.
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
    /// All three.
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
    /// What the producer follows it by.
    pub correlation_id: CorrelationId,
    /// What happened.
    pub data: EventData,
}

/// What happened to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventData {
    /// It came to be, or began anew.
    Created(NewTask),
    /// Some of its fields changed.
    Updated(TaskPatch),
    /// It is gone.
    Deleted(TaskId),
}

/// The data of `tasks.created`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NewTask {
    /// Which task.
    pub id: TaskId,
    /// Its title.
    pub title: Title,
    /// Its description.
    pub description: Description,
    /// Its status.
    pub status: Status,
}

/// The data of `tasks.updated`: what is absent stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskPatch {
    /// Which task.
    pub id: TaskId,
    /// Its new title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<Title>,
    /// Its new description.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<Description>,
    /// Its new status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

impl Event {
    /// Reads and validates the bytes of an event of this kind. Unknown fields are ignored; a field said
    /// twice is an error, since two readers could take different ones.
    ///
    /// # Errors
    /// Says why the bytes are no such event, with every field at fault. Never panics, whatever the bytes.
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

    /// The event as it travels on NATS.
    ///
    /// # Errors
    /// None in practice: every part is text. The signature is `serde_json`'s.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Which of the three it is.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        match self.data {
            EventData::Created(_) => EventKind::Created,
            EventData::Updated(_) => EventKind::Updated,
            EventData::Deleted(_) => EventKind::Deleted,
        }
    }

    /// The task it is about.
    #[must_use]
    pub fn task_id(&self) -> &TaskId {
        self.data.task_id()
    }
}

impl EventData {
    /// The task it is about.
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

/// The faults found so far. Each method answers the value, or nothing after noting what is wrong.
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
