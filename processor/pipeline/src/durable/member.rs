//! The parts that replicas and commands share.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use tokio::sync::watch;
use uuid::Uuid;

use crate::durable::bucket::Bucket;
use crate::durable::control::holder::{Holder, READ_AHEAD};
use crate::durable::dead_letters::DeadLetters;
use crate::durable::jetstream::context;
use crate::durable::ledger::Ledger;
use crate::durable::ledger::cache::Cache;
use crate::durable::names::{Names, Target};
use crate::durable::projector::Parts;
use crate::settings::{DurableSettings, EventSettings, Tuning};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// A process that takes part in a pipeline, a replica or a command, with the parts that both share.
pub(crate) struct Member {
    pub(crate) jetstream: Context,
    pub(crate) names: Arc<Names>,
    pub(crate) replica: Arc<str>,
    pub(crate) bucket: Bucket,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) letters: DeadLetters,
    pub(crate) connections: watch::Receiver<u64>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
}

impl Member {
    pub(crate) fn new(
        client: &Client,
        events: &EventSettings,
        durable: &DurableSettings,
        connections: watch::Receiver<u64>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        let jetstream = context(client);
        let names = Arc::new(Names::new(events, durable));
        let bucket = Bucket::new(jetstream.clone(), &names.ledger_stream, metrics.forged_answers.clone());
        let letters = DeadLetters::new(jetstream.clone(), Arc::clone(&names), Arc::clone(&metrics));
        let ledger = Ledger::new(
            bucket.clone(),
            Arc::clone(&names),
            letters.clone(),
            Arc::clone(&metrics),
            Cache::new(),
        );
        Self {
            replica: Uuid::new_v4().simple().to_string()[..12].into(),
            ledger: Arc::new(ledger),
            letters,
            jetstream,
            names,
            bucket,
            connections,
            metrics,
            health,
        }
    }

    /// The parts of a projector. `max_age`: how long the stream keeps an event; `None` if it keeps
    /// events indefinitely.
    pub(crate) fn projector<K>(
        &self,
        kv: K,
        mut changes: watch::Receiver<Tuning>,
        settle_after: Duration,
        target: Target,
        max_age: Option<Duration>,
    ) -> Parts<K> {
        // A tenth longer than any event can exist: for inexact clocks, and for events that a
        // replica has in memory.
        let memory = max_age.map(|age| age + (age / 10).max(Duration::from_secs(1)));
        let tuning = changes.borrow_and_update().clone();
        Parts {
            kv,
            tuning,
            changes,
            settle_after,
            memory,
            ledger: Arc::clone(&self.ledger),
            holder: Holder {
                bucket: self.bucket.clone(),
                names: Arc::clone(&self.names),
                target,
                replica: Arc::clone(&self.replica),
                memory,
                ahead: READ_AHEAD,
            },
            letters: self.letters.clone(),
            names: Arc::clone(&self.names),
            jetstream: self.jetstream.clone(),
            connections: self.connections.clone(),
            metrics: Arc::clone(&self.metrics),
            health: Arc::clone(&self.health),
        }
    }
}
