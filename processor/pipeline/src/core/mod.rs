//! Mode `Core`: at most once. Starts the parts of the mode and drains them, nothing else.
//!
//! Data flows [`source`] -> [`buffer`] -> [`ingest`] -> [`ledger`] -> [`projector`], and to
//! [`dead_letters`] if it cannot be processed.

mod buffer;
mod dead_letters;
mod ingest;
mod ledger;
mod projector;
mod source;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info};

use crate::error::RunError;
use crate::settings::{Settings, Tuning};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use taskpipeline_kv::Namespace;

use self::buffer::Room;
use self::dead_letters::DeadLetters;
use self::projector::Projector;
use self::source::Source;

/// The most accepted events between ingest and the projector.
///
/// Few, because they are counted by number and each may be large. The buffer and the ledger, where
/// events are meant to wait, count bytes.
const ACCEPTED_CAPACITY: usize = 64;

/// The end of the grace, reserved for publishing dead letters and closing the connection.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub(super) async fn run(
    settings: Settings,
    changes: watch::Receiver<Tuning>,
    namespace: Namespace,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), RunError> {
    let connecting = Source::connect(
        &settings.connection,
        &settings.pipeline.events,
        Arc::clone(&health),
        Arc::clone(&metrics),
    );
    let source = tokio::select! {
        source = connecting => source?,
        () = &mut shutdown => return Ok(()),
    };
    health.set_source(source.client());
    // In mode Core every replica writes the events that it takes.
    health.set_writing(true);

    let (letters, letters_done) =
        DeadLetters::start(source.client(), &settings.pipeline.events.subject_prefix, Arc::clone(&metrics));
    let (accepted, to_project) = mpsc::channel(ACCEPTED_CAPACITY);
    let (deadline, deadline_seen) = watch::channel(None);
    let (stop, stopped) = watch::channel(false);

    let projector =
        Projector::new(namespace, changes, letters.clone(), Arc::clone(&metrics), Arc::clone(&health));
    let (input, output) = buffer::buffer(Room::CORE);
    let mut projecting = tokio::spawn(projector.run(to_project, deadline_seen));
    let mut ingesting = tokio::spawn(ingest::run(output, accepted, letters.clone(), Arc::clone(&metrics)));
    let mut sourcing = tokio::spawn(source.run(stopped, input, metrics));

    tokio::select! {
        () = &mut shutdown => {}
        _ = &mut sourcing => return Err(RunError::Stopped("source")),
        _ = &mut ingesting => return Err(RunError::Stopped("ingest")),
        _ = &mut projecting => return Err(RunError::Stopped("projector")),
    }

    let grace = settings.pipeline.shutdown_grace;
    info!(grace_seconds = grace.as_secs(), "draining: takes no more events and writes those in flight");
    health.set_draining();
    let started = Instant::now();
    deadline.send_replace(Some(started + grace.saturating_sub(LAST_WORDS)));
    stop.send_replace(true);
    // Each part ends after the one before it, because that one closes its channel.
    let unpublished = letters.unpublished();
    drop(letters);
    let drained = tokio::time::timeout_at(started + grace, async {
        let _ = sourcing.await;
        let _ = ingesting.await;
        let _ = projecting.await;
        let _ = letters_done.await;
    })
    .await;
    match (drained, unpublished.count()) {
        (Ok(()), 0) => info!(seconds = started.elapsed().as_secs_f64(), "drained"),
        (_, lost) => error!(
            grace_seconds = grace.as_secs(),
            lost, "the shutdown grace is over and events are lost: NATS did not accept them as dead letters"
        ),
    }
    Ok(())
}
