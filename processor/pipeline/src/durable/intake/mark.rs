//! The mark: the high water of a replica in the bucket of the ledger, recorded before the ledger
//! takes the events.
//!
//! The mark belongs to the replica, not to a worker, and only rises. Neither a redelivery nor a
//! slower worker lowers it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::durable::bucket::records::Records;
use crate::durable::bucket::{Bucket, ReadError, Revision, WriteError};
use crate::durable::names::Names;
use crate::durable::stream::incarnation::HighWater;

/// The most attempts to write a mark that somebody else has changed.
const MOST_TRIES: usize = 5;

/// Why a mark is not recorded. A later attempt may succeed.
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
    /// The highest high water that a worker has requested.
    wanted: Mutex<Option<HighWater>>,
    /// The recorded mark. The worker that holds the lock writes.
    recorded: tokio::sync::Mutex<Recorded>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Recorded {
    high: Option<HighWater>,
    /// `None` if it must be read first.
    revision: Option<Revision>,
}

impl<S: Records> Mark<S> {
    pub(crate) fn new(bucket: S, names: &Names, replica: &str) -> Arc<Self> {
        let subject = names.high_water(replica);
        Arc::new(Self { bucket, subject, wanted: Mutex::default(), recorded: tokio::sync::Mutex::default() })
    }

    /// Waits until a mark of at least this height is recorded. Workers that call this during a
    /// write share the next write.
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

    /// Starts a session in this incarnation.
    ///
    /// The bucket may have been restored from an older state, or the mark deleted. So the next mark
    /// is written in any case, and not below an earlier one of this incarnation. A new ledger
    /// counts incarnations from 1 again, so marks of other incarnations do not count.
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
                    // A deleted or unreadable mark is only replaced.
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
        // If the answer is lost, the mark must be read again.
        recorded.revision = None;
        let revision = self.bucket.compare_and_set(self.subject.clone(), value, revision, None).await?;
        *recorded = Recorded { high: Some(high), revision: Some(revision) };
        Ok(())
    }
}
