//! Publishes dead letters into their stream, and answers when they are stored there: only then may an event
//! be settled.

use std::sync::Arc;

use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use taskpipeline_contract::TaskId;

use crate::dead_letters::{Letter, Origin, encode};
use crate::durable::bucket::Stored;
use crate::durable::bucket::lanes::note_forged;
use crate::durable::clock::now;
use crate::durable::clock::timestamp;
use crate::durable::crash;
use crate::durable::ledger::cache::Known;
use crate::durable::names::Names;
use crate::reason::Reason;
use crate::telemetry::metrics::Metrics;

/// Why a letter is not stored; it may be tried again under the same id.
#[derive(Debug, thiserror::Error)]
#[error("a dead letter cannot be stored in {stream}: {reason}")]
pub(crate) struct LetterError {
    pub(crate) stream: String,
    pub(crate) reason: String,
}

impl Letter {
    /// For a task that cannot be written as the ledger has it. No one event is to blame, so there is no
    /// payload, but the task and the versions of the events it was made of.
    pub(crate) fn of_task(
        names: &Names,
        id: &TaskId,
        known: &Known,
        reason: Reason,
        detail: &str,
        attempts: u32,
    ) -> Self {
        let group = &names.queue_group;
        Self {
            id: format!("{group}-task-{}", known.revision.0),
            reason,
            detail: detail.to_owned(),
            faults: Vec::new(),
            attempts,
            subject: names.task(id),
            received_at: known.record.last.value.at,
            headers: None,
            header_block: None,
            payload: Bytes::new(),
            origin: Origin {
                version: Some(known.record.last.version),
                queue_group: Some(group.clone()),
                task_id: Some(id.clone()),
                task: known.record.task.visible(id),
                sources: known.record.task.sources(),
                ..Origin::default()
            },
        }
    }
}

impl Letter {
    /// For a task's record that something else has written over, so that it cannot be read.
    pub(crate) fn of_record(names: &Names, id: &TaskId, stored: &Stored, detail: &str) -> Self {
        let group = &names.queue_group;
        Self {
            id: format!("{group}-record-{}", stored.revision.0),
            reason: Reason::UnreadableInLedger,
            detail: detail.to_owned(),
            faults: Vec::new(),
            attempts: 1,
            subject: stored.subject.clone(),
            received_at: timestamp(now().saturating_mul(1_000_000)),
            headers: None,
            header_block: None,
            payload: stored.value.clone(),
            origin: Origin {
                queue_group: Some(group.clone()),
                task_id: Some(id.clone()),
                ..Origin::default()
            },
        }
    }
}

/// See the module's head.
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

    /// How many messages their stream holds, which are as many as the letters but for large ones in parts; nothing
    /// while NATS does not say.
    pub(crate) async fn count(&self) -> Option<u64> {
        let stream = self.jetstream.get_stream(&self.names.dead_letter_stream).await.ok()?;
        Some(stream.cached_info().state.messages)
    }

    /// Stores a letter; the server takes it once, however often it comes within its window of duplicates.
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
            // Of what is published elsewhere, an ack may be forged.
            if ack.stream != self.names.dead_letter_stream {
                note_forged(&self.metrics.forged_answers);
                return Err(failed(format!("an ack of the stream {:?}", ack.stream)));
            }
        }
        crash::point("dead-lettered");
        self.metrics.dead_letters.with_label_values(&[letter.reason.as_str()]).inc();
        Ok(())
    }
}
