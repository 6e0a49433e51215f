//! Where events come from, in mode `Core`: a NATS subscription in a queue group. At most once: what the server has handed
//! over is gone from it.
//!
//! It is one subscription, to `{prefix}.*`, since the order among several is not kept: the client gives each a queue of its
//! own. What comes on other subjects under the prefix is ignored. Nothing is decoded here.

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
    /// Connects and subscribes; waits for a server that is away, for ever.
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

    /// Moves messages into the buffer until `stop` turns true and the subscription is drained.
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
            // Somebody else's, under our prefix.
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

    /// Ends the subscription. Its stream then yields the messages that were received already.
    async fn drain(&mut self) {
        // What the server sent before it answers this is in our buffers by then: the client forgets a
        // subscription soon after it has told the server so.
        if round_trip(&self.client).await.is_err() {
            warn!("NATS does not answer; messages that it sent meanwhile are lost");
        }
        // Fails only where the connection is closed, and then nothing more comes anyway.
        let _ = self.messages.drain().await;
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which stops just as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Dropped events that were not reported yet: reported at once, and then once a second at the most.
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
