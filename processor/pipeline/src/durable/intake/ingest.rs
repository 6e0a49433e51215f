//! Takes events from the stream into the ledger: decodes, validates, folds by task, stores, and
//! acknowledges stored events. [`super::pull`] pulls them. Never waits for KV.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::message::Acker;
use taskpipeline_contract::{Event, EventKind, TaskId};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::dead_letters::{Letter, Origin};
use crate::durable::bucket::Bucket;
use crate::durable::bucket::raw::Raw;
use crate::durable::clock::timestamp;
use crate::durable::crash;
use crate::durable::dead_letters::DeadLetters;
use crate::durable::intake::pending::{Acknowledge, Pending, Work};
use crate::durable::intake::retry_queue::RetryQueue;
use crate::durable::intake::storage::{Refusal, Storage};
use crate::durable::intake::suspects::{Suspects, TRUSTED_DELIVERIES, Trial};
use crate::durable::ledger::record::Record;
use crate::durable::ledger::store::{LetterBox, Store};
use crate::durable::names::Names;
use crate::durable::stream::agreement::Reading;
use crate::durable::stream::incarnation::HighWater;
use crate::fold::Version;
use crate::header_block::HeaderFault;
use crate::message::Received;
use crate::reason::Reason;
use crate::telemetry::metrics::Metrics;

/// Why the workers of a session ended. NATS delivers the events in flight again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngestError {
    #[error("cannot pull events: {0}")]
    Pull(String),
    #[error("reconnected to NATS")]
    Reconnected,
    #[error(transparent)]
    Unanswered(#[from] Refusal),
    #[error("events were in flight longer than the ack wait ({} s); NATS delivers them again", .0.as_secs())]
    TooSlow(Duration),
}

/// A message as the consumer of the stream delivered it.
pub(crate) struct Arrival<A = Acker> {
    pub(crate) message: async_nats::Message,
    pub(crate) acker: A,
    /// The sequence in the stream.
    pub(crate) sequence: u64,
    /// When the stream stored it, in ns since 1970.
    pub(crate) time: i64,
    /// How many times it was delivered so far.
    pub(crate) deliveries: i64,
    /// The number of this delivery in the consumer.
    pub(crate) delivery: u64,
}

/// An event as it was delivered, with its version.
struct Delivery<A> {
    message: async_nats::Message,
    acker: A,
    kind: EventKind,
    version: Version,
    high: HighWater,
    deliveries: i64,
    /// When the replica pulled it.
    taken: Instant,
}

/// A message that NATS has handed out, and that was read in another way than by the pull.
pub(crate) struct HandedOut<A = Acker> {
    pub(crate) raw: Raw,
    /// The headers, or why the client cannot read them.
    pub(crate) headers: Result<Option<HeaderMap>, HeaderFault>,
    pub(crate) acker: A,
}

/// Takes in what the workers of a replica pull. The workers share all parts.
pub(crate) struct Ingest<S = Bucket, L = DeadLetters, A = Acker> {
    pub(crate) reading: Arc<Reading>,
    pub(crate) storage: Storage<S, L>,
    pub(crate) retry_queue: RetryQueue<A>,
    pub(crate) suspects: Arc<Suspects<S>>,
    pub(crate) names: Arc<Names>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ack_wait: Duration,
}

impl<S: Clone, L: Clone, A> Clone for Ingest<S, L, A> {
    fn clone(&self) -> Self {
        Self {
            reading: Arc::clone(&self.reading),
            storage: self.storage.clone(),
            retry_queue: self.retry_queue.clone(),
            suspects: Arc::clone(&self.suspects),
            names: Arc::clone(&self.names),
            metrics: Arc::clone(&self.metrics),
            ack_wait: self.ack_wait,
        }
    }
}

