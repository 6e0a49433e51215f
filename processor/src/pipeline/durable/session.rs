//! A session with the stream: which life it is in, and the durable consumer of that life. Made at every
//! connect and reconnect, before anything is pulled.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::pull::Config as PullConfig;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy, PullConsumer};
use async_nats::jetstream::stream::{RawMessageErrorKind, RetentionPolicy, Stream};
use tracing::{info, warn};

use super::bucket::{Bucket, ReadError, Revision, Stored, WriteError};
use super::incarnation::{HighWater, Judgement, Life, Present, Source};
use super::lanes::Write;
use super::limits;
use super::names::Names;
use super::streams::{self, StreamsError};
use crate::config::DurableSettings;

/// How many events may be with replicas that they have not acknowledged. It bounds what is delivered again when
/// all of them die.
const MOST_UNACKNOWLEDGED: i64 = 20_000;

/// How many replicas' high waters are kept before those that are recorded are cleared away.
const MOST_MARKS: usize = 32;

/// Why there is no session; nothing is lost, and it may be tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Streams(#[from] StreamsError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{0}")]
    Nats(String),
}

/// See the module's head.
pub(super) struct Session {
    pub(super) consumer: PullConsumer,
    pub(super) stream: Stream,
    pub(super) source: Source,
    /// How long the stream keeps an event; nothing where it does for ever.
    pub(super) max_age: Option<Duration>,
}

/// Begins sessions.
pub(super) struct Sessions {
    pub(super) jetstream: Context,
    pub(super) bucket: Bucket,
    pub(super) names: Arc<Names>,
    pub(super) settings: DurableSettings,
}

impl Sessions {
    /// Looks what has become of the stream, and joins the consumer of its present life.
    pub(super) async fn begin(&self) -> Result<Session, SessionError> {
        loop {
            let stream = streams::ensure(&self.jetstream, &self.names, &self.settings).await?;
            let Some(source) = self.agree(&stream).await? else { continue };
            let consumer = self.consumer(&stream, &source).await?;
            // Was the stream made anew meanwhile, the consumer is a stranger's.
            if present(&stream).await?.created != source.created {
                continue;
            }
            let age = stream.cached_info().config.max_age;
            let max_age = (!age.is_zero()).then_some(age);
            return Ok(Session { consumer, stream, source, max_age });
        }
    }

    /// Brings what is recorded of the stream up to date; nothing where another replica did so meanwhile.
    async fn agree(&self, stream: &Stream) -> Result<Option<Source>, SessionError> {
        let stored = self.bucket.get(&self.names.source()).await?;
        let marks = self.bucket.get_many(&[self.names.high_waters()]).await?;
        // Last of all: a stream that grows meanwhile must not look as if it ended before a mark.
        let now = present(stream).await?;
        let (recorded, revision) = match &stored {
            Some(stored) => (Some(parse::<Source>(&stored.value)?), stored.revision),
            None => (None, Revision::default()),
        };
        let Some(mut source) = recorded.clone() else {
            // The ledger is new. What its predecessor's consumers have acknowledged, it has never seen.
            self.forget_consumers(stream).await?;
            return self.record(Source::first(now.created), revision).await;
        };
        // An empty one is about to go.
        for mark in marks.iter().filter(|mark| !mark.value.is_empty()) {
            source.raise(parse(&mark.value)?);
        }
        let time_at_high = match source.high {
            Some(high) if (now.first..=now.last).contains(&high.sequence) => {
                time_at(stream, high.sequence).await?
            }
            _ => None,
        };
        match source.judge(now, time_at_high) {
            Judgement::Same => {}
            Judgement::Recreated => {
                source.recreated(now.created);
                let incarnation = source.current().incarnation;
                warn!("the stream {} was made anew: incarnation {incarnation}", self.names.stream);
            }
            Judgement::TailLost { after } => {
                let from = first_after(stream, now, after).await?;
                let read_from = self.unread_by(stream, source.current()).await?;
                source.thrown_back(from, read_from);
                warn!(
                    "the stream {} has lost its newest messages (a power failure, or an older copy restored?): \
                     from {from} on it is incarnation {}",
                    self.names.stream,
                    source.current().incarnation
                );
            }
        }
        if recorded.as_ref() == Some(&source) {
            return Ok(Some(source));
        }
        let agreed = self.record(source, revision).await?;
        if agreed.is_some() && marks.len() > MOST_MARKS {
            self.forget_marks(marks).await;
        }
        Ok(agreed)
    }

