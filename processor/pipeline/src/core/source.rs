//! The source of events in mode `Core`: a NATS subscription in a queue group. At most once: the
//! server keeps no event that it has delivered.
//!
//! It is one subscription, to `{prefix}.*`, because the client gives each subscription its own
//! queue, and order between queues is lost. Messages on other subjects under the prefix are
//! ignored. Nothing is decoded here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use taskpipeline_contract::{EventKind, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use super::buffer::Input;
use crate::connection::connect;
use crate::error::RunError;
use crate::message::Received;
use crate::round_trip::round_trip;
use crate::settings::{EventSettings, NatsConnection};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// The subscription to the three subjects.
pub(super) struct Source {
    client: Client,
    kinds: Vec<(Arc<str>, EventKind)>,
    messages: Subscriber,
}

impl Source {
    /// Connects and subscribes. Waits indefinitely for a server that is unreachable.
    pub(super) async fn connect(
        connection: &NatsConnection,
        events: &EventSettings,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RunError> {
        let (connections, _) = watch::channel(0);
        let client = connect(connection, health, metrics, connections).await?;
        let failed = |reason: String| RunError::Nats { url: connection.to_string(), reason };
        let all = format!("{}.*", events.subject_prefix);
        let messages = client
            .queue_subscribe(all.clone(), events.queue_group.clone())
            .await
            .map_err(|error| failed(format!("cannot subscribe to {all}: {error}")))?;
        let kinds = EventKind::ALL.map(|kind| (kind.subject(&events.subject_prefix).into(), kind)).to_vec();
        Ok(Self { client, kinds, messages })
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Moves messages into the buffer until `stop` is true and the subscription is drained.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>, buffer: Input, metrics: Arc<Metrics>) {
        let mut drops = Drops::default();
        let mut draining = false;
        loop {
            let message = tokio::select! {
                message = self.messages.next() => message,
                () = stopped(&mut stop), if !draining => {
                    draining = true;
                    self.drain().await;
                    continue;
                }
            };
            let Some(message) = message else { break };
            // A message of somebody else under the same prefix.
            let Some((subject, kind)) = self.kinds.iter().find(|(subject, _)| **subject == *message.subject)
            else {
                continue;
            };
            metrics.received(*kind);
            let received = Received {
                kind: *kind,
                subject: Arc::clone(subject),
                headers: message.headers.map(Box::new),
                payload: message.payload,
                at: Timestamp::from(SystemTime::now()),
                taken: Instant::now(),
            };
            if buffer.put(received).is_err() {
                metrics.events_dropped.inc();
                drops.count(Instant::now());
            }
        }
        drops.report();
    }

    /// Ends the subscription. Its stream still yields the messages that were received before.
    async fn drain(&mut self) {
        // After the answer, everything that the server sent before is in local buffers. Without it
        // messages could be lost, because the client forgets a subscription soon after it has
        // unsubscribed.
        if round_trip(&self.client).await.is_err() {
            warn!("NATS does not answer; messages that it sent meanwhile are lost");
        }
        // Fails only if the connection is closed, and then no more messages come anyway.
        let _ = self.messages.drain().await;
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which also means stop.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Dropped events that are not logged yet. The first is logged at once, and then at most one line a
/// second.
#[derive(Debug, Default)]
struct Drops {
    unreported: u64,
    reported: Option<Instant>,
}

impl Drops {
    fn count(&mut self, now: Instant) {
        self.unreported += 1;
        if self.reported.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1)) {
            self.reported = Some(now);
            self.report();
        }
    }

    fn report(&mut self) {
        match std::mem::take(&mut self.unreported) {
            0 => {}
            count => warn!(
                count,
                "dropped events: KV accepts them more slowly than they arrive, and in mode Core NATS does not keep them"
            ),
        }
    }
}
