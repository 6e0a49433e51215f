//! Replicas agree on which life the stream is in, and join the consumer of that life. What they agreed on is recorded in the
//! ledger's bucket, by compare-and-set.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use crate::durable::bucket::lanes::Write;
use crate::durable::bucket::{Revision, Stored};
use crate::durable::control::register::Register;
use crate::durable::ledger::store::Store;
use crate::durable::names::Names;
use crate::durable::stream::error::SessionError;
use crate::durable::stream::gaps::Gaps;
use crate::durable::stream::incarnation::{HighWater, Judgement, Life, Present, Source};
use crate::durable::stream::streams::StreamsError;

/// How many replicas' high waters are kept before those that are recorded are cleared away.
const MOST_MARKS: usize = 32;

/// The stream of the events: that in NATS, or that of a simulation.
pub(crate) trait EventStream: Sync {
    /// The durable consumer of one of its lives.
    type Consumer: Send;

    /// The stream as it is now.
    fn present(&self) -> impl Future<Output = Result<Present, SessionError>> + Send;

    /// When the message with this sequence was taken in; nothing, if it is not there.
    fn time_at(&self, sequence: u64) -> impl Future<Output = Result<Option<i64>, SessionError>> + Send;

    /// The first message with at least this sequence: its sequence, and when it was taken in.
    fn next(&self, sequence: u64) -> impl Future<Output = Result<Option<(u64, i64)>, SessionError>> + Send;

    /// Up to where all was acknowledged to a consumer; nothing, if it is not there.
    fn ack_floor(&self, consumer: &str) -> impl Future<Output = Option<u64>> + Send;

    /// The consumer of this life, and whether it was made for it just now.
    fn consumer(
        &self,
        life: Life,
    ) -> impl Future<Output = Result<(Self::Consumer, bool), SessionError>> + Send;

    /// The names of all its consumers.
    fn consumers(&self) -> impl Future<Output = Result<Vec<String>, SessionError>> + Send;

    /// Deletes a consumer; that it is gone already is as good.
    fn delete_consumer(&self, name: &str) -> impl Future<Output = ()> + Send;
}

/// The life of the stream that a session reads, and the gaps in it.
pub(crate) struct Reading {
    pub(crate) source: Source,
    /// Where the consumer lets all subjects through, so that a gap is a loss.
    pub(crate) gaps: Option<Mutex<Gaps>>,
}

impl Reading {
    /// Takes in a first delivery. Answers how many messages the stream has dropped beside it, as far as this replica
    /// can see.
    pub(crate) fn lost_beside(&self, delivery: u64, sequence: u64) -> u64 {
        let Some(gaps) = &self.gaps else { return 0 };
        gaps.lock().unwrap_or_else(PoisonError::into_inner).delivered(delivery, sequence)
    }
}

/// Agrees with the other replicas on the stream's life, and joins its consumer.
pub(crate) struct Agreement<S> {
    pub(crate) bucket: S,
    pub(crate) names: Arc<Names>,
}

impl<S: Register + Store> Agreement<S> {
    /// Looks what has become of the stream, and joins the consumer of its present life. Nothing, where another replica records
    /// it at this moment, or the stream was recreated meanwhile: to be tried again.
    ///
    /// # Errors
    /// Where NATS does not answer, or the stream or the consumer cannot be used.
    pub(crate) async fn join<E: EventStream>(
        &self,
        events: &E,
    ) -> Result<Option<(Source, E::Consumer)>, SessionError> {
        let Some(source) = self.agree(events).await? else { return Ok(None) };
        let incarnation = source.current().incarnation;
        let (consumer, made) = events.consumer(source.current()).await?;
        if made {
            info!(consumer = self.names.consumer(incarnation), "created the consumer");
        }
        if events.present().await?.created == source.created {
            self.delete_former_consumers(events, incarnation).await;
            return Ok(Some((source, consumer)));
        }
        // The stream was recreated meanwhile. Replicas that have not noticed would read the new stream by the former life's
        // consumer.
        if made {
            events.delete_consumer(&self.names.consumer(incarnation)).await;
        }
        Ok(None)
    }

    /// Deletes the consumers of the lives before this one. Nobody reads by them any more, and one that is left, or was made
    /// again by a replica that did not know better, looks like events that wait.
    async fn delete_former_consumers<E: EventStream>(&self, events: &E, incarnation: u32) {
        if incarnation == 1 {
            return;
        }
        // The next session tries again.
        let consumers = self.consumers(events).await.unwrap_or_default();
        for (name, _) in consumers.into_iter().filter(|(_, of)| *of < incarnation) {
            info!(consumer = name, "deleting the consumer of an earlier incarnation of the stream");
            events.delete_consumer(&name).await;
        }
    }

