//! Reads messages of a stream with their headers as stored. The usual way of the client fails if it
//! cannot read the headers.

use async_nats::HeaderMap;
use async_nats::jetstream::{Context, ErrorCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::durable::clock::nanos;
use crate::header_block::{self, HeaderFault};

/// Why a message cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read a message of the stream {stream}: {reason}")]
pub(crate) struct RawError {
    stream: String,
    pub(crate) reason: String,
}

/// A message as NATS stores it.
pub(crate) struct Raw {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    /// When the stream stored it, in ns since 1970.
    pub(crate) time: i64,
    /// Its header block, if it has one.
    pub(crate) block: Option<Bytes>,
    pub(crate) payload: Bytes,
}

impl Raw {
    /// Parses the headers as the client would.
    pub(crate) fn headers(&self) -> Result<Option<HeaderMap>, HeaderFault> {
        self.block.as_deref().map(header_block::read).transpose()
    }
}

/// The message with this sequence, or `None` if the stream does not have it.
pub(crate) async fn at(jetstream: &Context, stream: &str, sequence: u64) -> Result<Option<Raw>, RawError> {
    read(jetstream, stream, &json!({"seq": sequence})).await
}

/// The first message with at least this sequence.
pub(crate) async fn next(jetstream: &Context, stream: &str, sequence: u64) -> Result<Option<Raw>, RawError> {
    read(jetstream, stream, &json!({"seq": sequence, "next_by_subj": ">"})).await
}

/// The last message of this subject.
pub(crate) async fn last(jetstream: &Context, stream: &str, subject: &str) -> Result<Option<Raw>, RawError> {
    read(jetstream, stream, &json!({"last_by_subj": subject})).await
}

#[derive(Deserialize)]
struct Answer {
    message: Option<Stored>,
    error: Option<async_nats::jetstream::Error>,
}

#[derive(Deserialize)]
struct Stored {
    subject: String,
    seq: u64,
    time: String,
    /// Base64, like the payload.
    hdrs: Option<String>,
    #[serde(default)]
    data: String,
}

async fn read(jetstream: &Context, stream: &str, query: &Value) -> Result<Option<Raw>, RawError> {
    let failed = |reason: String| RawError { stream: stream.to_owned(), reason };
    let answer: Answer = jetstream
        .request(format!("STREAM.MSG.GET.{stream}"), query)
        .await
        .map_err(|error| failed(error.to_string()))?;
    match answer {
        Answer { message: Some(stored), .. } => decode(stored).map(Some).map_err(failed),
        Answer { error: Some(error), .. } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
        Answer { error: Some(error), .. } => Err(failed(error.to_string())),
        Answer { .. } => Err(failed("an empty answer".to_owned())),
    }
}

fn decode(stored: Stored) -> Result<Raw, String> {
    let Stored { subject, seq, time, hdrs, data } = stored;
    let bytes = |base64: String| BASE64.decode(base64).map(Bytes::from).map_err(|error| error.to_string());
    let time = OffsetDateTime::parse(&time, &Rfc3339).map_err(|error| error.to_string())?;
    Ok(Raw {
        subject,
        sequence: seq,
        time: nanos(time),
        block: hdrs.map(bytes).transpose()?,
        payload: bytes(data)?,
    })
}
