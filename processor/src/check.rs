//! `taskpipeline check`: publishes a task, waits until it is in KV, deletes it, and waits until it is gone.
//!
//! The command knows nothing of the parts in between, and so shows whether all of them work.

use std::time::Duration;

use clap::Args;
use taskpipeline_contract::{EventKind, RuleError, TaskId, TaskKey};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::producer::{Producer, ProducerError};
use taskpipeline_kv::{BulkApi, ClientError, Failure, Namespace};
use taskpipeline_pipeline::settings::Settings;

/// The interval between two reads of KV.
const LOOK: Duration = Duration::from_millis(500);

/// The interval after which the event is published again: while the pipeline starts, no stream may capture it yet.
const AGAIN: Duration = Duration::from_secs(5);

/// The options of `taskpipeline check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The most time to wait for the task to be in KV, and then for its deletion, such as 30s
    #[arg(long, default_value = "60s", value_parser = taskpipeline_pipeline::settings::parse_duration)]
    within: Duration,
}

/// The pipeline does not work, as seen from outside.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// NATS did not accept the event, or nothing subscribes to it.
    #[error(transparent)]
    Producer(#[from] ProducerError),
    /// Cannot happen in practice: the id is generated here.
    #[error(transparent)]
    Id(#[from] RuleError),
    /// The client of KV cannot be built.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// KV does not answer.
    #[error("cannot read the KV namespace: {0}")]
    Kv(#[from] Failure),
    /// An event was published, and KV did not change in time.
    #[error(
        "published {subject}, but after {} s the task {id} is {state} KV. Check that replicas run, and read their logs",
        within.as_secs()
    )]
    NotSeen {
        /// The subject of the event.
        subject: String,
        /// The id of the task.
        id: TaskId,
        /// `not in` or `still in`.
        state: &'static str,
        /// The time that passed, in whole seconds in the message.
        within: Duration,
    },
}

impl Check {
    /// Checks the pipeline. Returns one line with the time that it took.
    ///
    /// # Errors
    /// If the task does not get into KV, or is not deleted from it.
    pub(crate) async fn run(&self, settings: &Settings) -> Result<String, CheckError> {
        let producer = Producer::connect(&settings.connection).await?;
        let kv = Namespace::new(&settings.kv, settings.pipeline.tuning.request_timeout)?;
        let name = format!("check-{}", Uuid::new_v4());
        let id = TaskId::new(&name)?;
        let subject = |kind: EventKind| kind.subject(&settings.pipeline.events.subject_prefix);
        let began = Instant::now();
        for (kind, wanted) in [(EventKind::Created, true), (EventKind::Deleted, false)] {
            let (asked, mut published) = (Instant::now(), None::<Instant>);
            loop {
                if published.is_none_or(|at| at.elapsed() > AGAIN) {
                    match producer.publish(&subject(kind), event(kind, &name).into()).await {
                        // The pipeline may be about to start.
                        Err(ProducerError::NobodyListens { .. }) if asked.elapsed() < self.within => {}
                        other => {
                            other?;
                            published = Some(Instant::now());
                        }
                    }
                }
                if is_there(&kv, &id).await? == wanted {
                    break;
                }
                if asked.elapsed() > self.within {
                    let subject = subject(kind);
                    let state = if wanted { "not in" } else { "still in" };
                    return Err(CheckError::NotSeen { subject, id, state, within: self.within });
                }
                sleep(LOOK).await;
            }
            if wanted {
                println!("a created task was in KV after {:.1} s", began.elapsed().as_secs_f64());
            }
        }
        Ok(format!("the pipeline works: {name} came and went in {:.1} s", began.elapsed().as_secs_f64()))
    }
}

async fn is_there(kv: &Namespace, id: &TaskId) -> Result<bool, Failure> {
    let key = TaskKey::new(id.clone());
    let found = kv.bulk_get(std::slice::from_ref(&key)).await?;
    Ok(found.values().any(Option::is_some))
}

fn event(kind: EventKind, id: &str) -> String {
    let data = match kind {
        EventKind::Deleted => serde_json::json!({"id": id}),
        _ => {
            serde_json::json!({"id": id, "title": "taskpipeline check", "description": "", "status": "pending"})
        }
    };
    serde_json::json!({"correlationId": id, "data": data}).to_string()
}
