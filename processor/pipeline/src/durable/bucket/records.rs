//! Records that are written by compare-and-set: in the bucket of the ledger, or in that of a
//! simulation.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::durable::bucket::{Bucket, ReadError, Revision, Stored, WriteError};
use crate::durable::clock::{self, Clock};

/// The operations of a bucket that all records need.
pub(crate) trait Records: Clock + Clone + Send + Sync + 'static {
    /// Reads a record from the leader of the stream.
    fn get(&self, subject: &str) -> impl Future<Output = Result<Option<Stored>, ReadError>> + Send;

    /// Writes a record only if its revision is `expected`. It lives for `time_to_live`; `None`
    /// means indefinitely.
    fn compare_and_set(
        &self,
        subject: String,
        value: Vec<u8>,
        expected: Revision,
        time_to_live: Option<Duration>,
    ) -> impl Future<Output = Result<Revision, WriteError>> + Send;
}

impl Records for Bucket {
    async fn get(&self, subject: &str) -> Result<Option<Stored>, ReadError> {
        Self::get(self, subject).await
    }

    async fn compare_and_set(
        &self,
        subject: String,
        value: Vec<u8>,
        expected: Revision,
        time_to_live: Option<Duration>,
    ) -> Result<Revision, WriteError> {
        Self::compare_and_set(self, subject, value, expected, time_to_live).await
    }
}

impl Clock for Bucket {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> i64 {
        clock::now()
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn dice(&self) -> f64 {
        rand::random()
    }
}
