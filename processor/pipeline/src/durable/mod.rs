//! Mode `Durable`, in the order data flows: [`session`] -> [`ingest`] -> [`ledger`] -> [`feed`] -> [`projector`],
//! and [`dead_letters`] for what cannot go on. Nothing is lost: an event is acknowledged when the ledger has it,
//! and KV is brought to what the ledger says. This file starts the parts and drains them, nothing else.

mod age;
mod bucket;
mod cache;
mod control;
mod crash;
mod dead_letters;
mod deferred;
mod feed;
mod fitness;
mod gaps;
mod holder;
mod incarnation;
mod ingest;
mod lag;
mod lanes;
mod ledger;
pub mod letters;
mod limits;
mod loan;
mod mark;
mod names;
mod progress;
mod projection;
mod projector;
mod raw;
mod record;
mod register;
mod rests;
pub mod resync;
mod retry_queue;
mod room;
mod salvage;
mod session;
mod shares;
mod store;
mod streams;
mod stuck;
mod subscription;
mod supervisor;
mod suspects;
mod unsettled;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{Context, context::ContextBuilder};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use super::connection::{connect, connect_for_pulls};
use crate::error::RunError;
use crate::settings::{DurableSettings, EventSettings, Settings, Tuning};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use taskpipeline_kv::Namespace;

use self::bucket::Bucket;
use self::cache::Cache;
use self::dead_letters::DeadLetters;
use self::holder::{Holder, READ_AHEAD};
use self::ledger::Ledger;
use self::mark::Mark;
use self::names::{Names, Target};
use self::projector::Parts;
use self::room::Rooms;
use self::session::Sessions;
use self::supervisor::Supervisor;
use self::suspects::Suspects;

/// How long JetStream may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How many publishes may wait for their acks.
const MOST_IN_FLIGHT: usize = 16_384;

/// What is left of the grace for letting go of KV and closing the connection.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Runs the pipeline until `shutdown` resolves, and drains it.
pub(super) async fn run(
    settings: Settings,
    durable: DurableSettings,
    changes: watch::Receiver<Tuning>,
    namespace: Namespace,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), RunError> {
    let (connected, connections) = watch::channel(0);
    let connecting = connect(&settings.connection, Arc::clone(&health), Arc::clone(&metrics), connected);
    let client = tokio::select! {
        client = connecting => client?,
        () = &mut shutdown => return Ok(()),
    };
    let (link_changed, link) = watch::channel(false);
    let pulls = connect_for_pulls(&settings.connection, Arc::clone(&health), link_changed).await?;
    let mut member = Member::new(&client, &settings.pipeline.events, &durable, connections, metrics, health);
    let rooms = Arc::new(Rooms {
        jetstream: member.jetstream.clone(),
        room: durable.room,
        health: Arc::clone(&member.health),
        metrics: Arc::clone(&member.metrics),
        said: Mutex::default(),
        silent: Mutex::default(),
    });
    let sessions = Sessions {
        jetstream: member.jetstream.clone(),
        pulls: context(&pulls),
        bucket: member.bucket.clone(),
        names: Arc::clone(&member.names),
        settings: durable.clone(),
        rooms: Arc::clone(&rooms),
    };
    let session = tokio::select! {
        session = supervisor::first(&sessions, &mut member.connections) => session.map_err(|reason| RunError::Nats {
            url: settings.connection.to_string(),
            reason,
        })?,
        () = &mut shutdown => return Ok(()),
    };
    member.health.set_source(client.clone());
    info!("replica {} takes part in {}", member.replica, session.consumer.cached_info().name);

    let target = Target::new(settings.kv.namespace_url.as_str());
    let parts = member.projector(namespace, changes, durable.settle_after, target, session.max_age);
    let health = Arc::clone(&member.health);
    let supervisor = Supervisor {
        sessions,
        rooms,
        ledger: member.ledger,
        letters: member.letters,
        mark: Mark::new(member.bucket.clone(), &member.names, &member.replica),
        suspects: Suspects::new(member.bucket, Arc::clone(&member.names)),
        names: member.names,
        connections: member.connections,
        pulls: pulls.clone(),
        link,
        metrics: member.metrics,
        health: member.health,
        ack_wait: durable.ack_wait,
    };

    let (stop, stopped) = watch::channel(None);
    let mut projecting = tokio::spawn(projector::run(parts, stopped.clone()));
    let mut ingesting = tokio::spawn(supervisor.run(session, stopped));
    tokio::select! {
        () = &mut shutdown => {}
        _ = &mut ingesting => return Err(RunError::Stopped("ingest")),
        _ = &mut projecting => return Err(RunError::Stopped("projector")),
    }

    let grace = settings.pipeline.shutdown_grace;
    info!("draining: no more events are taken, and KV is left to another replica");
    health.set_draining();
    let started = Instant::now();
    stop.send_replace(Some(started + grace.saturating_sub(LAST_WORDS)));
    let drained = tokio::time::timeout_at(started + grace, async {
        let _ = projecting.await;
        let _ = ingesting.await;
        // The last acks; what does not get through is delivered again.
        let _ = pulls.flush().await;
        let _ = client.flush().await;
    })
    .await;
    match drained {
        Ok(()) => info!("drained in {:.1} s", started.elapsed().as_secs_f64()),
        Err(_) => warn!(
            "the grace of {} s is over; what was in hand is delivered again, and written by another replica",
            grace.as_secs()
        ),
    }
    Ok(())
}

/// A process that takes part in a pipeline, be it a replica or a command: what its parts share.
struct Member {
    jetstream: Context,
    names: Arc<Names>,
    replica: Arc<str>,
    bucket: Bucket,
    ledger: Arc<Ledger>,
    letters: DeadLetters,
    connections: watch::Receiver<u64>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

impl Member {
    fn new(
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

    /// What its projector needs. `max_age`: how long the stream keeps an event; nothing where it does for ever.
    fn projector<K>(
        &self,
        kv: K,
        mut changes: watch::Receiver<Tuning>,
        settle_after: Duration,
        target: Target,
        max_age: Option<Duration>,
    ) -> Parts<K> {
        // A tenth more than any event can live: for clocks, and for what a replica holds in its hands.
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

fn context(client: &Client) -> Context {
    ContextBuilder::new()
        .timeout(ANSWER)
        .max_ack_inflight(MOST_IN_FLIGHT)
        .backpressure_on_inflight(true)
        .build(client.clone())
}

/// Resolves when the drain has begun; or when nobody is left to begin one, which stops just as well.
async fn stopped(stop: &mut watch::Receiver<Option<Instant>>) {
    let _ = stop.wait_for(Option::is_some).await;
}

/// Resolves when the drain has to be over.
async fn deadline(stop: &mut watch::Receiver<Option<Instant>>) {
    let at = stop.wait_for(Option::is_some).await.ok().and_then(|at| *at);
    tokio::time::sleep_until(at.unwrap_or_else(Instant::now)).await;
}