    /// Brings what is recorded of the stream up to date; nothing where another replica did so meanwhile.
    async fn agree<E: EventStream>(&self, events: &E) -> Result<Option<Source>, SessionError> {
        // As the leader has them: a mark that another replica of the stream lacks might be the one that shows what was lost.
        let marks = self.bucket.all(&self.names.high_waters()).await?;
        // After the marks. In the other order a replica that was stopped in between would find, in place of those that show
        // that something was lost, those of the life that others have begun since, and join the former life once more.
        let stored = self.bucket.get(&self.names.source()).await?;
        // Last of all: a stream that grows meanwhile must not look as if it ended before a mark.
        let now = events.present().await?;
        let revision = stored.as_ref().map_or_else(Revision::default, |stored| stored.revision);
        let recorded: Option<Source> = stored.as_ref().and_then(|stored| parse(&stored.value));
        // One that cannot be read, or is empty because it is about to go, says nothing.
        let marks_of: Vec<HighWater> = marks.iter().filter_map(|mark| parse(&mark.value)).collect();
        let Some(mut source) = recorded.clone() else {
            // What an earlier ledger's consumers have acknowledged, a new one has never seen. And of what is known to one
            // whose record of the stream was deleted or spoilt, it is not known in which life it was.
            let known = self.forget_consumers(events).await?;
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
                events.time_at(high.sequence).await?
            }
            _ => None,
        };
        match source.judge(now, time_at_high) {
            Judgement::Same => {}
            Judgement::Recreated => {
                source.recreated(now.created);
                let incarnation = source.current().incarnation;
                warn!(stream = self.names.stream, incarnation, "the stream was recreated");
            }
            Judgement::TailLost { after, new_from } => {
                let from = first_after(events, now.first..new_from, after).await?;
                let consumer = self.names.consumer(source.current().incarnation);
                // Gone with the tail, everything is read again, which does no harm.
                let read_from = events.ack_floor(&consumer).await.map_or(0, |floor| floor + 1);
                source.thrown_back(from, read_from);
                warn!(
                    stream = self.names.stream,
                    from,
                    incarnation = source.current().incarnation,
                    "the stream lost its newest messages (a power failure, or a restored older copy)"
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

    /// Deletes the replicas' marks, whose content is recorded now. A replica that lives on makes its mark again.
    async fn forget_marks(&self, marks: Vec<Stored>) {
        let gone = |mark: Stored| Write {
            subject: mark.subject,
            value: Vec::new(),
            expected: Some(mark.revision),
            time_to_live: Some(Duration::from_secs(1)),
        };
        // It fails where the replica has just made another, and that is right.
        let _ = self.bucket.each(marks.into_iter().map(|mark| ((), Ok(gone(mark))))).await;
    }

    async fn record(&self, source: Source, expected: Revision) -> Result<Option<Source>, SessionError> {
        let value = serde_json::to_vec(&source).map_err(|error| SessionError::Nats(error.to_string()))?;
        match self.bucket.compare_and_set(self.names.source(), value, expected, None).await {
            Ok(_) => Ok(Some(source)),
            Err(error) if error.is_contended() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes the consumers of all lives of the stream. Answers the latest of these.
    async fn forget_consumers<E: EventStream>(&self, events: &E) -> Result<u32, SessionError> {
        let mut latest = 0;
        for (name, incarnation) in self.consumers(events).await? {
            warn!(
                consumer = name,
                "the ledger knows nothing of the stream: deleting the consumer and reading the stream from its beginning"
            );
            latest = latest.max(incarnation);
            events.delete_consumer(&name).await;
        }
        Ok(latest)
    }

    /// The queue group's consumers, each with the life of the stream that it is of.
    async fn consumers<E: EventStream>(&self, events: &E) -> Result<Vec<(String, u32)>, SessionError> {
        let names = events.consumers().await?.into_iter();
        let consumers = names.filter_map(|name| {
            let incarnation = name.strip_prefix(self.names.queue_group.as_str())?.strip_prefix('-')?;
            let incarnation = incarnation.parse().ok()?;
            Some((name, incarnation))
        });
        Ok(consumers.collect())
    }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let parsed = serde_json::from_slice(bytes);
    if let Err(error) = &parsed
        && !bytes.is_empty()
    {
        warn!(%error, "replaced an unreadable record of the stream in the ledger");
    }
    parsed.ok()
}

/// The first of these sequences whose message was taken in after this moment; their end, if none was.
async fn first_after<E: EventStream>(events: &E, among: Range<u64>, after: i64) -> Result<u64, SessionError> {
    let (mut from, mut to) = (among.start, among.end);
    while from < to {
        let middle = from + (to - from) / 2;
        match events.next(middle).await? {
            Some((sequence, time)) if time <= after => from = sequence + 1,
            _ => to = middle,
        }
    }
    Ok(from)
}
