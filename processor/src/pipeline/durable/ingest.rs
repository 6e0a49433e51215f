//! From the stream to the ledger: pulls, decodes, validates, folds by task, stores, and acknowledges what is
//! stored. Never waits for KV.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Message;
use futures_util::StreamExt;
use taskpipeline_contract::{Event, TaskId, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::crash;
use super::dead_letters::{DeadLetters, LetterError};
use super::incarnation::HighWater;
use super::ledger::{Ledger, LedgerError};
use super::limits;
use super::names::Names;
use super::record::Record;
use super::session::{Session, mark_high_water, nanos};
use crate::pipeline::dead_letters::{Letter, Origin, Reason};
use crate::pipeline::fold::Version;
use crate::pipeline::message::Received;
use crate::telemetry::metrics::Metrics;

/// How many events are pulled at a time: enough to fill the way to the ledger and back, few enough that four
/// replicas get a like share of a burst.
const PULL: usize = 256;

/// How long a pull waits for events. As long may a drain wait for what the server has handed out.
const PULL_EXPIRES: Duration = Duration::from_secs(1);

/// An event that was delivered more often than this was taken by replicas that did not live to say what it is.
const MOST_DELIVERIES: i64 = 10;

/// Why a pull came to an end; what it had in hand is delivered again.
#[derive(Debug, thiserror::Error)]
pub(super) enum IngestError {
    #[error("events cannot be pulled: {0}")]
    Pull(String),
    #[error("the connection to NATS was made anew")]
    Reconnected,
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Letter(#[from] LetterError),
    #[error("events were in hand longer than NATS waits for their acks ({} s); they come again", .0.as_secs())]
    TooSlow(Duration),
}

/// What is pulled, with what belongs to it.
struct Delivery {
    message: Message,
    version: Version,
    time: i64,
    deliveries: i64,
}

/// One of the workers of a replica. They share all they have.
#[derive(Clone)]
pub(super) struct Ingest {
    pub(super) session: Arc<Session>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) letters: DeadLetters,
    pub(super) names: Arc<Names>,
    pub(super) replica: Arc<str>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) ack_wait: Duration,
}

