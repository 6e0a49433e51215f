//! Replicas agree on the incarnation of the stream, and join its consumer. The agreement is a
//! record in the bucket of the ledger, written by compare-and-set.

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

/// The most high waters of replicas before the recorded ones are deleted.
const MOST_MARKS: usize = 32;

/// The stream of events, in NATS or in a simulation.
pub(crate) trait EventStream: Sync {
    /// The durable consumer of one incarnation.
    type Consumer: Send;

    /// The present state of the stream.
    fn present(&self) -> impl Future<Output = Result<Present, SessionError>> + Send;

    /// When the stream stored the message with this sequence, in ns since 1970; `None` if it is not
    /// there.
    fn time_at(&self, sequence: u64) -> impl Future<Output = Result<Option<i64>, SessionError>> + Send;

    /// The first message with at least this sequence: its sequence, and when the stream stored it.
    fn next(&self, sequence: u64) -> impl Future<Output = Result<Option<(u64, i64)>, SessionError>> + Send;

    /// The sequence up to which a consumer was acknowledged; `None` if there is no such consumer.
    fn ack_floor(&self, consumer: &str) -> impl Future<Output = Option<u64>> + Send;

    /// The consumer of this incarnation, and whether this call created it.
    fn consumer(
        &self,
        life: Life,
    ) -> impl Future<Output = Result<(Self::Consumer, bool), SessionError>> + Send;

    /// The names of all consumers of the stream.
    fn consumers(&self) -> impl Future<Output = Result<Vec<String>, SessionError>> + Send;

    /// Deletes a consumer. A missing consumer is not an error.
    fn delete_consumer(&self, name: &str) -> impl Future<Output = ()> + Send;
}

/// The incarnation of the stream that a session reads, and the gaps in it.
pub(crate) struct Reading {
    pub(crate) source: Source,
    /// `Some` if the consumer has no filter, so that a gap is a loss.
    pub(crate) gaps: Option<Mutex<Gaps>>,
}

impl Reading {
    /// Adds a first delivery. Returns how many messages the stream has dropped beside it, as far as
    /// this replica can see.
    pub(crate) fn lost_beside(&self, delivery: u64, sequence: u64) -> u64 {
        let Some(gaps) = &self.gaps else { return 0 };
        gaps.lock().unwrap_or_else(PoisonError::into_inner).delivered(delivery, sequence)
    }
}

/// Agrees with the other replicas on the incarnation of the stream, and joins its consumer.
pub(crate) struct Agreement<S> {
    pub(crate) bucket: S,
    pub(crate) names: Arc<Names>,
}

impl<S: Register + Store> Agreement<S> {
    /// Agrees on the incarnation of the stream, and joins its consumer.
    ///
    /// Returns `None` if another replica records it at this moment, or the stream was created again
    /// meanwhile: try again.
    ///
    /// # Errors
    /// If NATS does not answer, or the stream or the consumer cannot be used.
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
        // The stream was created again meanwhile. Replicas that have not noticed this would read
        // the new stream by the consumer of the old incarnation.
        if made {
            events.delete_consumer(&self.names.consumer(incarnation)).await;
        }
        Ok(None)
    }

    /// Deletes the consumers of earlier incarnations.
    ///
    /// Nobody reads by them any more. A consumer that is left, or that an outdated replica created
    /// again, would look like waiting events.
    async fn delete_former_consumers<E: EventStream>(&self, events: &E, incarnation: u32) {
        if incarnation == 1 {
            return;
        }
        // If this fails, the next session tries again.
        let consumers = self.consumers(events).await.unwrap_or_default();
        for (name, _) in consumers.into_iter().filter(|(_, of)| *of < incarnation) {
            info!(consumer = name, "deleting the consumer of an earlier incarnation of the stream");
            events.delete_consumer(&name).await;
        }
    }

    /// Updates the record of the stream. Returns `None` if another replica did so meanwhile.
    async fn agree<E: EventStream>(&self, events: &E) -> Result<Option<Source>, SessionError> {
        // From the leader: a mark that another server of the stream lacks might be the one that
        // shows a loss.
        let marks = self.bucket.all(&self.names.high_waters()).await?;
        // Read after the marks. In the other order, a replica that was stopped in between could
        // miss a loss. It would find only the marks of the new incarnation, and join the old
        // incarnation again.
        let stored = self.bucket.get(&self.names.source()).await?;
        // Read last: a stream that grows meanwhile must not seem to end before a mark.
        let now = events.present().await?;
        let revision = stored.as_ref().map_or_else(Revision::default, |stored| stored.revision);
        let recorded: Option<Source> = stored.as_ref().and_then(|stored| parse(&stored.value));
        // Unreadable marks, and empty ones that are about to expire, are ignored.
        let marks_of: Vec<HighWater> = marks.iter().filter_map(|mark| parse(&mark.value)).collect();
        let Some(mut source) = recorded.clone() else {
            // A new ledger has none of the events that the consumers of an earlier ledger
            // acknowledged. If the record of the stream was deleted or damaged, the incarnation of
            // its messages is unknown.
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
        for mark in &marks_of {
            source.raise(*mark);
        }
        let time_at_high = match source.high {
            Some(high) if (now.first..=now.last).contains(&high.sequence) => {
                events.time_at(high.sequence).await?
            }
            _ => None,
        };
        let mut judgement = source.judge(now, time_at_high);
        if judgement == Judgement::Same {
            judgement = self.judge_lower_marks(events, &source, &marks_of, now).await?;
        }
        match judgement {
            Judgement::Same => {}
            Judgement::Recreated => {
                source.recreated(now.created);
                let incarnation = source.current().incarnation;
                warn!(stream = self.names.stream, incarnation, "the stream was recreated");
            }
            Judgement::TailLost { after, new_from } => {
                let from = first_after(events, now.first..new_from, after).await?;
                let consumer = self.names.consumer(source.current().incarnation);
                // If the consumer was lost with the newest messages, everything is read again,
                // which does no harm.
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

    /// Compares the stream with the marks below the highest one.
    async fn judge_lower_marks<E: EventStream>(
        &self,
        events: &E,
        source: &Source,
        marks: &[HighWater],
        now: Present,
    ) -> Result<Judgement, SessionError> {
        let incarnation = source.current().incarnation;
        let mut judgement = Judgement::Same;
        let lower =
            marks.iter().filter(|mark| mark.incarnation == incarnation && source.high != Some(**mark));
        for mark in lower.filter(|mark| mark.sequence >= now.first) {
            let time = if mark.sequence <= now.last { events.time_at(mark.sequence).await? } else { None };
            judgement = judgement.and(Source::judge_mark(*mark, now, time));
        }
        Ok(judgement)
    }

    /// Deletes the marks of replicas, because their content is recorded now. A running replica
    /// writes its mark again.
    async fn forget_marks(&self, marks: Vec<Stored>) {
        let gone = |mark: Stored| Write {
            subject: mark.subject,
            value: Vec::new(),
            expected: Some(mark.revision),
            time_to_live: Some(Duration::from_secs(1)),
        };
        // The write fails if the replica has just written a newer mark, which then stays.
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

    /// Deletes the consumers of all incarnations. Returns the latest of these.
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

    /// The consumers of the queue group, each with its incarnation.
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

/// The first of these sequences whose message was stored after this time; the end of the range if
/// there is none.
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
