//! The bucket under the ledger: reads, and writes by compare-and-set. Knows subjects and bytes, nothing of what
//! they mean.
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

/// The sequence of a record's last write in the bucket's stream; 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Revision(pub(crate) u64);

impl Revision {
    /// Above all others: of what is not known.
    pub(crate) fn last() -> Self {
        Self(u64::MAX)
    }

    /// So many writes later.
    pub(crate) fn plus(self, writes: u64) -> Self {
        Self(self.0.saturating_add(writes))
    }
}

/// The most subjects of one read (the server's limit is 1,024).
const MOST_SUBJECTS: usize = 1_000;

/// How long the server may take to begin, and to go on, with an answer of many messages.
const NEXT_MESSAGE: Duration = Duration::from_secs(2);

/// A value and the revision it was written as.
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) revision: Revision,
    pub(crate) value: Bytes,
}

/// Why a write did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The record is not what it was.
    #[error("another replica has written the record")]
    Conflict,
    /// It was not written. Another write of the record is on its way, which may fail: the record may be what it was.
    #[error("another replica is writing the record")]
    Busy,
    /// It was not written: NATS has no room for it, or does not allow it.
    #[error("NATS refused the write: {0}")]
    Refused(String),
    /// It was not written: no server has the bucket, or its leader is being elected.
    #[error("the bucket is missing in NATS, or has no leader at the moment")]
    Missing,
    /// It may have been written or not.
    #[error("NATS did not confirm the write: {0}")]
    Unknown(String),
}

impl WriteError {
    /// Whether it was only that others write the same record: to be read again and tried again.
    pub(crate) fn is_contended(&self) -> bool {
        matches!(self, Self::Conflict | Self::Busy)
    }
}

/// Why nothing could be read.
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

/// The ledger's bucket: reads, and writes by compare-and-set.
#[derive(Clone)]
pub(crate) struct Bucket {
    jetstream: Context,
    stream: String,
    lanes: Lanes,
}

impl Bucket {
    /// `forged` counts what came in place of an answer.
    pub(crate) fn new(jetstream: Context, stream: &str, forged: IntCounter) -> Self {
        let lanes = Lanes::new(jetstream.client(), stream, forged);
        Self { jetstream, stream: stream.to_owned(), lanes }
    }

    /// Writes a record only where its revision is `expected`.
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

    /// Writes a record whatever it is.
    pub(crate) async fn set(&self, subject: String, value: Vec<u8>) -> Result<Revision, WriteError> {
        let mut writes = self.writes().await?;
        writes.send(Write { subject, value, expected: None, time_to_live: None }).await?;
        writes.only().await
    }

    /// Begins writes that do not wait for each other.
    pub(crate) async fn writes(&self) -> Result<Writes, WriteError> {
        self.lanes.begin().await
    }

    /// Reads one record as the stream's leader has it.
    pub(crate) async fn get(&self, subject: &str) -> Result<Option<Stored>, ReadError> {
        record(raw::last(&self.jetstream, &self.stream, subject).await)
    }

    /// Reads the record that was written at this revision, as the stream's leader has it; nothing, if it was replaced since.
    pub(crate) async fn get_at(&self, revision: Revision) -> Result<Option<Stored>, ReadError> {
        record(raw::at(&self.jetstream, &self.stream, revision.0).await)
    }

    /// The sequence of the bucket's newest write.
    pub(crate) async fn newest(&self) -> Result<Revision, ReadError> {
        let stream =
            self.jetstream.get_stream(&self.stream).await.map_err(|error| ReadError(error.to_string()))?;
        Ok(Revision(stream.cached_info().state.last_sequence))
    }

    /// Reads all records under a subject with wildcards as the stream's leader has them. For few records.
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

    /// Reads the records of these subjects, which may have wildcards; those that are not there are missing in
    /// the answer. A replica of the stream may answer that is a little behind.
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
        let mut answers = self.lanes.ask(format!("$JS.API.DIRECT.GET.{}", self.stream), request).await?;
        loop {
            let message = answers.next(NEXT_MESSAGE).await?;
            match message.status {
                None => found
                    .push(stored(message).ok_or_else(|| failed("an answer without a sequence".to_owned()))?),
                // The end of the batch, or nothing found at all.
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
