//! Publishes dead letters in mode `Core`, on plain NATS: whoever subscribes gets them.

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

/// How many letters may wait to be published while NATS is away.
const CAPACITY: usize = 1_024;

/// How often to look whether NATS is back.
const RECONNECT_POLL: Duration = Duration::from_millis(250);

/// Where letters are handed in.
#[derive(Clone)]
pub(super) struct DeadLetters {
    letters: mpsc::Sender<Letter>,
    unpublished: Unpublished,
}

/// How many letters were handed in that the server is not known to have.
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
    /// Starts publishing on `dead-letters.{prefix}`. The handle ends once every clone of the other is
    /// dropped and every letter is out.
    pub(super) fn start(client: Client, prefix: &str, metrics: Arc<Metrics>) -> (Self, JoinHandle<()>) {
        let subject = subject(prefix);
        let (letters, waiting) = mpsc::channel::<Letter>(CAPACITY);
        let unpublished = Unpublished::default();
        let publishing = tokio::spawn(publish_all(client, subject, waiting, unpublished.clone(), metrics));
        (Self { letters, unpublished }, publishing)
    }

    /// The count of letters that are not out yet; it outlives the last handle.
    pub(super) fn unpublished(&self) -> Unpublished {
        self.unpublished.clone()
    }

    /// Letters that stay in the process, for tests of those who write them.
    #[cfg(test)]
    pub(super) fn kept(capacity: usize) -> (Self, mpsc::Receiver<Letter>) {
        let (letters, waiting) = mpsc::channel(capacity);
        (Self { letters, unpublished: Unpublished::default() }, waiting)
    }

    /// Hands in a letter; waits while too many are waiting.
    pub(super) async fn send(&self, letter: Letter) {
        self.unpublished.add();
        // The other end is gone only when the process ends.
        let _ = self.letters.send(letter).await;
    }
}

/// Publishes in batches: a letter counts as out when the server has answered a round trip after it. Where it
/// does not answer, the batch is published again, under the same ids: some of it may have been lost with
/// the connection.
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