    /// What the replicas' marks say is recorded now. A replica that lives on makes its mark again.
    async fn forget_marks(&self, marks: Vec<Stored>) {
        let Ok(mut writes) = self.bucket.writes().await else { return };
        for mark in marks {
            // It fails where the replica has just made another, and that is right; nobody waits for the answer.
            let gone = Write {
                subject: mark.subject,
                value: Vec::new(),
                expected: Some(mark.revision),
                time_to_live: Some(Duration::from_secs(1)),
            };
            let _ = writes.send(gone).await;
        }
    }

    async fn record(&self, source: Source, expected: Revision) -> Result<Option<Source>, SessionError> {
        let value = serde_json::to_vec(&source).map_err(|error| SessionError::Nats(error.to_string()))?;
        match self.bucket.compare_and_set(self.names.source(), value, expected, None).await {
            Ok(_) => Ok(Some(source)),
            Err(WriteError::Conflict) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The first sequence that this life's consumer is not known to have acknowledged.
    async fn unread_by(&self, stream: &Stream, life: Life) -> Result<u64, SessionError> {
        match stream.consumer_info(self.names.consumer(life.incarnation)).await {
            Ok(info) => Ok(info.ack_floor.stream_sequence + 1),
            // Gone with the tail: everything is read again, which does no harm.
            Err(_) => Ok(0),
        }
    }

    async fn consumer(&self, stream: &Stream, source: &Source) -> Result<PullConsumer, SessionError> {
        let life = source.current();
        let name = self.names.consumer(life.incarnation);
        let ack_wait = self.settings.ack_wait;
        match stream.get_consumer::<PullConfig>(&name).await {
            Ok(consumer) if consumer.cached_info().config.ack_wait == ack_wait => return Ok(consumer),
            Ok(consumer) => {
                let changed = PullConfig { ack_wait, ..consumer_config(&consumer) };
                return stream.update_consumer(changed).await.map_err(|error| {
                    SessionError::Nats(format!("the consumer {name} cannot be changed: {error}"))
                });
            }
            // What is wrong with it will be said when it cannot be made either.
            Err(_) => {}
        }
        let config = PullConfig {
            durable_name: Some(name.clone()),
            description: Some("The replicas of a task pipeline".to_owned()),
            deliver_policy: match life.read_from {
                0 | 1 => DeliverPolicy::All,
                start_sequence => DeliverPolicy::ByStartSequence { start_sequence },
            },
            ack_policy: AckPolicy::Explicit,
            ack_wait,
            // Never given up: what cannot be decoded becomes a dead letter by our own hand.
            max_deliver: -1,
            max_ack_pending: MOST_UNACKNOWLEDGED,
            filter_subjects: self.filter(stream),
            ..PullConfig::default()
        };
        let consumer = limits::create_consumer(stream, config)
            .await
            .map_err(|error| SessionError::Nats(format!("the consumer {name} cannot be made: {error}")))?;
        info!("made the consumer {name}");
        for older in source.lives.iter().rev().skip(1) {
            // Nobody reads by it any more; that it is gone already is as good.
            let _ = stream.delete_consumer(&self.names.consumer(older.incarnation)).await;
        }
        Ok(consumer)
    }

    /// The subjects that the consumer lets through; all, where the stream has no others. The server finds the next
    /// message twice as fast then. Should others be added to the stream one day, they are passed over; but not where
    /// an ack removes a message.
    fn filter(&self, stream: &Stream) -> Vec<String> {
        let ours: Vec<_> = self.names.subjects.iter().map(|(subject, _)| subject.clone()).collect();
        let config = &stream.cached_info().config;
        let all_ours = config.subjects.iter().all(|subject| ours.contains(subject));
        let nothing_else = all_ours && config.sources.is_none() && config.mirror.is_none();
        let acks_keep = config.retention == RetentionPolicy::Limits;
        if nothing_else && acks_keep { Vec::new() } else { ours }
    }

    async fn forget_consumers(&self, stream: &Stream) -> Result<(), SessionError> {
        use futures_util::TryStreamExt;

        let names: Vec<String> = stream
            .consumer_names()
            .try_collect()
            .await
            .map_err(|error| SessionError::Nats(format!("the consumers cannot be listed: {error}")))?;
        for name in names {
            let incarnation =
                name.strip_prefix(self.names.queue_group.as_str()).and_then(|it| it.strip_prefix('-'));
            if incarnation.is_some_and(|it| it.parse::<u32>().is_ok()) {
                warn!(
                    "the ledger is new: the consumer {name} of an earlier one is deleted, and the stream read anew"
                );
                let _ = stream.delete_consumer(&name).await;
            }
        }
        Ok(())
    }
}

/// Says how far a replica is about to write to the ledger, before it does.
pub(super) async fn mark_high_water(
    bucket: &Bucket,
    names: &Names,
    replica: &str,
    high: HighWater,
) -> Result<(), WriteError> {
    let value = serde_json::to_vec(&high).map_err(|error| WriteError::Unknown(error.to_string()))?;
    bucket.set(names.high_water(replica), value).await.map(|_| ())
}

fn consumer_config(consumer: &Consumer<PullConfig>) -> PullConfig {
    use async_nats::jetstream::consumer::FromConsumer;

    PullConfig::try_from_consumer_config(consumer.cached_info().config.clone()).unwrap_or_default()
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, SessionError> {
    serde_json::from_slice(bytes).map_err(|error| {
        SessionError::Nats(format!("a record in the ledger's bucket cannot be read: {error}"))
    })
}

async fn present(stream: &Stream) -> Result<Present, SessionError> {
    let info = stream.get_info().await.map_err(|error| SessionError::Nats(error.to_string()))?;
    Ok(Present {
        created: nanos(info.created),
        first: info.state.first_sequence,
        last: info.state.last_sequence,
    })
}

/// The moments NATS tells of fit an `i64` until the year 2262.
pub(super) fn nanos(time: time::OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

async fn time_at(stream: &Stream, sequence: u64) -> Result<Option<i64>, SessionError> {
    match stream.get_raw_message(sequence).await {
        Ok(message) => Ok(Some(nanos(message.time))),
        Err(error) => match error.kind() {
            RawMessageErrorKind::NoMessageFound => Ok(None),
            _ => Err(SessionError::Nats(format!("message {sequence} cannot be read: {error}"))),
        },
    }
}

/// The first sequence whose message was taken in after this moment.
async fn first_after(stream: &Stream, now: Present, after: i64) -> Result<u64, SessionError> {
    let (mut from, mut to) = (now.first, now.last + 1);
    while from < to {
        let middle = from + (to - from) / 2;
        match next_from(stream, middle).await? {
            Some((sequence, time)) if time <= after => from = sequence + 1,
            _ => to = middle,
        }
    }
    Ok(from)
}

/// The first message with at least this sequence.
pub(super) async fn next_from(stream: &Stream, sequence: u64) -> Result<Option<(u64, i64)>, SessionError> {
    match stream.raw_message_builder().sequence(sequence).next_by_subject(">").send().await {
        Ok(message) => Ok(Some((message.sequence, nanos(message.time)))),
        Err(error) => match error.kind() {
            RawMessageErrorKind::NoMessageFound => Ok(None),
            _ => Err(SessionError::Nats(format!("messages from {sequence} on cannot be read: {error}"))),
        },
    }
}
