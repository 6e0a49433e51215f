//! A session with the stream: which life it is in, and the durable consumer of that life. Made at every
//! connect and reconnect, before anything is pulled.

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

/// The wait before the stream is looked at again where another replica has recorded what became of it.
const AGREE_AGAIN: Duration = Duration::from_millis(20);

/// A session with the stream: the life that it reads, and that life's consumer.
pub(crate) struct Session {
    pub(crate) jetstream: Context,
    pub(crate) consumer: PullConsumer,
    /// The same, by a connection of its own: what the client cannot read cuts that one.
    pub(crate) pulls: PullConsumer,
    pub(crate) streams: Arc<Streams>,
    /// Which life of the stream it is in.
    pub(crate) reading: Arc<Reading>,
    /// How long the stream keeps an event; nothing where it does for ever.
    pub(crate) max_age: Option<Duration>,
}

/// Begins sessions.
pub(crate) struct Sessions {
    pub(crate) jetstream: Context,
    /// By the connection by which events are pulled.
    pub(crate) pulls: Context,
    pub(crate) bucket: Bucket,
    pub(crate) names: Arc<Names>,
    pub(crate) settings: DurableSettings,
    pub(crate) rooms: Arc<Rooms>,
}

impl Sessions {
    /// Looks what has become of the stream, and joins the consumer of its present life.
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
    /// The subjects that the consumer lets through; all, where the stream has no others. The server finds the next
    /// message twice as fast then. Should others be added to the stream one day, they are passed over; but not where
    /// an ack removes a message.
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
        // What is wrong with one that cannot be looked up is said when it cannot be made either.
        if let Ok(consumer) = stream.get_consumer::<PullConfig>(&name).await {
            return match subscription::judge(&consumer_config(&consumer), &wanted, names) {
                Existing::Fits => Ok((consumer, false)),
                Existing::Change(changed) => {
                    let changed = stream.update_consumer(*changed).await;
                    changed.map(|consumer| (consumer, false)).map_err(|error| {
                        SessionError::Nats(format!("the consumer {name} cannot be changed: {error}"))
                    })
                }
                Existing::Unfit(why) => Err(StreamsError::Unfit(format!(
                    "the consumer {name} of the stream {} is there and cannot be used: {why}. Set another QUEUE_GROUP, or, \
                     if nobody needs it, delete it",
                    names.stream
                ))
                .into()),
            };
        }
        let consumer = limits::create_consumer(stream, wanted)
            .await
            .map_err(|error| SessionError::Nats(format!("the consumer {name} cannot be made: {error}")))?;
        Ok((consumer, true))
    }

    async fn consumers(&self) -> Result<Vec<String>, SessionError> {
        use futures_util::TryStreamExt;

        let names = self.stream.consumer_names().try_collect().await;
        names.map_err(|error| SessionError::Nats(format!("the consumers cannot be listed: {error}")))
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
