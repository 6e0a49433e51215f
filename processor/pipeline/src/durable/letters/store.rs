//! Reads and deletes letters in the stream of dead letters. Decides nothing.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use futures_util::StreamExt;
use taskpipeline_contract::Timestamp;

use super::entry::{Entry, Index, decoded, parse};
use crate::dead_letters::Envelope;
use crate::durable::clock::nanos;
use crate::durable::clock::timestamp;
use crate::durable::limits;
use crate::durable::names::Names;

/// The most messages of one read.
const BATCH: usize = 256;

/// The most bytes of one read, or of two messages if these may be larger.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// How long the server may take for one read.
const BATCH_TIME: Duration = Duration::from_secs(5);

/// Why letters cannot be read or deleted.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The stream cannot be read.
    #[error("cannot read the stream {stream}: {reason}")]
    Read {
        /// The name of the stream.
        stream: String,
        /// The error of the client.
        reason: String,
    },
    /// A message cannot be read.
    #[error("cannot read message {sequence} of {stream}: {reason}")]
    Message {
        /// The stream of the message.
        stream: String,
        /// The sequence of the message.
        sequence: u64,
        /// The error of the client.
        reason: String,
    },
    /// A message cannot be deleted.
    #[error("cannot delete message {sequence} of {stream}: {reason}")]
    Delete {
        /// The stream of the message.
        stream: String,
        /// The sequence of the message.
        sequence: u64,
        /// The error of the client.
        reason: String,
    },
}

/// A letter with its whole contents.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) sequences: Vec<u64>,
    pub(super) stored: Timestamp,
    /// The numbers of the missing parts.
    pub(super) missing: Vec<usize>,
    /// The envelope; `None` if this version cannot read the message as a letter.
    pub(super) envelope: Option<Envelope>,
    /// The original bytes without missing parts, or the whole message without an envelope.
    pub(super) payload: Vec<u8>,
}

/// Reads and deletes letters in the stream of dead letters.
pub(super) struct Store {
    jetstream: Context,
    /// The name of the stream. `stream`: `None` if there is no such stream.
    name: String,
    stream: Option<Stream>,
    subject: String,
}

