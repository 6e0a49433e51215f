//! From the stream to the ledger: pulls, decodes, validates, folds by task, stores, and acknowledges what is
//! stored. Never waits for KV.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::connection::State;
use async_nats::jetstream::Message;
use async_nats::jetstream::message::Acker;
use futures_util::StreamExt;
use taskpipeline_contract::{Event, EventKind, TaskId};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::dead_letters::{Letter, Origin};
use crate::durable::bucket::lanes::note_forged;
use crate::durable::bucket::raw::Raw;
use crate::durable::clock::{nanos, timestamp};
use crate::durable::crash;
use crate::durable::intake::retry_queue::{Pending, Refusal, RetryQueue, Storage, Work};
use crate::durable::intake::suspects::{Suspects, TRUSTED_DELIVERIES, Trial};
use crate::durable::ledger::record::Record;
use crate::durable::limits;
use crate::durable::names::Names;
use crate::durable::stream::incarnation::HighWater;
use crate::durable::stream::session::Session;
use crate::fold::Version;
use crate::header_block::HeaderFault;
use crate::message::Received;
use crate::reason::Reason;
use crate::telemetry::metrics::Metrics;

/// How many events are pulled at a time: enough to fill the way to the ledger and back, few enough that four
/// replicas get a like share of a burst.
const PULL: usize = 256;

/// How long a pull waits for events. As long may a drain wait for what the server has handed out.
const PULL_EXPIRES: Duration = Duration::from_secs(1);

/// How often it is looked whether the connection to the ledger is there again.
const LOOK: Duration = Duration::from_millis(20);

/// Why a pull came to an end; what it had in hand is delivered again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngestError {
    #[error("events cannot be pulled: {0}")]
    Pull(String),
    #[error("the connection to NATS was made anew")]
    Reconnected,
    #[error(transparent)]
    Unanswered(#[from] Refusal),
    #[error("events were in hand longer than NATS waits for their acks ({} s); they come again", .0.as_secs())]
    TooSlow(Duration),
}

/// What is pulled, with what belongs to it.
struct Delivery {
    message: async_nats::Message,
    acker: Acker,
    kind: EventKind,
    version: Version,
    high: HighWater,
    deliveries: i64,
}

/// A message that was handed out, read in another way than by the pull.
pub(crate) struct HandedOut {
    pub(crate) raw: Raw,
    /// Its headers; why the client cannot read them.
    pub(crate) headers: Result<Option<HeaderMap>, HeaderFault>,
    pub(crate) acker: Acker,
}

/// One of the workers of a replica. They share all they have.
#[derive(Clone)]
pub(crate) struct Ingest {
    pub(crate) session: Arc<Session>,
    pub(crate) storage: Storage,
    pub(crate) retry_queue: RetryQueue,
    pub(crate) suspects: Arc<Suspects>,
    pub(crate) names: Arc<Names>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ack_wait: Duration,
}

