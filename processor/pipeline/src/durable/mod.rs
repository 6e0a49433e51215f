//! Mode `Durable`: nothing is lost. Starts the parts of the mode and drains them, nothing else.
//!
//! Data flows [`stream::session`] -> [`intake::ingest`] -> [`ledger`] -> [`ledger::feed`] ->
//! [`projector`], and to [`dead_letters`] if it cannot be processed. A replica acknowledges an
//! event after the ledger has it. The projector writes the state of the ledger to KV.

mod bucket;
mod clock;
mod control;
mod crash;
mod dead_letters;
mod drain;
mod intake;
mod jetstream;
mod ledger;
pub mod letters;
mod limits;
mod member;
mod names;
mod projector;
pub mod resync;
#[cfg(test)]
mod simulation;
mod stream;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::connection::{connect, connect_for_pulls};
use crate::error::RunError;
use crate::settings::{DurableSettings, Settings, Tuning};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use taskpipeline_kv::Namespace;

use self::intake::mark::Mark;
use self::intake::supervisor::Supervisor;
use self::intake::suspects::Suspects;
use self::jetstream::context;
use self::member::Member;
use self::names::Target;
use self::stream::room::Rooms;
use self::stream::session::Sessions;

/// The end of the grace, reserved for releasing the control record and closing the connection.
const LAST_WORDS: Duration = Duration::from_secs(2);

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
        warned: Mutex::default(),
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
        session = intake::supervisor::first(&sessions, &mut member.connections) => session.map_err(|reason| RunError::Nats {
            url: settings.connection.to_string(),
            reason,
        })?,
        () = &mut shutdown => return Ok(()),
    };
    member.health.set_source(client.clone());
    info!(replica = %member.replica, consumer = %session.consumer.cached_info().name, "joined the consumer");

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
    info!("draining: takes no more events and leaves KV to another replica");
    health.set_draining();
    let started = Instant::now();
    stop.send_replace(Some(started + grace.saturating_sub(LAST_WORDS)));
    let drained = tokio::time::timeout_at(started + grace, async {
        let _ = projecting.await;
        let _ = ingesting.await;
        // Sends the last acks. NATS delivers events again if their acks are lost.
        let _ = pulls.flush().await;
        let _ = client.flush().await;
    })
    .await;
    match drained {
        Ok(()) => info!(seconds = started.elapsed().as_secs_f64(), "drained"),
        Err(_) => warn!(
            grace_seconds = grace.as_secs(),
            "the shutdown grace is over; another replica takes over the events in flight"
        ),
    }
    Ok(())
}
