//! A real NATS that runs the script.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::PullConsumer;
use futures_util::StreamExt;
use prometheus::IntCounter;

use super::Delivered;
use super::asked::Asked;
use crate::durable::bucket::Bucket;
use crate::durable::dead_letters::DeadLetters;
use crate::durable::names::Names;
use crate::durable::stream::session::Events;
use crate::durable::stream::streams::{self, Streams};
use crate::settings::DurableSettings;
use crate::telemetry::metrics::Metrics;

/// The time limit for changes that a real server does by itself.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A real NATS, of one server or three.
pub(super) struct Real {
    pub(super) asked: Asked<Bucket, DeadLetters>,
    pub(super) jetstream: jetstream::Context,
    pub(super) settings: DurableSettings,
    pub(super) streams: Streams,
    /// The messages that were delivered and not acked, by consumer and sequence.
    pub(super) open: BTreeMap<(u32, u64), jetstream::Message>,
    pub(super) is_cluster: bool,
    /// How often a replica of the stream was behind.
    pub(super) late: usize,
}

impl Real {
    pub(super) async fn new(client: &async_nats::Client, names: &Arc<Names>, replicas: usize) -> Self {
        let jetstream = crate::durable::jetstream::context(client);
        // The server delivers no message again by itself.
        let ack_wait = Duration::from_hours(1);
        let settings = DurableSettings { replicas, ack_wait, ..DurableSettings::default() };
        let streams = streams::ensure(&jetstream, names, &settings).await.unwrap();
        let forged = IntCounter::new("forged", "forged").unwrap();
        let bucket = Bucket::new(jetstream.clone(), &names.ledger_stream, forged);
        let metrics = Arc::new(Metrics::new().unwrap());
        let letters = DeadLetters::new(jetstream.clone(), Arc::clone(names), metrics);
        let (open, is_cluster) = (BTreeMap::new(), replicas > 1);
        let asked = Asked::new(bucket, letters, names);
        Self { asked, jetstream, settings, streams, open, is_cluster, late: 0 }
    }

    pub(super) fn events(&self) -> Events<'_> {
        Events {
            jetstream: &self.jetstream,
            names: &self.asked.names,
            ack_wait: self.settings.ack_wait,
            stream: &self.streams.events,
        }
    }

    async fn consumer(&self, incarnation: u32) -> PullConsumer {
        let name = self.asked.names.consumer(incarnation);
        self.streams.events.get_consumer(&name).await.unwrap()
    }

    /// Waits for the expected number of messages, and for a further one only for a moment.
    pub(super) async fn pull(
        &mut self,
        incarnation: u32,
        most: usize,
        expected: usize,
    ) -> (Delivered, Vec<u64>) {
        let consumer = self.consumer(incarnation).await;
        let (mut found, mut numbers) = (Delivered::new(), Vec::new());
        let more = most.saturating_sub(expected).min(1);
        for (count, patience) in [(expected, PATIENCE), (more, Duration::from_millis(100))] {
            if count == 0 {
                continue;
            }
            let mut batch = consumer.fetch().max_messages(count).expires(patience).messages().await.unwrap();
            while let Some(message) = batch.next().await {
                let message = message.unwrap();
                let info = message.info().unwrap();
                let (sequence, deliveries) = (info.stream_sequence, info.delivered);
                numbers.push(info.consumer_sequence);
                found.insert(sequence, deliveries);
                self.open.insert((incarnation, sequence), message);
            }
        }
        (found, numbers)
    }

    /// Limits the number of stored messages to the current one, or ends the limit.
    pub(super) async fn limit(&self, to_what_it_holds: bool) {
        let stream = self.jetstream.get_stream(&self.asked.names.ledger_stream).await.unwrap();
        let info = stream.cached_info();
        let most = if to_what_it_holds { i64::try_from(info.state.messages).unwrap() } else { -1 };
        let config = jetstream::stream::Config { max_messages: most, ..info.config.clone() };
        self.jetstream.update_stream(config).await.unwrap();
    }
}