impl<S: Store, L: LetterBox, A: Acknowledge> Ingest<S, L, A> {
    /// Takes in messages that were pulled at the time `taken`: stores their content, and
    /// acknowledges them.
    ///
    /// # Errors
    /// If it took so long that NATS delivers the messages again.
    pub(crate) async fn take_in(&self, messages: Vec<Arrival<A>>, taken: Instant) -> Result<(), IngestError> {
        crash::point("pulled");
        let (mut trusted, mut suspects) = (Vec::with_capacity(messages.len()), Vec::new());
        for Arrival { message, acker, sequence, time, deliveries, delivery } in messages {
            let lost = match deliveries {
                1 => self.reading.lost_beside(delivery, sequence),
                _ => 0,
            };
            if lost > 0 {
                self.metrics.events_lost.inc_by(lost);
                error!(
                    stream = self.names.stream,
                    lost,
                    before = sequence,
                    "the stream dropped messages that no replica had read: by max_msgs, max_bytes, max_age, or a deletion"
                );
            }
            let Some(kind) = self.names.kind(&message.subject) else {
                self.foreign(&message.subject, sequence, &acker).await;
                continue;
            };
            let version = self.reading.source.version(sequence);
            let incarnation = self.reading.source.current().incarnation;
            let high = HighWater { incarnation, sequence, time };
            self.metrics.received(kind);
            if deliveries > 1 {
                self.metrics.redeliveries.inc();
            }
            let delivery = Delivery { message, acker, kind, version, high, deliveries, taken };
            if deliveries > TRUSTED_DELIVERIES { suspects.push(delivery) } else { trusted.push(delivery) }
        }
        let work = trusted.into_iter().map(|delivery| self.work(delivery)).collect();
        self.store(work, taken).await?;
        for suspect in suspects {
            self.examine(suspect, taken).await?;
        }
        Ok(())
    }

    /// Takes in messages that NATS handed out to a connection that may not have been able to read
    /// them.
    ///
    /// Foreign messages are left to the pulls, if these can read them. Returns whether everything
    /// is stored; what is not stored waits.
    pub(crate) async fn take_in_handed_out(&self, messages: Vec<HandedOut<A>>) -> Result<bool, IngestError> {
        let taken = self.storage.now();
        let mut work = Vec::with_capacity(messages.len());
        for HandedOut { raw, headers, acker } in messages {
            let Some(kind) = self.names.kind(&raw.subject) else {
                if headers.is_err() {
                    self.foreign(&raw.subject, raw.sequence, &acker).await;
                }
                continue;
            };
            let incarnation = self.reading.source.current().incarnation;
            let message = async_nats::Message {
                subject: raw.subject.into(),
                reply: None,
                length: raw.payload.len(),
                payload: raw.payload,
                headers: None,
                status: None,
                description: None,
            };
            let mut delivery = Delivery {
                message,
                acker,
                kind,
                version: self.reading.source.version(raw.sequence),
                high: HighWater { incarnation, sequence: raw.sequence, time: raw.time },
                deliveries: 1,
                taken,
            };
            match headers {
                Ok(headers) => {
                    delivery.message.headers = headers;
                    work.push(self.work(delivery));
                }
                Err(why) => {
                    let received = delivery.received();
                    let letter = Letter::new(received, Reason::UnreadableHeaders, &why.to_string(), 0);
                    work.push(self.kept(delivery, Letter { header_block: raw.block, ..letter }));
                }
            }
        }
        self.store(work, taken).await
    }

    /// Handles a suspect: alone, because it may crash the process.
    async fn examine(&self, suspect: Delivery<A>, taken: Instant) -> Result<(), IngestError> {
        let begun = match self.suspects.begin(suspect.version).await {
            Ok(Trial::Begun(begun)) => begun,
            Ok(Trial::Blamed(crashes)) => {
                let detail = format!(
                    "{crashes} replicas crashed while they handled it; it was delivered {} times",
                    suspect.deliveries
                );
                let letter = Letter::new(suspect.received(), Reason::MaxDeliveriesExceeded, &detail, 0);
                return self.store(vec![self.kept(suspect, letter)], taken).await.map(drop);
            }
            Err(error) => {
                debug!(event = %suspect.version, %error, "an event has to wait");
                let pending = Pending {
                    high: suspect.high,
                    deliveries: suspect.deliveries,
                    ackers: vec![suspect.acker],
                    work: Work::Nothing,
                    extended: taken,
                };
                pending.give_back().await;
                self.retry_queue.note(false, true);
                return Ok(());
            }
        };
        crash::point("examining");
        let stored = self.store(vec![self.work(suspect)], taken).await;
        self.suspects.end(begun).await;
        stored.map(drop)
    }