impl Ingest {
    /// Pulls until `stop` turns true, and finishes what it has in hand.
    ///
    /// # Errors
    /// Where something is wrong with the connection, the stream or the ledger.
    pub(crate) async fn run(
        self,
        mut stop: watch::Receiver<bool>,
        mut connections: watch::Receiver<u64>,
        mut link: watch::Receiver<bool>,
    ) -> Result<(), IngestError> {
        let mut most = PULL;
        while !*stop.borrow() {
            tokio::select! {
                () = self.may_pull(&mut link) => {}
                _ = stop.changed() => continue,
                _ = connections.changed() => return Err(IngestError::Reconnected),
            }
            let pulled = self
                .session
                .pulls
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
                    _ = link.changed() => break,
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

    /// Returns when what is pulled can be stored: the connection for pulls may be there before the other one is.
    async fn may_pull(&self, link: &mut watch::Receiver<bool>) {
        self.retry_queue.may_fetch().await;
        let ledger = self.session.jetstream.client();
        while ledger.connection_state() != State::Connected {
            tokio::time::sleep(LOOK).await;
        }
        // A pull that is sent before its connection is told of would be given up when it is, with what it has brought.
        let _ = link.wait_for(|is_up| *is_up).await;
    }

    async fn take_in(&self, messages: Vec<Message>, taken: Instant) -> Result<(), IngestError> {
        crash::point("pulled");
        let (mut trusted, mut suspects) = (Vec::with_capacity(messages.len()), Vec::new());
        for message in messages {
            // What does not come from the consumer has no subject for its ack.
            let Ok(info) = message.info() else {
                note_forged(&self.metrics.forged_answers);
                continue;
            };
            let (sequence, time, deliveries) = (info.stream_sequence, nanos(info.published), info.delivered);
            let lost = match deliveries {
                1 => self.session.lost_beside(info.consumer_sequence, sequence),
                _ => 0,
            };
            if lost > 0 {
                self.metrics.events_lost.inc_by(lost);
                error!(
                    "the stream {} has dropped {lost} messages before event {sequence} that were never taken in: by max_msgs, \
                     max_bytes, max_age, or because somebody deleted them",
                    self.names.stream
                );
            }
            let Some(kind) = self.names.kind(&message.subject) else {
                let (message, acker) = message.split();
                self.foreign(&message.subject, sequence, &acker).await;
                continue;
            };
            let version = self.session.source.version(sequence);
            let incarnation = self.session.source.current().incarnation;
            let high = HighWater { incarnation, sequence, time };
            self.metrics.received(kind);
            if deliveries > 1 {
                self.metrics.redeliveries.inc();
            }
            let (message, acker) = message.split();
            let delivery = Delivery { message, acker, kind, version, high, deliveries };
            if deliveries > TRUSTED_DELIVERIES { suspects.push(delivery) } else { trusted.push(delivery) }
        }
        let work = trusted.into_iter().map(|delivery| self.work(delivery)).collect();
        self.store(work, taken).await?;
        for suspect in suspects {
            self.examine(suspect, taken).await?;
        }
        Ok(())
    }

    /// Takes in messages that were handed out and have come, if at all, to somebody who may not have been able to read them.
    /// Those that are no events of this pipeline are left to the pulls, if these can read them.
    /// Answers whether all of it is stored; what is not waits.
    pub(crate) async fn take_in_handed_out(&self, messages: Vec<HandedOut>) -> Result<bool, IngestError> {
        let mut work = Vec::with_capacity(messages.len());
        for HandedOut { raw, headers, acker } in messages {
            let Some(kind) = self.names.kind(&raw.subject) else {
                if headers.is_err() {
                    self.foreign(&raw.subject, raw.sequence, &acker).await;
                }
                continue;
            };
            let incarnation = self.session.source.current().incarnation;
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
                version: self.session.source.version(raw.sequence),
                high: HighWater { incarnation, sequence: raw.sequence, time: raw.time },
                deliveries: 1,
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
        self.store(work, Instant::now()).await
    }

    /// Looks at an event by which processes may have died, alone.
    async fn examine(&self, suspect: Delivery, taken: Instant) -> Result<(), IngestError> {
        let begun = match self.suspects.begin(suspect.version).await {
            Ok(Trial::Begun(begun)) => begun,
            Ok(Trial::Blamed(crashes)) => {
                let detail = format!(
                    "{crashes} replicas crashed while they handled it; it was delivered {} times",
                    suspect.deliveries
                );
                let letter = Letter::new(suspect.received(), Reason::DeliveredTooOften, &detail, 0);
                return self.store(vec![self.kept(suspect, letter)], taken).await.map(drop);
            }
            Err(error) => {
                debug!("event {} has to wait: {error}", suspect.version);
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

    /// Stores what the events say, and acknowledges them. What is refused has to wait.
    /// Answers whether all of it is stored.
    async fn store(&self, work: Vec<Pending>, taken: Instant) -> Result<bool, IngestError> {
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
            warn!(
                "{} events have to wait: {why}",
                count(
                    pending.iter().enumerate().filter(|(n, _)| left.contains(n)).map(|(_, pending)| pending)
                )
            );
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

    /// What has to be stored of an event.
    fn work(&self, delivery: Delivery) -> Pending {
        let (subject, version) = (&delivery.message.subject, delivery.version);
        match Event::decode(delivery.kind, &delivery.message.payload) {
            Ok(event) => {
                let correlation_id = event.correlation_id.as_str();
                info!(correlation_id, %subject, "Received {subject}");
                let id = event.data.task_id().clone();
                let at = timestamp(delivery.high.time);
                let record = Record::of(version, at, event.correlation_id, &event.data);
                delivery.pending(Work::Fold(id, Arc::new(record)))
            }
            Err(error) => {
                self.metrics.events_invalid.inc();
                warn!(%subject, "Refused a message on {subject} ({version}): {error}");
                let letter = Letter::undecodable(delivery.received(), &error);
                self.kept(delivery, letter)
            }
        }
    }

    fn kept(&self, delivery: Delivery, letter: Letter) -> Pending {
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

    /// A message that is not this pipeline's: the consumer has no filter, or not this pipeline's.
    async fn foreign(&self, subject: &str, sequence: u64, acker: &Acker) {
        let stream = &self.names.stream;
        self.metrics.events_foreign.inc();
        let count = self.metrics.events_foreign.get();
        // There may be as many as there are events.
        if count.is_power_of_two() {
            warn!(
                subject,
                count,
                "message {sequence} of the stream {stream} is on {subject}, which is none of this pipeline's subjects: it \
                 is acknowledged and left alone, and so were {count} so far. Does the stream change subjects \
                 (subject_transform), or has it others than those of this pipeline?"
            );
        }
        if let Err(error) = acker.ack().await {
            debug!("an ack cannot be sent: {error}");
        }
    }
}

impl Delivery {
    fn received(&self) -> Received {
        Received {
            kind: self.kind,
            subject: self.message.subject.as_str().into(),
            headers: self.message.headers.clone().map(Box::new),
            payload: self.message.payload.clone(),
            at: timestamp(self.high.time),
            taken: Instant::now(),
        }
    }

    fn pending(self, work: Work) -> Pending {
        let Self { acker, high, deliveries, .. } = self;
        Pending { work, ackers: vec![acker], high, deliveries, extended: Instant::now() }
    }
}

/// Puts together what is about one task: all of it is written at a time.
fn by_task(all: Vec<Pending>) -> Vec<Pending> {
    let mut places: HashMap<TaskId, usize> = HashMap::with_capacity(all.len());
    let mut together: Vec<Pending> = Vec::with_capacity(all.len());
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

fn count<'a>(pending: impl IntoIterator<Item = &'a Pending>) -> u64 {
    let events: usize = pending.into_iter().map(|pending| pending.ackers.len()).sum();
    u64::try_from(events).unwrap_or(u64::MAX)
}
