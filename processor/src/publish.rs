//! `taskpipeline publish`: creates an event, validates it like the pipeline, and publishes it. So a user needs no
//! other tool to try the pipeline.

use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use taskpipeline_contract::{DecodeError, Event, EventKind};
use uuid::Uuid;

use crate::producer::{Producer, ProducerError};
use taskpipeline_pipeline::settings::NatsConnection;

/// The event to publish.
#[derive(Debug, Subcommand)]
pub(crate) enum Publish {
    /// Publish tasks.created
    Created(Fields),
    /// Publish tasks.updated
    Updated(Fields),
    /// Publish tasks.deleted
    Deleted(Fields),
}

/// The fields of the event, or the whole event.
#[derive(Debug, Args)]
pub(crate) struct Fields {
    /// The id of the task, such as task-1
    #[arg(long)]
    id: Option<String>,
    /// The title, 1 to 200 characters
    #[arg(long)]
    title: Option<String>,
    /// The description, at most 2000 characters
    #[arg(long)]
    description: Option<String>,
    #[arg(long, help = "pending, in_progress, completed or cancelled")]
    status: Option<String>,
    /// The correlation id, by which logs name the event [default: a new one]
    #[arg(long)]
    correlation_id: Option<String>,
    /// The whole event as JSON: {"correlationId": "...", "data": {"id": "...", ...}}
    #[arg(long, conflicts_with_all = ["id", "title", "description", "status", "correlation_id"])]
    json: Option<String>,
    /// The prefix of the subjects
    #[arg(long, env = "SUBJECT_PREFIX", default_value = "tasks")]
    subject_prefix: String,
}

/// The event was not published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    /// The event is invalid.
    #[error("nothing was published")]
    Invalid(#[from] DecodeError),
    /// NATS did not accept the event, or nothing subscribes to it.
    #[error(transparent)]
    Producer(#[from] ProducerError),
}

impl Publish {
    /// Validates and publishes the event, and waits until a stream has stored it. Returns one line for the user.
    ///
    /// # Errors
    /// Names the invalid fields, or the reason why NATS did not accept the event.
    pub(crate) async fn run(&self, connection: &NatsConnection) -> Result<String, PublishError> {
        let (kind, fields) = match self {
            Self::Created(fields) => (EventKind::Created, fields),
            Self::Updated(fields) => (EventKind::Updated, fields),
            Self::Deleted(fields) => (EventKind::Deleted, fields),
        };
        let bytes = fields.event(kind).into_bytes();
        let event = Event::decode(kind, &bytes)?;

        let subject = kind.subject(&fields.subject_prefix);
        let producer = Producer::connect(connection).await?;
        let published = producer.publish(&subject, bytes.into()).await?;
        let Event { correlation_id, .. } = &event;
        Ok(format!("[{correlation_id}] published {subject} for task {} {published}", event.task_id()))
    }
}

impl Fields {
    fn event(&self, kind: EventKind) -> String {
        if let Some(json) = &self.json {
            return json.clone();
        }
        let description = match (&self.description, kind) {
            // A new task needs a description, and a user may leave out an empty one on the command line.
            (None, EventKind::Created) => Some(String::new()),
            (description, _) => description.clone(),
        };
        let data: Map<String, Value> = [
            ("id", self.id.clone()),
            ("title", self.title.clone()),
            ("description", description),
            ("status", self.status.clone()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), Value::from(value?))))
        .collect();
        let correlation_id = self.correlation_id.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
        serde_json::json!({"correlationId": correlation_id, "data": data}).to_string()
    }
}
