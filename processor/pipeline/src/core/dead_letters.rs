//! Publishes dead letters in mode `Core`, on plain NATS, for all subscribers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::dead_letters::{Letter, encode, subject};
use crate::round_trip::round_trip;
use crate::telemetry::metrics::Metrics;

/// The most letters that wait to be published while NATS is unreachable.
const CAPACITY: usize = 1_024;

/// How often to check whether NATS is reachable again.
const RECONNECT_POLL: Duration = Duration::from_millis(250);

/// The handle to publish letters.
#[derive(Clone)]
pub(super) struct DeadLetters {
    letters: mpsc::Sender<Letter>,
    unpublished: Unpublished,
}

/// The number of letters that the server may not have yet.
#[derive(Clone, Default)]
pub(super) struct Unpublished(Arc<AtomicUsize>);

impl Unpublished {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, count: usize) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }
}

impl DeadLetters {
    /// Starts publishing on `dead-letters.{prefix}`.
    ///
    /// The join handle ends after every clone of the other handle is dropped and every letter is
    /// published.
    pub(super) fn start(client: Client, prefix: &str, metrics: Arc<Metrics>) -> (Self, JoinHandle<()>) {
        let subject = subject(prefix);
        let (letters, waiting) = mpsc::channel::<Letter>(CAPACITY);
        let unpublished = Unpublished::default();
        let publishing = tokio::spawn(publish_all(client, subject, waiting, unpublished.clone(), metrics));
        (Self { letters, unpublished }, publishing)
    }

    /// The count of unpublished letters. It outlives the last handle.
    pub(super) fn unpublished(&self) -> Unpublished {
        self.unpublished.clone()
    }

    /// A handle whose letters stay in the process, for tests of its users.
    #[cfg(test)]
    pub(super) fn kept(capacity: usize) -> (Self, mpsc::Receiver<Letter>) {
        let (letters, waiting) = mpsc::channel(capacity);
        (Self { letters, unpublished: Unpublished::default() }, waiting)
    }

    /// Queues a letter. Waits while the queue is full.
    pub(super) async fn send(&self, letter: Letter) {
        self.unpublished.add();
        // The receiver is gone only when the process ends.
        let _ = self.letters.send(letter).await;
    }
}

/// Publishes letters in batches. A letter counts as published after the server has answered a round
/// trip.
///
/// Without that answer the batch is published again, under the same ids, because some of it may
/// have been lost with the connection.
async fn publish_all(
    client: Client,
    subject: String,
    mut waiting: mpsc::Receiver<Letter>,
    unpublished: Unpublished,
    metrics: Arc<Metrics>,
) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, CAPACITY).await > 0 {
        loop {
            for letter in &batch {
                if let Err(error) = publish(&client, &subject, letter).await {
                    error!(%error, "cannot publish a dead letter");
                }
            }
            match round_trip(&client).await {
                Ok(()) => break,
                Err(error) => warn!(count = unpublished.count(), %error, "dead letters wait for NATS"),
            }
            while client.connection_state() != State::Connected {
                tokio::time::sleep(RECONNECT_POLL).await;
            }
        }
        unpublished.remove(batch.len());
        for letter in batch.drain(..) {
            metrics.dead_letters.with_label_values(&[letter.reason.as_str()]).inc();
        }
    }
}

async fn publish(client: &Client, subject: &str, letter: &Letter) -> Result<(), String> {
    let most = client.server_info().max_payload;
    for bytes in encode(letter, most).map_err(|error| error.to_string())? {
        client.publish(subject.to_owned(), bytes.into()).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}
