//! Simulates the stream of the events and its durable consumers: deliveries, acks and redeliveries.
//!
//! The stream can be recreated, or restored from an older copy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::Config;
use bytes::Bytes;

use crate::durable::stream::incarnation::Present;

/// A message of the stream.
#[derive(Clone)]
pub(super) struct Event {
    pub(super) subject: &'static str,
    pub(super) payload: Bytes,
    /// The time of storage, in ns.
    pub(super) time: i64,
    /// The position in the order of publishing.
    pub(super) nth: usize,
}

/// A message that a consumer has delivered.
#[derive(Clone)]
pub(super) struct Pending {
    deliveries: i64,
    /// The time of the next delivery, in ms of the world.
    again_at: u64,
}

#[derive(Clone)]
struct Consumer {
    ack_wait: u64,
    most_pending: usize,
    /// The sequence at which the consumer began.
    first: u64,
    /// The sequence of the next message to deliver.
    next: u64,
    deliveries: u64,
    pending: BTreeMap<u64, Pending>,
    /// Acks that a new leader may not know.
    lately: Vec<(u64, Pending)>,
}

/// A message in the answer to a pull.
pub(super) struct Delivered {
    pub(super) event: Event,
    pub(super) sequence: u64,
    pub(super) deliveries: i64,
    pub(super) delivery: u64,
}

/// A replica's answer to a delivery.
pub(super) struct Ack {
    pub(super) owner: u64,
    pub(super) consumer: Arc<str>,
    pub(super) sequence: u64,
    pub(super) kind: AckKind,
}

/// The simulated stream of the events, with its consumers.
#[derive(Clone)]
pub(super) struct Stream {
    pub(super) created: i64,
    pub(super) last: u64,
    pub(super) events: BTreeMap<u64, Event>,
    consumers: BTreeMap<String, Consumer>,
    backup: Option<Box<Stream>>,
}

impl Stream {
    pub(super) fn new(created: i64) -> Self {
        let (events, consumers) = (BTreeMap::new(), BTreeMap::new());
        Self { created, last: 0, events, consumers, backup: None }
    }

    pub(super) fn publish(&mut self, event: Event) -> u64 {
        self.last += 1;
        self.events.insert(self.last, event);
        self.last
    }

    /// Removes messages that were stored before this time.
    pub(super) fn age_out(&mut self, before: i64) {
        while self.events.first_key_value().is_some_and(|(_, event)| event.time < before) {
            self.events.pop_first();
        }
    }

    pub(super) fn present(&self) -> Present {
        // A new stream begins at 0. An emptied stream begins after its last message.
        let none = if self.last == 0 { 0 } else { self.last + 1 };
        let first = self.events.first_key_value().map_or(none, |(sequence, _)| *sequence);
        Present { created: self.created, first, last: self.last }
    }

    /// Creates the consumer of this name if it is missing, and returns whether it did.
    pub(super) fn consumer(&mut self, config: &Config) -> bool {
        let name = config.durable_name.clone().unwrap();
        if self.consumers.contains_key(&name) {
            return false;
        }
        let next = match config.deliver_policy {
            DeliverPolicy::All => 1,
            DeliverPolicy::ByStartSequence { start_sequence } => start_sequence,
            ref other => panic!("a consumer that begins at {other:?}"),
        };
        let consumer = Consumer {
            ack_wait: u64::try_from(config.ack_wait.as_millis()).unwrap(),
            most_pending: usize::try_from(config.max_ack_pending).unwrap(),
            first: next,
            next,
            deliveries: 0,
            pending: BTreeMap::new(),
            lately: Vec::new(),
        };
        self.consumers.insert(name, consumer);
        true
    }

    pub(super) fn consumers(&self) -> Vec<String> {
        self.consumers.keys().cloned().collect()
    }

    pub(super) fn delete_consumer(&mut self, name: &str) {
        self.consumers.remove(name);
    }

    /// Returns the ack floor. While the first message of the stream is not acked, a cluster returns 0. A single
    /// server returns the sequence before that message.
    pub(super) fn ack_floor(&self, name: &str, clustered: bool) -> Option<u64> {
        let consumer = self.consumers.get(name)?;
        let open = consumer.pending.first_key_value().map_or(consumer.next, |(sequence, _)| *sequence);
        Some(if clustered && open == consumer.first { 0 } else { open - 1 })
    }

