//! What a control record is kept in, and the clocks it is kept by: the ledger's bucket, or that of a simulation.

use std::future::Future;

use tokio::time::Instant;

use crate::durable::bucket::{Bucket, ReadError, Revision, Stored, WriteError};
use crate::durable::clock::now;

/// See the module's head.
pub(crate) trait Register: Clone + Send + Sync + 'static {
    /// Reads a record.
    fn get(&self, subject: &str) -> impl Future<Output = Result<Option<Stored>, ReadError>> + Send;

    /// Reads all records under a subject with wildcards.
    fn all(&self, subjects: &str) -> impl Future<Output = Result<Vec<Stored>, ReadError>> + Send;

    /// The revision of the newest write of any record.
    fn newest(&self) -> impl Future<Output = Result<Revision, ReadError>> + Send;

    /// Writes a record only where its revision is `expected`.
    fn compare_and_set(
        &self,
        subject: String,
        value: Vec<u8>,
        expected: Revision,
    ) -> impl Future<Output = Result<Revision, WriteError>> + Send;

    /// The moment, by a clock that is never set.
    fn now(&self) -> Instant;

    /// The time of day, in ms since 1970.
    fn wall(&self) -> i64;
}

impl Register for Bucket {
    async fn get(&self, subject: &str) -> Result<Option<Stored>, ReadError> {
        Self::get(self, subject).await
    }

    async fn all(&self, subjects: &str) -> Result<Vec<Stored>, ReadError> {
        Self::all(self, subjects).await
    }

    async fn newest(&self) -> Result<Revision, ReadError> {
        Self::newest(self).await
    }

    async fn compare_and_set(
        &self,
        subject: String,
        value: Vec<u8>,
        expected: Revision,
    ) -> Result<Revision, WriteError> {
        Self::compare_and_set(self, subject, value, expected, None).await
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> i64 {
        now()
    }
}
