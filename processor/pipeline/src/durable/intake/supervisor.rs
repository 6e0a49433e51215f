//! Keeps the workers of ingest running. It starts a new session and new workers after each
//! reconnect, and after a change of the stream, its consumer or the ledger.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::durable::dead_letters::DeadLetters;
use crate::durable::drain::stopped;
use crate::durable::intake::age;
use crate::durable::intake::ingest::{Ingest, IngestError};
use crate::durable::intake::mark::Mark;
use crate::durable::intake::retry_queue::{RetryLoop, RetryQueue};
use crate::durable::intake::salvage::Salvage;
use crate::durable::intake::storage::Storage;
use crate::durable::intake::suspects::Suspects;
use crate::durable::ledger::Ledger;
use crate::durable::names::Names;
use crate::durable::stream::error::SessionError;
use crate::durable::stream::room::Rooms;
use crate::durable::stream::session::{Session, Sessions};
use crate::durable::stream::streams::StreamsError;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// The number of pulls of a replica at a time: one waits for the ledger while others decode.
const WORKERS: usize = 4;

/// The first and the longest wait before another attempt to begin a session.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The longest time that workers may take to finish the events in flight.
const FINISH: Duration = Duration::from_secs(8);

/// Begins the first session. Waits for faults that may pass.
///
/// # Errors
/// If a person must change something; the text says what.
pub(crate) async fn first(
    sessions: &Sessions,
    connections: &mut watch::Receiver<u64>,
) -> Result<Session, String> {
    // The client reports the first connection late. A session that does not know of it would treat
    // it as a reconnect. Then NATS would deliver the events of its pulls again only after
    // `ack_wait`.
    let _ = connections.wait_for(|count| *count > 0).await;
    let mut pause = PAUSES.0;
    loop {
        connections.mark_unchanged();
        match sessions.begin().await {
            Ok(session) => return Ok(session),
            Err(SessionError::Streams(StreamsError::Unfit(reason))) => return Err(reason),
            Err(error) => warn!(%error, "not started yet; retrying"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Keeps workers running, with a new session whenever the old one cannot be used any more.
pub(crate) struct Supervisor {
    pub(crate) sessions: Sessions,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) letters: DeadLetters,
    pub(crate) names: Arc<Names>,
    pub(crate) mark: Arc<Mark>,
    pub(crate) suspects: Arc<Suspects>,
    pub(crate) connections: watch::Receiver<u64>,
    /// The connection for pulls.
    pub(crate) pulls: Client,
    pub(crate) link: watch::Receiver<bool>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
    pub(crate) ack_wait: Duration,
}

impl Supervisor {
    /// Runs until `stop` is set and the workers have finished.
    pub(crate) async fn run(mut self, first: Session, mut stop: watch::Receiver<Option<Instant>>) {
        let mut next = Some(first);
        let mut pull_failed = false;
        loop {
            let session = match next.take() {
                Some(session) => session,
                None => tokio::select! {
                    session = self.session() => session,
                    () = stopped(&mut stop) => return,
                },
            };
            let session = Arc::new(session);
            let storage = Storage {
                ledger: Arc::clone(&self.ledger),
                letters: self.letters.clone(),
                mark: Arc::clone(&self.mark),
            };
            storage.begin(session.reading.source.current().incarnation).await;
            let (letters, health) = (self.letters.clone(), Arc::clone(&self.health));
            let watching = [
                age::watch(Arc::clone(&session), letters, health, &self.metrics),
                Arc::clone(&self.rooms).watch(Arc::clone(&session.streams)),
            ];
            let ended = self.work(&session, storage, &mut stop, pull_failed).await;
            pull_failed = matches!(ended, Some(IngestError::Pull(_)));
            for watch in watching {
                watch.abort();
            }
            match ended {
                None => return,
                Some(IngestError::Reconnected) => debug!("the session begins again after a reconnect"),
                Some(error) => {
                    warn!(%error, "the session ended; looking at the stream again");
                    tokio::time::sleep(PAUSES.0).await;
                }
            }
        }
    }

    async fn session(&mut self) -> Session {
        let mut pause = PAUSES.0;
        let mut complained = String::new();
        loop {
            self.connections.mark_unchanged();
            match self.sessions.begin().await {
                Ok(session) => {
                    if !complained.is_empty() {
                        info!("pulls events again");
                    }
                    return session;
                }
                Err(error) => {
                    let error = error.to_string();
                    if error != complained {
                        warn!(%error, "cannot pull events");
                        complained = error;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Runs the workers. Returns why they ended, or `None` after a stop.
    async fn work(
        &self,
        session: &Arc<Session>,
        storage: Storage,
        stop: &mut watch::Receiver<Option<Instant>>,
        pull_failed: bool,
    ) -> Option<IngestError> {
        let (finish, finishing) = watch::channel(false);
        let mut workers = JoinSet::new();
        let (retry_queue, receiver) = RetryQueue::new();
        let retry_loop = RetryLoop {
            storage: storage.clone(),
            ack_wait: self.ack_wait,
            metrics: Arc::clone(&self.metrics),
            stuck: retry_queue.stuck(),
            receiver,
        };
        let worker = Ingest {
            reading: Arc::clone(&session.reading),
            storage,
            retry_queue,
            suspects: Arc::clone(&self.suspects),
            names: Arc::clone(&self.names),
            metrics: Arc::clone(&self.metrics),
            ack_wait: self.ack_wait,
        };
        for _ in 0..WORKERS {
            let (connections, link) = (self.connections.clone(), self.link.clone());
            workers.spawn(worker.clone().run(Arc::clone(session), finishing.clone(), connections, link));
        }
        let (health, session) = (Arc::clone(&self.health), Arc::clone(session));
        let salvage = Salvage::new(worker, session, health, self.pulls.clone(), self.link.clone());
        workers.spawn(async move {
            salvage.run(finishing, pull_failed).await;
            Ok(())
        });
        // The retry loop ends after the workers, so that it can return their remaining events to
        // NATS.
        let mut retrying = tokio::spawn(retry_loop.run());
        let ended = tokio::select! {
            ended = workers.join_next() => Some(match ended {
                Some(Ok(Err(error))) => error,
                Some(Err(error)) => IngestError::Pull(error.to_string()),
                Some(Ok(Ok(()))) | None => IngestError::Pull("a worker has ended".to_owned()),
            }),
            ended = &mut retrying => Some(match ended {
                Ok(Err(refusal)) => refusal.into(),
                Err(error) => IngestError::Pull(error.to_string()),
                Ok(Ok(())) => IngestError::Pull("the retry loop has ended".to_owned()),
            }),
            () = stopped(stop) => None,
        };
        finish.send_replace(true);
        let finished = tokio::time::timeout(FINISH, async {
            while let Some(ended) = workers.join_next().await {
                if let Ok(Err(error)) = ended {
                    debug!(%error, "a worker ended");
                }
            }
            if !retrying.is_finished() {
                let _ = (&mut retrying).await;
            }
        });
        if finished.await.is_err() {
            debug!("a worker does not finish; NATS delivers its events again");
        }
        ended
    }
}