impl Ingest {
    /// Pulls until `stop` turns true, and finishes what it has in hand.
    ///
    /// # Errors
    /// Where something is wrong with the connection, the stream or the ledger.
    pub(super) async fn run(
        self,
        stop: watch::Receiver<bool>,
        mut connections: watch::Receiver<u64>,
    ) -> Result<(), IngestError> {
        let mut most = PULL;
        while !*stop.borrow() {
            let pulled = self
                .session
                .consumer
                .batch()
                .max_messages(most)
                .expires(PULL_EXPIRES)
                .messages()
                .await
                .map_err(|error| IngestError::Pull(error.to_string()))?;
            // Whatever has come already is taken together; a single event does not wait for others.
            let mut chunks = pulled.ready_chunks(PULL);
            loop {
                let chunk = tokio::select! {
                    biased;
                    chunk = chunks.next() => chunk,
                    // What came over the old connection has been taken; no more comes of this pull.
                    _ = connections.changed() => return Err(IngestError::Reconnected),
                };
                let Some(chunk) = chunk else { break };
                let taken = Instant::now();
                let mut messages = Vec::with_capacity(chunk.len());
                let mut failed = None;
                for message in chunk {
                    match message {
                        Ok(message) => messages.push(message),
                        Err(error) => match limits::largest_pull(&error.to_string()) {
                            Some(allowed) if allowed < most => {
                                info!(allowed, "NATS allows smaller pulls only (max_request_batch)");
                                most = allowed;
                            }
                            _ => failed = Some(IngestError::Pull(error.to_string())),
                        },
                    }
                }
                if !messages.is_empty() {
                    self.take_in(messages, taken).await?;
                }
                if let Some(error) = failed {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn take_in(&self, messages: Vec<Message>, taken: Instant) -> Result<(), IngestError> {
        crash::point("pulled");
        let mut deliveries = Vec::with_capacity(messages.len());
        let mut high: Option<HighWater> = None;
        for message in messages {
            let info = message.info().map_err(|error| IngestError::Pull(error.to_string()))?;
            let (sequence, time, count) = (info.stream_sequence, nanos(info.published), info.delivered);
            let version = self.session.source.version(sequence);
            if high.is_none_or(|high| high.sequence < sequence) {
                let incarnation = self.session.source.current().incarnation;
                high = Some(HighWater { incarnation, sequence, time });
            }
            deliveries.push(Delivery { message, version, time, deliveries: count });
        }
        let mut records: HashMap<TaskId, Record> = HashMap::with_capacity(deliveries.len());
        for delivery in &deliveries {
            self.decode(delivery, &mut records).await?;
        }
        if !records.is_empty() {
            if let Some(high) = high {
                mark_high_water(self.ledger.bucket(), &self.names, &self.replica, high)
                    .await
                    .map_err(LedgerError::from)?;
            }
            // Held too long (a stopped process), the events may be with another replica, and what is known of
            // their tasks may have expired meanwhile.
            if taken.elapsed() > self.ack_wait {
                return Err(IngestError::TooSlow(self.ack_wait));
            }
            self.ledger.apply(records).await?;
            crash::point("stored");
        }
        for delivery in &deliveries {
            // Lost, it only has the event delivered again.
            if let Err(error) = delivery.message.ack().await {
                debug!("an ack cannot be sent: {error}");
            }
        }
        self.metrics.events_stored.inc_by(u64::try_from(deliveries.len()).unwrap_or(u64::MAX));
        crash::point("acked");
        Ok(())
    }

    async fn decode(
        &self,
        delivery: &Delivery,
        records: &mut HashMap<TaskId, Record>,
    ) -> Result<(), IngestError> {
        let message = &delivery.message;
        let subject = &message.subject;
        let Some(kind) = self.names.kind(subject) else {
            // The consumer has a filter where that may come.
            return Ok(());
        };
        self.metrics.received(kind);
        if delivery.deliveries > 1 {
            self.metrics.redeliveries.inc();
        }
        let at = timestamp(delivery.time);
        let received = || Received {
            kind,
            subject: subject.as_str().into(),
            headers: message.headers.clone().map(Box::new),
            payload: message.payload.clone(),
            at,
            taken: Instant::now(),
        };
        let letter = if delivery.deliveries > MOST_DELIVERIES {
            let detail = format!("delivered {} times without being acknowledged", delivery.deliveries);
            Letter::new(received(), Reason::DeliveredTooOften, &detail, 0)
        } else {
            match Event::decode(kind, &message.payload) {
                Ok(event) => {
                    let correlation_id = event.correlation_id.as_str();
                    info!(correlation_id, %subject, "Received {subject}");
                    let id = event.data.task_id().clone();
                    let record = Record::of(delivery.version, at, event.correlation_id, &event.data);
                    match records.entry(id) {
                        std::collections::hash_map::Entry::Vacant(entry) => {
                            entry.insert(record);
                        }
                        std::collections::hash_map::Entry::Occupied(mut entry) => {
                            entry.get_mut().merge(&record);
                        }
                    }
                    return Ok(());
                }
                Err(error) => {
                    self.metrics.events_invalid.inc();
                    warn!(%subject, "Refused a message on {subject} ({}): {error}", delivery.version);
                    Letter::undecodable(received(), &error)
                }
            }
        };
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
        Ok(self.letters.store(&letter).await?)
    }
}

/// A message's time in whole milliseconds, as tasks carry it.
pub(super) fn timestamp(nanos: i64) -> Timestamp {
    Timestamp::from_unix_millis(nanos.div_euclid(1_000_000)).unwrap_or(Timestamp::UNIX_EPOCH)
}
