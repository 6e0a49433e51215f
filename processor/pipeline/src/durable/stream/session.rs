//! A session with the stream: which life it is in, and the durable consumer of that life. Made at every
//! connect and reconnect, before anything is pulled.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::pull::Config as PullConfig;
use async_nats::jetstream::consumer::{Consumer, PullConsumer};
use async_nats::jetstream::stream::{RetentionPolicy, Stream};
use tracing::{info, warn};

use crate::durable::bucket::lanes::Write;
use crate::durable::bucket::raw::{self, RawError};
use crate::durable::bucket::{Bucket, ReadError, Revision, Stored, WriteError};
use crate::durable::clock::nanos;
use crate::durable::limits;
use crate::durable::names::Names;
use crate::durable::stream::gaps::Gaps;
use crate::durable::stream::incarnation::{HighWater, Judgement, Life, Present, Source};
use crate::durable::stream::room::Rooms;
use crate::durable::stream::streams::{self, Streams, StreamsError};
use crate::durable::stream::subscription::{self, Existing};
use crate::settings::DurableSettings;

/// The wait before the stream is looked at again where another replica has recorded what became of it.
const AGREE_AGAIN: Duration = Duration::from_millis(20);

/// How many replicas' high waters are kept before those that are recorded are cleared away.
const MOST_MARKS: usize = 32;

/// Why there is no session; nothing is lost, and it may be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Streams(#[from] StreamsError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Raw(#[from] RawError),
    #[error("{0}")]
    Nats(String),
}

/// See the module's head.
pub(crate) struct Session {
    pub(crate) jetstream: Context,
    pub(crate) consumer: PullConsumer,
    /// The same, by a connection of its own: what the client cannot read cuts that one.
    pub(crate) pulls: PullConsumer,
    pub(crate) streams: Arc<Streams>,
    pub(crate) source: Source,
    /// How long the stream keeps an event; nothing where it does for ever.
    pub(crate) max_age: Option<Duration>,
    /// Where the consumer lets all subjects through, so that a gap is a loss.
    pub(crate) gaps: Option<Mutex<Gaps>>,
}