impl Store {
    /// Looks up the stream. The first replica creates it, not this command.
    pub(super) async fn open(jetstream: Context, names: &Names) -> Result<Self, StoreError> {
        let name = names.dead_letter_stream.clone();
        let stream = match jetstream.get_stream(&name).await {
            Ok(stream) => Some(stream),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    None
                }
                _ => return Err(StoreError::Read { stream: name, reason: error.to_string() }),
            },
        };
        Ok(Self { jetstream, name, stream, subject: names.dead_letter_subject.clone() })
    }

    /// Returns whether the stream exists.
    pub(super) fn exists(&self) -> bool {
        self.stream.is_some()
    }

    /// All letters in the stream, in the order in which they were stored.
    pub(super) async fn scan(&self) -> Result<Vec<Entry>, StoreError> {
        let Some(stream) = &self.stream else { return Ok(Vec::new()) };
        let failed = |reason: String| StoreError::Read { stream: self.name.clone(), reason };
        let consumer = stream
            .create_consumer(pull::Config {
                description: Some("taskpipeline dead-letters".to_owned()),
                // Without other messages that somebody may let this stream capture.
                filter_subject: self.subject.clone(),
                ack_policy: AckPolicy::None,
                memory_storage: true,
                num_replicas: 1,
                inactive_threshold: Duration::from_secs(30),
                ..pull::Config::default()
            })
            .await
            .map_err(|error| failed(error.to_string()))?;
        let mut index = Index::default();
        let mut left = consumer.cached_info().num_pending;
        let mut taken = 0;
        let most_bytes = BATCH_BYTES.max(2 * self.jetstream.client().server_info().max_payload);
        let mut most = BATCH;
        while left > 0 {
            let mut batch = consumer
                .batch()
                .max_messages(most)
                .max_bytes(most_bytes)
                .expires(BATCH_TIME)
                .messages()
                .await
                .map_err(|error| failed(error.to_string()))?;
            let (before, asked) = (taken, most);
            while left > 0 {
                let Some(message) = batch.next().await else { break };
                let message = match message {
                    Ok(message) => message,
                    Err(error) => match limits::largest_pull(&error.to_string()) {
                        Some(allowed) if allowed < most => {
                            most = allowed;
                            break;
                        }
                        _ => return Err(failed(error.to_string())),
                    },
                };
                let info = message.info().map_err(|error| failed(error.to_string()))?;
                taken += 1;
                // Without acks, messages that were on their way when a connection broke do not come
                // again.
                if info.consumer_sequence != taken {
                    return Err(failed("messages were lost on the way; try again".to_owned()));
                }
                index.add(info.stream_sequence, timestamp(nanos(info.published)), &message.payload);
                left = info.pending;
            }
            if taken == before && most == asked {
                // Somebody else may have deleted them meanwhile.
                let info = consumer.get_info().await.map_err(|error| failed(error.to_string()))?;
                if info.num_pending > 0 {
                    return Err(failed(format!("no answer within {} s", BATCH_TIME.as_secs())));
                }
                left = 0;
            }
        }
        // It would expire by itself, but until then it would confuse people who look at the
        // consumers of the server.
        let _ = stream.delete_consumer(&consumer.cached_info().name).await;
        Ok(index.into_entries())
    }

    /// Reads a whole letter.
    pub(super) async fn open_letter(&self, entry: &Entry) -> Result<Opened, StoreError> {
        let mut opened = Opened {
            sequences: entry.sequences(),
            stored: entry.stored,
            missing: entry.missing(),
            envelope: None,
            payload: Vec::new(),
        };
        for sequence in entry.parts.values().filter_map(|sequences| sequences.first()) {
            let bytes = self.message(*sequence).await?;
            let Some(mut envelope) = parse(&bytes) else {
                opened.payload = bytes;
                break;
            };
            let damaged = || self.message_error(*sequence, "its payload is not base64".to_owned());
            opened.payload.append(&mut decoded(&envelope).ok_or_else(damaged)?);
            envelope.payload = String::new();
            // The first part has the headers.
            opened.envelope.get_or_insert(envelope);
        }
        // Large headers are in the payload. If parts are missing, they cannot be separated from it.
        if let Some(envelope) = &mut opened.envelope {
            envelope.take_headers(&mut opened.payload);
        }
        Ok(opened)
    }

    /// Deletes all messages of a letter, the last first.
    ///
    /// If this is interrupted, the remaining messages still have the first part, with the headers.
    pub(super) async fn delete(&self, entry: &Entry) -> Result<(), StoreError> {
        let Some(stream) = &self.stream else { return Ok(()) };
        for sequence in entry.sequences().into_iter().rev() {
            let Err(error) = stream.delete_message(sequence).await else { continue };
            // Somebody else may have deleted the message first.
            match stream.get_raw_message(sequence).await {
                Err(gone) if matches!(gone.kind(), RawMessageErrorKind::NoMessageFound) => {}
                _ => {
                    let (stream, reason) = (self.name.clone(), error.to_string());
                    return Err(StoreError::Delete { stream, sequence, reason });
                }
            }
        }
        Ok(())
    }

    async fn message(&self, sequence: u64) -> Result<Vec<u8>, StoreError> {
        let Some(stream) = &self.stream else {
            return Err(self.message_error(sequence, "the stream does not exist".to_owned()));
        };
        match stream.get_raw_message(sequence).await {
            Ok(message) => Ok(message.payload.into()),
            Err(error) => Err(self.message_error(sequence, error.to_string())),
        }
    }

    fn message_error(&self, sequence: u64, reason: String) -> StoreError {
        StoreError::Message { stream: self.name.clone(), sequence, reason }
    }
}
