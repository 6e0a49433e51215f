//! Pulls events for [`Ingest`] while they can be stored. Decides nothing about events.

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

/// The events of one pull: enough to fill the time of a write to the ledger, and few enough that
/// four replicas share a burst evenly.
const PULL: usize = 256;

/// How long a pull waits for events. A drain may also wait this long for events that the server has
/// handed out.
const PULL_EXPIRES: Duration = Duration::from_secs(1);

/// The interval between two checks whether the connection to the ledger is back.
const LOOK: Duration = Duration::from_millis(20);

impl Ingest {
    /// Pulls until `stop` is true, and finishes the events in flight.
    ///
    /// # Errors
    /// If the connection, the stream or the ledger fails.
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
            // Takes all events that have arrived together; a single event does not wait for others.
            let mut chunks = pulled.ready_chunks(PULL);
            loop {
                let chunk = tokio::select! {
                    biased;
                    chunk = chunks.next() => chunk,
                    // All that came over the old connection is taken. This pull brings no more
                    // events.
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

    /// Waits until pulled events can be stored. The connection for pulls may be up before the other
    /// one.
    async fn may_pull(&self, session: &Session, link: &mut watch::Receiver<bool>) {
        self.retry_queue.may_fetch().await;
        let ledger = session.jetstream.client();
        while ledger.connection_state() != State::Connected {
            tokio::time::sleep(LOOK).await;
        }
        // The replica gives up a pull, with its events, when it learns of a new connection. So wait
        // for that first.
        let _ = link.wait_for(|is_up| *is_up).await;
    }

    /// Adds the data of the delivery from the reply subject of a message.
    ///
    /// Returns `None` if the message is not from the consumer, and so has no subject for its ack.
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
