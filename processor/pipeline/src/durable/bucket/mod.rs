//! The bucket of the ledger: reads, and writes by compare-and-set. Knows subjects and bytes, and
//! not their meaning.
pub(crate) mod lanes;
pub(crate) mod raw;
pub(crate) mod records;

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::{Message, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use prometheus::IntCounter;
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::raw::{Raw, RawError};
use crate::durable::bucket::lanes::{Lanes, Write, Writes};

/// The sequence of a record's last write in the stream of the bucket; 0 if there is no record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Revision(pub(crate) u64);

impl Revision {
    /// Higher than all others, for an unknown revision.
    pub(crate) fn last() -> Self {
        Self(u64::MAX)
    }

    /// The revision after this many more writes.
    pub(crate) fn plus(self, writes: u64) -> Self {
        Self(self.0.saturating_add(writes))
    }
}

/// The most subjects of one read. The limit of the server is 1,024.
const MOST_SUBJECTS: usize = 1_000;

/// The longest wait for the first and for each further message of an answer.
const NEXT_MESSAGE: Duration = Duration::from_secs(2);

/// A value, with its subject and revision.
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) revision: Revision,
    pub(crate) value: Bytes,
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The record has another revision.
    #[error("another replica has written the record")]
    Conflict,
    /// Not written. Another write of the record is on its way and may fail, so the record may have
    /// the expected revision.
    #[error("another replica is writing the record")]
    Busy,
    /// Not written: NATS has no room for the record, or does not allow the write.
    #[error("NATS refused the write: {0}")]
    Refused(String),
    /// Not written: no server has the bucket, or its leader is being elected.
    #[error("the bucket is missing in NATS, or has no leader at the moment")]
    Missing,
    /// The outcome is unknown.
    #[error("NATS did not confirm the write: {0}")]
    Unknown(String),
}

impl WriteError {
    /// Returns whether the write only lost against another write of the record: read and write
    /// again.
    pub(crate) fn is_contended(&self) -> bool {
        matches!(self, Self::Conflict | Self::Busy)
    }
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the ledger: {0}")]
pub(crate) struct ReadError(pub(crate) String);

fn record(read: Result<Option<Raw>, RawError>) -> Result<Option<Stored>, ReadError> {
    let stored = |Raw { subject, sequence, payload, .. }| Stored {
        subject,
        revision: Revision(sequence),
        value: payload,
    };
    read.map(|found| found.map(stored)).map_err(|error| ReadError(error.reason))
}

/// The bucket of the ledger.
#[derive(Clone)]
pub(crate) struct Bucket {
    jetstream: Context,
    stream: String,
    lanes: Lanes,
}

impl Bucket {
    /// `forged` counts messages that arrive as answers and answer nothing.
    pub(crate) fn new(jetstream: Context, stream: &str, forged: IntCounter) -> Self {
        let lanes = Lanes::new(jetstream.client(), stream, forged);
        Self { jetstream, stream: stream.to_owned(), lanes }
    }

    /// Writes a record only if its revision is `expected`.
    pub(crate) async fn compare_and_set(
        &self,
        subject: String,
        value: Vec<u8>,
        expected: Revision,
        time_to_live: Option<Duration>,
    ) -> Result<Revision, WriteError> {
        let mut writes = self.writes().await?;
        writes.send(Write { subject, value, expected: Some(expected), time_to_live }).await?;
        writes.only().await
    }

    /// Writes a record at any revision.
    pub(crate) async fn set(&self, subject: String, value: Vec<u8>) -> Result<Revision, WriteError> {
        let mut writes = self.writes().await?;
        writes.send(Write { subject, value, expected: None, time_to_live: None }).await?;
        writes.only().await
    }

    /// Starts writes that do not wait for each other.
    pub(crate) async fn writes(&self) -> Result<Writes, WriteError> {
        self.lanes.begin().await
    }

    /// Reads one record from the leader of the stream.
    pub(crate) async fn get(&self, subject: &str) -> Result<Option<Stored>, ReadError> {
        record(raw::last(&self.jetstream, &self.stream, subject).await)
    }

    /// Reads the record of this revision from the leader of the stream; `None` if it was replaced
    /// since.
    pub(crate) async fn get_at(&self, revision: Revision) -> Result<Option<Stored>, ReadError> {
        record(raw::at(&self.jetstream, &self.stream, revision.0).await)
    }

    /// The sequence of the newest write in the bucket.
    pub(crate) async fn newest(&self) -> Result<Revision, ReadError> {
        let stream =
            self.jetstream.get_stream(&self.stream).await.map_err(|error| ReadError(error.to_string()))?;
        Ok(Revision(stream.cached_info().state.last_sequence))
    }

    /// Reads all records of a subject with wildcards from the leader of the stream. For few
    /// records.
    pub(crate) async fn all(&self, subjects: &str) -> Result<Vec<Stored>, ReadError> {
        let failed = |error: &dyn std::error::Error| ReadError(error.to_string());
        let stream = self.jetstream.get_stream(&self.stream).await.map_err(|error| failed(&error))?;
        let mut names = stream.info_with_subjects(subjects).await.map_err(|error| failed(&error))?;
        let mut found = Vec::new();
        while let Some(name) = names.next().await {
            let (name, _) = name.map_err(|error| failed(&error))?;
            found.extend(self.get(&name).await?);
        }
        Ok(found)
    }

    /// Reads the records of these subjects, which may have wildcards. Missing records are left out.
    ///
    /// Any replica of the stream may answer, so the records may be slightly old.
    pub(crate) async fn get_many(&self, subjects: &[String]) -> Result<Vec<Stored>, ReadError> {
        let mut found = Vec::with_capacity(subjects.len());
        for some in subjects.chunks(MOST_SUBJECTS) {
            self.get_some(some, &mut found).await?;
        }
        Ok(found)
    }

    async fn get_some(&self, subjects: &[String], found: &mut Vec<Stored>) -> Result<(), ReadError> {
        let failed = |reason: String| ReadError(reason);
        let request = serde_json::to_vec(&json!({"multi_last": subjects, "batch": MOST_SUBJECTS}))
            .map_err(|error| failed(error.to_string()))?;
        let mut answers = self.lanes.request(format!("$JS.API.DIRECT.GET.{}", self.stream), request).await?;
        loop {
            let message = answers.next(NEXT_MESSAGE).await?;
            match message.status {
                None => found
                    .push(stored(message).ok_or_else(|| failed("the answer has no sequence".to_owned()))?),
                // The end of the batch, or no record was found.
                Some(status) if status.as_u16() == 204 || status == StatusCode::NOT_FOUND => {
                    answers.end();
                    return Ok(());
                }
                Some(status) => {
                    let description = message.description.unwrap_or_default();
                    return Err(failed(format!("{status} {description}")));
                }
            }
        }
    }
}

fn stored(message: Message) -> Option<Stored> {
    let headers = message.headers?;
    Some(Stored {
        subject: headers.get("Nats-Subject")?.to_string(),
        revision: Revision(headers.get("Nats-Sequence")?.as_str().parse().ok()?),
        value: message.payload,
    })
}
