//! The feed: the changes of the ledger after a revision, in order. Decides nothing.
//!
//! It delivers only the newest change of each task, as fast as the reader takes them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::pull::Config as PullConfig;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, ReplayPolicy};
use futures_util::StreamExt;
use prometheus::IntCounter;
use taskpipeline_contract::TaskId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use crate::durable::bucket::Revision;
use crate::durable::bucket::lanes::note_forged;
use crate::durable::ledger::cache::Known;
use crate::durable::ledger::record::Record;
use crate::durable::limits;
use crate::durable::names::Names;

/// The changes of one fetch. The next fetch starts before the reader has taken these.
const FETCH: usize = 1_000;

/// The interval of the server's heartbeats while there is nothing to fetch.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long the server keeps a feed that is not read.
const INACTIVE: Duration = Duration::from_secs(60);

/// The wait before a broken feed is created again, and the longest wait while that fails.
const PAUSE: Duration = Duration::from_millis(200);
const MOST_PAUSE: Duration = Duration::from_secs(2);

/// A record of a task as it was written.
pub(crate) struct Change {
    pub(crate) id: TaskId,
    pub(crate) known: Known,
    /// The number of changes after this one.
    pub(crate) behind: u64,
}

/// The changes of the ledger in order, with only the newest change of each task. The feed ends when
/// this is dropped.
pub(crate) struct Feed {
    changes: mpsc::Receiver<Change>,
    broken: Arc<Mutex<Option<String>>>,
    reading: JoinHandle<()>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Feed {
    /// Reads the changes after this revision. `forged` counts messages that do not come from the
    /// ledger.
    pub(crate) fn after(
        revision: Revision,
        jetstream: Context,
        names: Arc<Names>,
        connections: watch::Receiver<u64>,
        forged: IntCounter,
    ) -> Self {
        let (sender, changes) = mpsc::channel(FETCH);
        let broken = Arc::default();
        let reader = Reader {
            jetstream,
            names,
            connections,
            position: revision,
            most: FETCH,
            sender,
            broken: Arc::clone(&broken),
            forged,
        };
        Self { changes, broken, reading: tokio::spawn(reader.run()) }
    }

    /// Why the feed cannot be read, or `None` if it can.
    pub(crate) fn broken(&self) -> Option<String> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the next changes, at least one.
    pub(crate) async fn next(&mut self, into: &mut Vec<Change>, most: usize) {
        if self.changes.recv_many(into, most).await == 0 {
            // The reader never ends by itself.
            std::future::pending::<()>().await;
        }
    }
}

struct Reader {
    jetstream: Context,
    names: Arc<Names>,
    connections: watch::Receiver<u64>,
    position: Revision,
    /// The most changes of a fetch that the server allows.
    most: usize,
    sender: mpsc::Sender<Change>,
    broken: Arc<Mutex<Option<String>>>,
    forged: IntCounter,
}

impl Reader {
    async fn run(mut self) {
        let mut pause = PAUSE;
        loop {
            self.connections.mark_unchanged();
            let why = match self.consumer().await {
                Ok(consumer) => {
                    *self.broken() = None;
                    pause = PAUSE;
                    self.read(&consumer).await
                }
                Err(why) => {
                    pause = (pause * 2).min(MOST_PAUSE);
                    self.note(&why);
                    why
                }
            };
            if let Some(allowed) = limits::largest_pull(&why).filter(|allowed| *allowed < self.most) {
                info!(allowed, "NATS allows smaller reads of the ledger only (max_request_batch)");
                self.most = allowed;
            }
            debug!(from = self.position.0, reason = %why, "subscribing to the ledger again");
            tokio::time::sleep(pause).await;
        }
    }

    fn broken(&self) -> MutexGuard<'_, Option<String>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs a reason once while it stays the same.
    fn note(&self, why: &str) {
        let mut broken = self.broken();
        if broken.as_deref() != Some(why) {
            warn!(error = why, "cannot read the changes of the ledger; retrying");
        }
        *broken = Some(why.to_owned());
    }

    async fn consumer(&self) -> Result<PullConsumer, String> {
        let config = PullConfig {
            description: Some("The projector's feed".to_owned()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.position.0 + 1 },
            ack_policy: AckPolicy::None,
            filter_subject: self.names.tasks(),
            replay_policy: ReplayPolicy::Instant,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..PullConfig::default()
        };
        let made = self.jetstream.create_consumer_on_stream(config, &self.names.ledger_stream).await;
        made.map_err(|error| error.to_string())
    }

    /// Reads until the feed breaks, and returns the reason.
    async fn read(&mut self, consumer: &PullConsumer) -> String {
        let fetching =
            consumer.stream().max_messages_per_batch(self.most).heartbeat(HEARTBEAT).messages().await;
        let mut fetched = match fetching {
            Ok(fetched) => fetched,
            Err(error) => return error.to_string(),
        };
        let mut expected = 1;
        loop {
            let message = tokio::select! {
                biased;
                message = fetched.next() => message,
                _ = self.connections.changed() => return "reconnected to NATS".to_owned(),
            };
            let message = match message {
                Some(Ok(message)) => message,
                Some(Err(error)) => return error.to_string(),
                None => return "the server ended the feed".to_owned(),
            };
            // A message that does not come from the consumer has no subject for its ack.
            let Ok(info) = message.info() else {
                note_forged(&self.forged);
                continue;
            };
            // Without acks, only the sequence shows that a message was lost.
            if info.consumer_sequence != expected {
                return format!("change {expected} is missing");
            }
            expected += 1;
            let (revision, behind) = (Revision(info.stream_sequence), info.pending);
            if let Some(change) = self.decode(&message.subject, &message.payload, revision, behind)
                && self.sender.send(change).await.is_err()
            {
                return "the feed has no reader".to_owned();
            }
            self.position = revision;
        }
    }

    fn decode(&self, subject: &str, payload: &[u8], revision: Revision, behind: u64) -> Option<Change> {
        let Some(id) = self.names.task_of(subject) else {
            warn!(%subject, "a record in the ledger does not belong to a task; it is left alone");
            return None;
        };
        if payload.is_empty() {
            debug!(%subject, "a record of the ledger was deleted");
            return None;
        }
        match serde_json::from_slice::<Record>(payload) {
            Ok(record) => {
                let known = Known { record: Arc::new(record), revision };
                Some(Change { id, known, behind })
            }
            Err(error) => {
                error!(%subject, %error, "cannot read a record of the ledger; it is left alone");
                None
            }
        }
    }
}