impl Session {
    /// Takes in a first delivery. Answers how many messages the stream has dropped beside it, as far as this replica
    /// can see.
    pub(crate) fn lost_beside(&self, delivery: u64, sequence: u64) -> u64 {
        let Some(gaps) = &self.gaps else { return 0 };
        gaps.lock().unwrap_or_else(PoisonError::into_inner).delivered(delivery, sequence)
    }
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
        loop {
            let streams = Arc::new(streams::ensure(&self.jetstream, &self.names, &self.settings).await?);
            self.rooms.set_limits(&streams).await;
            let stream = &streams.events;
            let Some(source) = self.agree(stream).await? else {
                // Another replica writes it at this moment.
                tokio::time::sleep(AGREE_AGAIN).await;
                continue;
            };
            let consumer = self.consumer(stream, &source).await?;
            // Was the stream made anew meanwhile, the consumer is a stranger's.
            if present(stream).await?.created != source.created {
                continue;
            }
            let age = stream.cached_info().config.max_age;
            let max_age = (!age.is_zero()).then_some(age);
            let delivered = consumer.cached_info().delivered;
            let is_filtered = is_filtered(&consumer);
            let gaps = (!is_filtered)
                .then(|| Mutex::new(Gaps::after(delivered.consumer_sequence, delivered.stream_sequence)));
            let info = consumer.cached_info().clone();
            let pulls = Consumer::new(consumer_config(&consumer), info, self.pulls.clone());
            let jetstream = self.jetstream.clone();
            return Ok(Session { jetstream, consumer, pulls, streams, source, max_age, gaps });
        }
    }

    /// Brings what is recorded of the stream up to date; nothing where another replica did so meanwhile.
    async fn agree(&self, stream: &Stream) -> Result<Option<Source>, SessionError> {
        let stored = self.bucket.get(&self.names.source()).await?;
        // As the leader has them: a mark that another replica of the stream lacks might be the one that shows what was lost.
        let marks = self.bucket.all(&self.names.high_waters()).await?;
        // Last of all: a stream that grows meanwhile must not look as if it ended before a mark.
        let now = present(stream).await?;
        let revision = stored.as_ref().map_or_else(Revision::default, |stored| stored.revision);
        let recorded: Option<Source> = stored.as_ref().and_then(|stored| parse(&stored.value));
        // One that cannot be read, or is empty because it is about to go, says nothing.
        let marks_of: Vec<HighWater> = marks.iter().filter_map(|mark| parse(&mark.value)).collect();
        let Some(mut source) = recorded.clone() else {
            // What an earlier ledger's consumers have acknowledged, a new one has never seen. And of what is known to one
            // whose record of the stream was deleted or spoilt, it is not known in which life it was.
            let known = self.forget_consumers(stream).await?;
            let known = marks_of.iter().map(|mark| mark.incarnation).fold(known, u32::max);
            let incarnation = if stored.is_some() { known.saturating_add(1) } else { 1 };
            let prefix = Some(self.names.prefix.clone());
            return self.record(Source { prefix, ..Source::begun(now.created, incarnation) }, revision).await;
        };
        source.claim(&self.names.prefix).map_err(|other| {
            StreamsError::Unfit(format!(
                "the queue group {} reads {other}.* of the stream {}, not {}.*, and its ledger holds those tasks: set \
                 another QUEUE_GROUP",
                self.names.queue_group, self.names.stream, self.names.prefix
            ))
        })?;
        for mark in marks_of {
            source.raise(mark);
        }
        let time_at_high = match source.high {
            Some(high) if (now.first..=now.last).contains(&high.sequence) => {
                raw::at(&self.jetstream, &self.names.stream, high.sequence).await?.map(|message| message.time)
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
            Judgement::TailLost { after, new_from } => {
                let from =
                    first_after(&self.jetstream, &self.names.stream, now.first..new_from, after).await?;
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
            Err(error) if error.is_contended() => Ok(None),
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
        let wanted = subscription::wanted(&self.names, life, self.filter(stream), self.settings.ack_wait);
        // What is wrong with one that cannot be looked up is said when it cannot be made either.
        if let Ok(consumer) = stream.get_consumer::<PullConfig>(&name).await {
            return match subscription::judge(&consumer_config(&consumer), &wanted, &self.names) {
                Existing::Fits => Ok(consumer),
                Existing::Change(changed) => {
                    let changed = stream.update_consumer(*changed).await;
                    changed.map_err(|error| {
                        SessionError::Nats(format!("the consumer {name} cannot be changed: {error}"))
                    })
                }
                Existing::Unfit(why) => Err(StreamsError::Unfit(format!(
                    "the consumer {name} of the stream {} is there and cannot be used: {why}. Set another QUEUE_GROUP, or, \
                     if nobody needs it, delete it",
                    self.names.stream
                ))
                .into()),
            };
        }
        let consumer = limits::create_consumer(stream, wanted)
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

    /// Deletes the consumers of all lives of the stream. Answers the latest of these.
    async fn forget_consumers(&self, stream: &Stream) -> Result<u32, SessionError> {
        use futures_util::TryStreamExt;

        let names: Vec<String> = stream
            .consumer_names()
            .try_collect()
            .await
            .map_err(|error| SessionError::Nats(format!("the consumers cannot be listed: {error}")))?;
        let mut latest = 0;
        for name in names {
            let incarnation =
                name.strip_prefix(self.names.queue_group.as_str()).and_then(|it| it.strip_prefix('-'));
            if let Some(incarnation) = incarnation.and_then(|it| it.parse::<u32>().ok()) {
                warn!(
                    "the ledger knows nothing of the stream: the consumer {name} of an earlier ledger, or of before its \
                     record was deleted, is deleted, and the stream read again"
                );
                latest = latest.max(incarnation);
                let _ = stream.delete_consumer(&name).await;
            }
        }
        Ok(latest)
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

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let parsed = serde_json::from_slice(bytes);
    if let Err(error) = &parsed
        && !bytes.is_empty()
    {
        warn!("a record of the stream in the ledger's bucket cannot be read, and is replaced: {error}");
    }
    parsed.ok()
}

async fn present(stream: &Stream) -> Result<Present, SessionError> {
    let info = stream.get_info().await.map_err(|error| SessionError::Nats(error.to_string()))?;
    Ok(Present {
        created: nanos(info.created),
        first: info.state.first_sequence,
        last: info.state.last_sequence,
    })
}

/// The first of these sequences whose message was taken in after this moment; their end, if none was.
async fn first_after(
    jetstream: &Context,
    stream: &str,
    among: Range<u64>,
    after: i64,
) -> Result<u64, RawError> {
    let (mut from, mut to) = (among.start, among.end);
    while from < to {
        let middle = from + (to - from) / 2;
        match raw::next(jetstream, stream, middle).await? {
            Some(message) if message.time <= after => from = message.sequence + 1,
            _ => to = middle,
        }
    }
    Ok(from)
}
