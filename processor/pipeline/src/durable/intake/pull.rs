//! Pulls events for [`Ingest`], as long as what is pulled can be stored. Decides nothing about events.

use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::Message;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use crate::durable::bucket::lanes::note_forged;
use crate::durable::clock::nanos;
use crate::durable::intake::ingest::{Arrival, Ingest, IngestError};
use crate::durable::limits;
use crate::durable::stream::session::Session;

/// How many events are pulled at a time: enough to fill the way to the ledger and back, few enough that four
/// replicas get a like share of a burst.
const PULL: usize = 256;

/// How long a pull waits for events. As long may a drain wait for what the server has handed out.
const PULL_EXPIRES: Duration = Duration::from_secs(1);

/// How often it is looked whether the connection to the ledger is there again.
const LOOK: Duration = Duration::from_millis(20);

impl Ingest {
    /// Pulls until `stop` turns true, and finishes what it has in hand.
    ///
    /// # Errors
    /// Where something is wrong with the connection, the stream or the ledger.
    pub(crate) async fn run(
        self,
        session: Arc<Session>,
        mut stop: watch::Receiver<bool>,
        mut connections: watch::Receiver<u64>,
        mut link: watch::Receiver<bool>,
    ) -> Result<(), IngestError> {
        let mut most = PULL;
        while !*stop.borrow() {
            tokio::select! {
                () = self.may_pull(&session, &mut link) => {}
                _ = stop.changed() => continue,
                _ = connections.changed() => return Err(IngestError::Reconnected),
            }
            let pulled = session
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
                        Ok(message) => messages.extend(self.arrival(message)),
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
    async fn may_pull(&self, session: &Session, link: &mut watch::Receiver<bool>) {
        self.retry_queue.may_fetch().await;
        let ledger = session.jetstream.client();
        while ledger.connection_state() != State::Connected {
            tokio::time::sleep(LOOK).await;
        }
        // A pull that is sent before its connection is told of would be given up when it is, with what it has brought.
        let _ = link.wait_for(|is_up| *is_up).await;
    }

    /// A message with what its subject says of its delivery; nothing, where it does not come from the consumer, and so has no
    /// subject for its ack.
    fn arrival(&self, message: Message) -> Option<Arrival> {
        let Ok(info) = message.info() else {
            note_forged(&self.metrics.forged_answers);
            return None;
        };
        let (sequence, time, deliveries) = (info.stream_sequence, nanos(info.published), info.delivered);
        let delivery = info.consumer_sequence;
        let (message, acker) = message.split();
        Some(Arrival { message, acker, sequence, time, deliveries, delivery })
    }
}