    /// Stores the events, and acknowledges them. Refused events wait. Returns whether everything is
    /// stored.
    async fn store(&self, work: Vec<Pending<A>>, taken: Instant) -> Result<bool, IngestError> {
        let Some(high) = work.iter().map(|pending| pending.high).reduce(HighWater::max) else {
            return Ok(true);
        };
        let pending = by_task(work);
        let work = pending.iter().map(|pending| pending.work.clone()).collect();
        let (left, why) = self.storage.store(high, work, taken + self.ack_wait).await;
        if let Some(Refusal::TooSlow) = why {
            return Err(IngestError::TooSlow(self.ack_wait));
        }
        crash::point("stored");
        if let Some(why) = &why {
            warn!(events = count(pending.iter().enumerate().filter(|(n, _)| left.contains(n)).map(|(_, pending)| pending)), error = %why, "events have to wait");
        }
        self.retry_queue.note(left.len() < pending.len(), !left.is_empty());
        for (place, mut pending) in pending.into_iter().enumerate() {
            if left.contains(&place) {
                pending.extended = taken;
                self.retry_queue.keep(pending).await;
            } else {
                pending.ack().await;
                self.metrics.events_stored.inc_by(count([&pending]));
            }
        }
        crash::point("acked");
        Ok(left.is_empty())
    }

    /// The store operation for an event.
    fn work(&self, delivery: Delivery<A>) -> Pending<A> {
        let (subject, version) = (&delivery.message.subject, delivery.version);
        match Event::decode(delivery.kind, &delivery.message.payload) {
            Ok(event) => {
                let correlation_id = event.correlation_id.as_str();
                info!(correlation_id, %subject, "received");
                let id = event.data.task_id().clone();
                let at = timestamp(delivery.high.time);
                let record = Record::of(version, at, event.correlation_id, &event.data);
                delivery.pending(Work::Fold(id, Arc::new(record)))
            }
            Err(error) => {
                self.metrics.events_invalid.inc();
                warn!(%subject, event = %version, %error, "refused an invalid message");
                let letter = Letter::undecodable(delivery.received(), &error);
                self.kept(delivery, letter)
            }
        }
    }

    fn kept(&self, delivery: Delivery<A>, letter: Letter) -> Pending<A> {
        let group = &self.names.queue_group;
        let letter = Letter {
            id: format!("{group}-{}", delivery.version),
            origin: Origin {
                version: Some(delivery.version),
                deliveries: Some(delivery.deliveries),
                queue_group: Some(group.clone()),
                ..Origin::default()
            },
            ..letter
        };
        delivery.pending(Work::Keep(Arc::new(letter)))
    }

    /// Acknowledges a message of another pipeline. Such messages come if the consumer has no
    /// filter, or a wider one.
    async fn foreign(&self, subject: &str, sequence: u64, acker: &A) {
        let stream = &self.names.stream;
        self.metrics.events_foreign.inc();
        let count = self.metrics.events_foreign.get();
        // There may be as many such messages as events.
        if count.is_power_of_two() {
            warn!(%subject, count, %stream, sequence, "acknowledged a message whose subject does not belong to this \
                                                       pipeline. Check subject_transform and the subjects of the stream");
        }
        if let Err(error) = acker.answer(AckKind::Ack).await {
            debug!(%error, "cannot send an ack");
        }
    }
}

impl<A> Delivery<A> {
    fn received(&self) -> Received {
        Received {
            kind: self.kind,
            subject: self.message.subject.as_str().into(),
            headers: self.message.headers.clone().map(Box::new),
            payload: self.message.payload.clone(),
            at: timestamp(self.high.time),
            taken: self.taken,
        }
    }

    fn pending(self, work: Work) -> Pending<A> {
        let Self { acker, high, deliveries, taken, .. } = self;
        Pending { work, ackers: vec![acker], high, deliveries, extended: taken }
    }
}

/// Joins the events of each task, so that one write stores all of them.
fn by_task<A: Acknowledge>(all: Vec<Pending<A>>) -> Vec<Pending<A>> {
    let mut places: HashMap<TaskId, usize> = HashMap::with_capacity(all.len());
    let mut together: Vec<Pending<A>> = Vec::with_capacity(all.len());
    for pending in all {
        let place = match &pending.work {
            Work::Fold(id, _) => places.get(id).copied(),
            Work::Keep(_) | Work::Nothing => None,
        };
        match place.and_then(|place| together.get_mut(place)) {
            Some(known) => known.join(pending),
            None => {
                if let Work::Fold(id, _) = &pending.work {
                    places.insert(id.clone(), together.len());
                }
                together.push(pending);
            }
        }
    }
    together
}

fn count<'a, A: Acknowledge>(pending: impl IntoIterator<Item = &'a Pending<A>>) -> u64 {
    let events: usize = pending.into_iter().map(Pending::count).sum();
    u64::try_from(events).unwrap_or(u64::MAX)
}
