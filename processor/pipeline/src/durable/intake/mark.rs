//! How far a replica has read, recorded in the ledger's bucket before the ledger takes what was read. The mark is the
//! replica's, not a worker's, and only rises: a redelivery, or a worker that is slower than another, does not lower it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::durable::bucket::records::Records;
use crate::durable::bucket::{Bucket, ReadError, Revision, WriteError};
use crate::durable::names::Names;
use crate::durable::stream::incarnation::HighWater;

/// How often a mark that something else has changed is read and written again.
const MOST_TRIES: usize = 5;

/// Why a mark is not recorded; it may be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MarkError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("cannot record the high water of this replica: {0}")]
    Write(#[from] WriteError),
}

/// The recorded high water of a replica, which only rises. One for all workers of a replica.
pub(crate) struct Mark<S = Bucket> {
    bucket: S,
    subject: String,
    /// The highest that any worker has asked for.
    wanted: Mutex<Option<HighWater>>,
    /// What is recorded; whoever holds it writes.
    recorded: tokio::sync::Mutex<Recorded>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Recorded {
    high: Option<HighWater>,
    /// Nothing where it has to be read first.
    revision: Option<Revision>,
}

impl<S: Records> Mark<S> {
    pub(crate) fn new(bucket: S, names: &Names, replica: &str) -> Arc<Self> {
        let subject = names.high_water(replica);
        Arc::new(Self { bucket, subject, wanted: Mutex::default(), recorded: tokio::sync::Mutex::default() })
    }

    /// Returns when a mark is recorded that is at least as high. Workers that ask while a write is under way share the
    /// next one.
    pub(crate) async fn raise(&self, high: HighWater) -> Result<(), MarkError> {
        self.want(high);
        let mut recorded = self.recorded.lock().await;
        for _ in 0..MOST_TRIES {
            if recorded.high.is_some_and(|known| known.is_at_least(high)) {
                return Ok(());
            }
            match self.write(&mut recorded).await {
                Err(MarkError::Write(error)) if error.is_contended() => recorded.revision = None,
                written => return written,
            }
        }
        Err(WriteError::Conflict.into())
    }

    /// A session begins in this life of the stream. The bucket may have been thrown back, or the mark cleared away: the
    /// next one is written in any case, and not below what was reached before. In a new ledger lives are counted from 1
    /// again, so what was reached in another life does not count.
    pub(crate) async fn begin(&self, incarnation: u32) {
        *self.recorded.lock().await = Recorded::default();
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        *wanted = wanted.filter(|high| high.incarnation == incarnation);
    }

    fn want(&self, high: HighWater) -> HighWater {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let highest = wanted.filter(|wanted| wanted.is_at_least(high)).unwrap_or(high);
        *wanted = Some(highest);
        highest
    }

    async fn write(&self, recorded: &mut Recorded) -> Result<(), MarkError> {
        let revision = match recorded.revision {
            Some(revision) => revision,
            None => match self.bucket.get(&self.subject).await? {
                Some(stored) => {
                    // One that was cleared away, or cannot be read, only has to be replaced.
                    if let Ok(high) = serde_json::from_slice(&stored.value) {
                        self.want(high);
                    }
                    stored.revision
                }
                None => Revision::default(),
            },
        };
        let Some(high) = *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) else { return Ok(()) };
        let value = serde_json::to_vec(&high).map_err(|error| WriteError::Unknown(error.to_string()))?;
        // Should the answer get lost, it has to be read what the mark is now.
        recorded.revision = None;
        let revision = self.bucket.compare_and_set(self.subject.clone(), value, revision, None).await?;
        *recorded = Recorded { high: Some(high), revision: Some(revision) };
        Ok(())
    }
}