    /// Pulls at most this many messages; `None` if the consumer does not exist.
    pub(super) fn pull(&mut self, name: &str, most: usize, now: u64) -> Option<Vec<Delivered>> {
        let consumer = self.consumers.get_mut(name)?;
        let events = &self.events;
        consumer.pending.retain(|sequence, _| events.contains_key(sequence));
        let mut delivered = Vec::new();
        for (sequence, pending) in consumer.pending.iter_mut().filter(|(_, pending)| pending.again_at <= now)
        {
            if delivered.len() == most {
                break;
            }
            consumer.deliveries += 1;
            pending.deliveries += 1;
            pending.again_at = now + consumer.ack_wait;
            let (event, deliveries) = (events[sequence].clone(), pending.deliveries);
            delivered.push(Delivered {
                event,
                sequence: *sequence,
                deliveries,
                delivery: consumer.deliveries,
            });
        }
        while delivered.len() < most && consumer.pending.len() < consumer.most_pending {
            let Some((sequence, event)) = events.range(consumer.next..).next() else { break };
            consumer.next = sequence + 1;
            consumer.deliveries += 1;
            let again_at = now + consumer.ack_wait;
            consumer.pending.insert(*sequence, Pending { deliveries: 1, again_at });
            let (event, delivery) = (event.clone(), consumer.deliveries);
            delivered.push(Delivered { event, sequence: *sequence, deliveries: 1, delivery });
        }
        Some(delivered)
    }

    pub(super) fn answered(&mut self, ack: &Ack, now: u64) {
        let Some(consumer) = self.consumers.get_mut(&*ack.consumer) else { return };
        let Some(pending) = consumer.pending.get_mut(&ack.sequence) else { return };
        match ack.kind {
            AckKind::Ack => {
                let acked = pending.clone();
                consumer.pending.remove(&ack.sequence);
                consumer.lately.push((ack.sequence, acked));
            }
            AckKind::Nak(delay) => {
                let delay = delay.unwrap_or(Duration::ZERO);
                pending.again_at = now + u64::try_from(delay.as_millis()).unwrap();
            }
            AckKind::Progress => pending.again_at = now + consumer.ack_wait,
            ref other => panic!("an ack of the kind {other:?}"),
        }
    }

    /// Makes all acks known to every replica of the stream.
    pub(super) fn settle(&mut self) {
        self.consumers.values_mut().for_each(|consumer| consumer.lately.clear());
    }

    /// Makes another server the leader, which does not know the last acks.
    pub(super) fn forget_last_acks(&mut self) {
        for consumer in self.consumers.values_mut() {
            consumer.pending.extend(std::mem::take(&mut consumer.lately));
        }
    }

    /// Whether all messages above this sequence are acked to this consumer.
    pub(super) fn is_acked_above(&self, sequence: u64, consumer: &str) -> bool {
        let acked = |consumer: &Consumer| {
            consumer.next > self.last && consumer.pending.range(sequence + 1..).next().is_none()
        };
        self.last <= sequence || self.consumers.get(consumer).is_some_and(acked)
    }

    /// Whether this consumer has no message to deliver.
    pub(super) fn is_done(&self, consumer: &str) -> bool {
        self.consumers.get(consumer).is_some_and(|consumer| {
            let open = consumer.pending.keys().any(|sequence| self.events.contains_key(sequence));
            !open && self.events.range(consumer.next..).next().is_none()
        })
    }

    pub(super) fn consumers_beside(&self, consumer: &str) -> Vec<&str> {
        self.consumers.keys().map(String::as_str).filter(|name| *name != consumer).collect()
    }

    /// Lists the waiting messages and the numbers of their deliveries, for the report.
    pub(super) fn open(&self) -> Vec<String> {
        let open = |(name, consumer): (&String, &Consumer)| {
            let pending: Vec<_> = consumer.pending.iter().map(|(n, it)| (*n, it.deliveries)).collect();
            format!("{name}: next {}, handed out {pending:?}", consumer.next)
        };
        self.consumers.iter().map(open).collect()
    }

    /// Deletes the stream and creates it again.
    pub(super) fn recreate(&mut self, created: i64) {
        *self = Self::new(created);
    }

    pub(super) fn back_up(&mut self) {
        let copy = Self { backup: None, ..self.clone() };
        self.backup = Some(Box::new(copy));
    }

    /// Returns the last sequence of the copy, if the copy exists and is behind.
    pub(super) fn copied(&self) -> Option<u64> {
        self.backup.as_deref().map(|copy| copy.last).filter(|last| *last < self.last)
    }

    /// Restores the stream from the copy.
    pub(super) fn restore(&mut self) {
        let restored = self.backup.take();
        restored.into_iter().for_each(|copy| *self = *copy);
    }
}
