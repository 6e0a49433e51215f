//! A session with the stream: its incarnation, and the durable consumer of that incarnation.
//!
//! A session begins after each connect and reconnect, before any pull.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::pull::Config as PullConfig;
use async_nats::jetstream::consumer::{Consumer, PullConsumer};
use async_nats::jetstream::stream::{RetentionPolicy, Stream};

use crate::durable::bucket::Bucket;
use crate::durable::bucket::raw;
use crate::durable::clock::nanos;
use crate::durable::limits;
use crate::durable::names::Names;
use crate::durable::stream::agreement::{Agreement, EventStream, Reading};
use crate::durable::stream::error::SessionError;
use crate::durable::stream::gaps::Gaps;
use crate::durable::stream::incarnation::{Life, Present};
use crate::durable::stream::room::Rooms;
use crate::durable::stream::streams::{self, Streams, StreamsError};
use crate::durable::stream::subscription::{self, Existing};
use crate::settings::DurableSettings;

/// The wait before the next attempt to agree, after another replica has recorded the state of the
/// stream.
const AGREE_AGAIN: Duration = Duration::from_millis(20);

/// A session with the stream.
pub(crate) struct Session {
    pub(crate) jetstream: Context,
    pub(crate) consumer: PullConsumer,
    /// The same consumer on a second connection: messages that the client cannot read cut only that
    /// connection.
    pub(crate) pulls: PullConsumer,
    pub(crate) streams: Arc<Streams>,
    /// The incarnation of the stream, and its gaps.
    pub(crate) reading: Arc<Reading>,
    /// How long the stream keeps an event; `None` if indefinitely.
    pub(crate) max_age: Option<Duration>,
}

/// Starts sessions.
pub(crate) struct Sessions {
    pub(crate) jetstream: Context,
    /// On the connection for pulls.
    pub(crate) pulls: Context,
    pub(crate) bucket: Bucket,
    pub(crate) names: Arc<Names>,
    pub(crate) settings: DurableSettings,
    pub(crate) rooms: Arc<Rooms>,
}

impl Sessions {
    /// Agrees on the incarnation of the stream, and joins its consumer.
    pub(crate) async fn begin(&self) -> Result<Session, SessionError> {
        let agreement = Agreement { bucket: self.bucket.clone(), names: Arc::clone(&self.names) };
        loop {
            let streams = Arc::new(streams::ensure(&self.jetstream, &self.names, &self.settings).await?);
            self.rooms.set_limits(&streams).await;
            let stream = &streams.events;
            let events = Events {
                jetstream: &self.jetstream,
                names: &self.names,
                ack_wait: self.settings.ack_wait,
                stream,
            };
            let Some((source, consumer)) = agreement.join(&events).await? else {
                tokio::time::sleep(AGREE_AGAIN).await;
                continue;
            };
            let age = stream.cached_info().config.max_age;
            let max_age = (!age.is_zero()).then_some(age);
            let delivered = consumer.cached_info().delivered;
            let is_filtered = is_filtered(&consumer);
            let gaps = (!is_filtered)
                .then(|| Mutex::new(Gaps::after(delivered.consumer_sequence, delivered.stream_sequence)));
            let info = consumer.cached_info().clone();
            let pulls = Consumer::new(consumer_config(&consumer), info, self.pulls.clone());
            let jetstream = self.jetstream.clone();
            let reading = Arc::new(Reading { source, gaps });
            return Ok(Session { jetstream, consumer, pulls, streams, reading, max_age });
        }
    }
}

/// The stream of the events in NATS.
pub(crate) struct Events<'a> {
    pub(crate) jetstream: &'a Context,
    pub(crate) names: &'a Names,
    pub(crate) ack_wait: Duration,
    pub(crate) stream: &'a Stream,
}

