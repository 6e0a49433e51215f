//! Decodes and validates what the source received, numbers it, and hands it on. What is no event becomes a
//! dead letter. Never waits for KV.

use std::sync::Arc;

use taskpipeline_contract::{CorrelationId, Event};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::dead_letters::{DeadLetters, Letter};
use super::fold::Version;
use super::source::{Received, Source};
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

/// Runs until the source is drained, which begins when `stop` turns true.
pub(super) async fn run(
    mut source: Source,
    mut stop: watch::Receiver<bool>,
    accepted: mpsc::Sender<Accepted>,
    letters: DeadLetters,
    metrics: Arc<Metrics>,
) {
    let mut version = Version::ZERO;
    let mut draining = false;
    loop {
        let received = tokio::select! {
            received = source.next() => received,
            () = stopped(&mut stop), if !draining => {
                draining = true;
                source.drain().await;
                continue;
            }
        };
        let Some(received) = received else { break };
        metrics.received(received.kind);
        match Event::decode(received.kind, &received.payload) {
            Ok(event) => {
                let correlation_id = event.correlation_id.as_str();
                info!(correlation_id, subject = %received.subject, "Received {}", received.subject);
                version = version.next();
                if accepted.send(Accepted { event, version, received }).await.is_err() {
                    break; // the projector is gone, which `run` reports
                }
            }
            Err(error) => {
                warn!(subject = %received.subject, "Refused a message on {}: {error}", received.subject);
                letters.send(Letter::undecodable(received, &error)).await;
            }
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which stops just as well.
    let _ = stop.wait_for(|stop| *stop).await;
}
