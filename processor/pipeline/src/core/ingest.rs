//! Decodes and validates received messages, numbers them and passes them on. Invalid messages
//! become dead letters.
//!
//! Never waits for KV.

use std::sync::Arc;

use taskpipeline_contract::{CorrelationId, Event, TaskId};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::buffer::Output;
use super::dead_letters::DeadLetters;
use crate::dead_letters::Letter;
use crate::fold::Version;
use crate::message::Received;
use crate::telemetry::metrics::Metrics;

/// A valid event, and its task.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) id: TaskId,
    pub(super) carried: Carried,
}

#[cfg(test)]
impl Accepted {
    /// An event with this valid payload, received now.
    pub(super) fn of(kind: taskpipeline_contract::EventKind, version: Version, payload: String) -> Self {
        let Event { correlation_id, data } = Event::decode(kind, payload.as_bytes()).unwrap();
        let received = Received {
            kind,
            subject: kind.subject("tasks").into(),
            headers: None,
            payload: payload.into(),
            at: taskpipeline_contract::Timestamp::UNIX_EPOCH,
            taken: tokio::time::Instant::now(),
        };
        Self { id: data.task_id().clone(), carried: Carried { correlation_id, version, received } }
    }
}

/// A valid event until it has landed.
///
/// It keeps the message and not the decoded event, because the texts would be in memory twice.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) correlation_id: CorrelationId,
    /// Its place in the order of all events.
    pub(super) version: Version,
    pub(super) received: Received,
}

/// Runs until the source has ended and the buffer is empty.
pub(super) async fn run(
    mut messages: Output,
    accepted: mpsc::Sender<Accepted>,
    letters: DeadLetters,
    metrics: Arc<Metrics>,
) {
    let mut version = Version::ZERO;
    while let Some(received) = messages.next().await {
        match Event::decode(received.kind, &received.payload) {
            Ok(event) => {
                let Event { correlation_id, data } = event;
                let subject = &received.subject;
                info!(correlation_id = correlation_id.as_str(), %subject, "received");
                version = version.next();
                let id = data.task_id().clone();
                let carried = Carried { correlation_id, version, received };
                if accepted.send(Accepted { id, carried }).await.is_err() {
                    break; // The projector is gone, which `pipeline::run` reports.
                }
            }
            Err(error) => {
                metrics.events_invalid.inc();
                warn!(subject = %received.subject, %error, "refused an invalid message");
                letters.send(Letter::undecodable(received, &error)).await;
            }
        }
    }
}