impl Events<'_> {
    /// The subjects that the consumer delivers; empty if the stream has no other subjects.
    ///
    /// Without a filter, the server finds the next message twice as fast. If other subjects are
    /// added later, the pipeline ignores their messages. If acks remove messages from the stream,
    /// the consumer always has the filter.
    fn filter(&self) -> Vec<String> {
        let ours: Vec<_> = self.names.subjects.iter().map(|(subject, _)| subject.clone()).collect();
        let config = &self.stream.cached_info().config;
        let all_ours = config.subjects.iter().all(|subject| ours.contains(subject));
        let nothing_else = all_ours && config.sources.is_none() && config.mirror.is_none();
        let acks_keep = config.retention == RetentionPolicy::Limits;
        if nothing_else && acks_keep { Vec::new() } else { ours }
    }
}

impl EventStream for Events<'_> {
    type Consumer = PullConsumer;

    async fn present(&self) -> Result<Present, SessionError> {
        let info = self.stream.get_info().await.map_err(|error| SessionError::Nats(error.to_string()))?;
        Ok(Present {
            created: nanos(info.created),
            first: info.state.first_sequence,
            last: info.state.last_sequence,
        })
    }

    async fn time_at(&self, sequence: u64) -> Result<Option<i64>, SessionError> {
        let found = raw::at(self.jetstream, &self.names.stream, sequence).await?;
        Ok(found.map(|message| message.time))
    }

    async fn next(&self, sequence: u64) -> Result<Option<(u64, i64)>, SessionError> {
        let found = raw::next(self.jetstream, &self.names.stream, sequence).await?;
        Ok(found.map(|message| (message.sequence, message.time)))
    }

    async fn ack_floor(&self, consumer: &str) -> Option<u64> {
        Some(self.stream.consumer_info(consumer).await.ok()?.ack_floor.stream_sequence)
    }

    async fn consumer(&self, life: Life) -> Result<(PullConsumer, bool), SessionError> {
        let Self { names, stream, .. } = self;
        let name = names.consumer(life.incarnation);
        let wanted = subscription::wanted(names, life, self.filter(), self.ack_wait);
        // If a consumer cannot be looked up, the attempt to create it returns the reason.
        if let Ok(consumer) = stream.get_consumer::<PullConfig>(&name).await {
            return match subscription::judge(&consumer_config(&consumer), &wanted, names) {
                Existing::Fits => Ok((consumer, false)),
                Existing::Change(changed) => {
                    let changed = stream.update_consumer(*changed).await;
                    changed.map(|consumer| (consumer, false)).map_err(|error| {
                        SessionError::Nats(format!("cannot change the consumer {name}: {error}"))
                    })
                }
                Existing::Unfit(why) => Err(StreamsError::Unfit(format!(
                    "the existing consumer {name} of the stream {} cannot be used: {why}. Set another QUEUE_GROUP, or delete the \
                     consumer if nobody needs it",
                    names.stream
                ))
                .into()),
            };
        }
        let consumer = limits::create_consumer(stream, wanted)
            .await
            .map_err(|error| SessionError::Nats(format!("cannot create the consumer {name}: {error}")))?;
        Ok((consumer, true))
    }

    async fn consumers(&self) -> Result<Vec<String>, SessionError> {
        use futures_util::TryStreamExt;

        let names = self.stream.consumer_names().try_collect().await;
        names.map_err(|error| SessionError::Nats(format!("cannot list the consumers: {error}")))
    }

    async fn delete_consumer(&self, name: &str) {
        let _ = self.stream.delete_consumer(name).await;
    }
}

fn is_filtered(consumer: &PullConsumer) -> bool {
    let config = &consumer.cached_info().config;
    !config.filter_subject.is_empty() || !config.filter_subjects.is_empty()
}

fn consumer_config(consumer: &Consumer<PullConfig>) -> PullConfig {
    use async_nats::jetstream::consumer::FromConsumer;

    PullConfig::try_from_consumer_config(consumer.cached_info().config.clone()).unwrap_or_default()
}
