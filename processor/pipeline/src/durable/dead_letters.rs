//! Publishes dead letters into their stream. Only after a letter is stored may its event be
//! acknowledged.

use std::sync::Arc;

use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;

use crate::dead_letters::{Letter, encode};
use crate::durable::bucket::lanes::note_forged;
use crate::durable::crash;
use crate::durable::names::Names;
use crate::telemetry::metrics::Metrics;

/// Why a letter is not stored. It can be stored again under the same id.
#[derive(Debug, thiserror::Error)]
#[error("cannot store a dead letter in {stream}: {reason}")]
pub(crate) struct LetterError {
    pub(crate) stream: String,
    pub(crate) reason: String,
}

/// Publishes dead letters and waits until they are stored.
#[derive(Clone)]
pub(crate) struct DeadLetters {
    jetstream: Context,
    names: Arc<Names>,
    metrics: Arc<Metrics>,
}

impl DeadLetters {
    pub(crate) fn new(jetstream: Context, names: Arc<Names>, metrics: Arc<Metrics>) -> Self {
        Self { jetstream, names, metrics }
    }

    /// The number of messages in the stream of dead letters, or `None` while NATS does not answer.
    ///
    /// A large letter counts for each of its parts.
    pub(crate) async fn count(&self) -> Option<u64> {
        let stream = self.jetstream.get_stream(&self.names.dead_letter_stream).await.ok()?;
        Some(stream.cached_info().state.messages)
    }

    /// Stores a letter. The server keeps only one copy if it arrives again within the duplicate
    /// window.
    pub(crate) async fn store(&self, letter: &Letter) -> Result<(), LetterError> {
        let failed = |reason: String| LetterError { stream: self.names.dead_letter_stream.clone(), reason };
        let most = self.jetstream.client().server_info().max_payload;
        let parts = encode(letter, most).map_err(|error| failed(error.to_string()))?;
        for (part, bytes) in parts.into_iter().enumerate() {
            let message = PublishMessage::build()
                .payload(bytes.into())
                .message_id(format!("{}/{part}", letter.id))
                .expected_stream(&self.names.dead_letter_stream);
            let subject = self.names.dead_letter_subject.clone();
            let sent = self.jetstream.send_publish(subject, message).await;
            let ack = sent.map_err(|error| failed(error.to_string()))?.await;
            let ack = ack.map_err(|error| failed(error.to_string()))?;
            // An ack may be forged, so its stream must match.
            if ack.stream != self.names.dead_letter_stream {
                note_forged(&self.metrics.forged_answers);
                return Err(failed(format!("the ack names the stream {:?}", ack.stream)));
            }
        }
        crash::point("dead-lettered");
        self.metrics.dead_letters.with_label_values(&[letter.reason.as_str()]).inc();
        Ok(())
    }
}
