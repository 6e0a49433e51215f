//! Decodes and validates what was received, numbers it, and hands it on. What is no event becomes a
//! dead letter. Never waits for KV.

use std::sync::Arc;

use taskpipeline_contract::{CorrelationId, Event};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::buffer::Output;
use super::dead_letters::DeadLetters;
use crate::pipeline::dead_letters::Letter;
use crate::pipeline::fold::Version;
use crate::pipeline::message::Received;
use crate::telemetry::metrics::Metrics;

/// A valid event, its place in the order of all, and the message it came in.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) event: Event,
    pub(super) version: Version,
    pub(super) received: Received,
}

/// What is kept of an event until it has landed.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) correlation_id: CorrelationId,
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
                let correlation_id = event.correlation_id.as_str();
                info!(correlation_id, subject = %received.subject, "Received {}", received.subject);
                version = version.next();
                if accepted.send(Accepted { event, version, received }).await.is_err() {
                    break; // the projector is gone, which `pipeline::run` reports
                }
            }
            Err(error) => {
                metrics.events_invalid.inc();
                warn!(subject = %received.subject, "Refused a message on {}: {error}", received.subject);
                letters.send(Letter::undecodable(received, &error)).await;
            }
        }
    }
}
