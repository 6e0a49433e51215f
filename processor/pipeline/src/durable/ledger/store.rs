//! The store of task records: the bucket of the ledger, or that of a simulation. Also the
//! destination of letters about records.

use std::future::Future;

use crate::dead_letters::Letter;
use crate::durable::bucket::lanes::Write;
use crate::durable::bucket::records::Records;
use crate::durable::bucket::{Bucket, ReadError, Revision, Stored, WriteError};
use crate::durable::dead_letters::{DeadLetters, LetterError};

/// The outcome of each of several writes.
pub(crate) type Outcomes<T> = Vec<(T, Result<Revision, WriteError>)>;

/// A store of records that reads and writes many at a time.
pub(crate) trait Store: Records {
    /// Reads the record of this revision; `None` if it was replaced since.
    fn get_at(&self, revision: Revision) -> impl Future<Output = Result<Option<Stored>, ReadError>> + Send;

    /// Reads the records of these subjects. Any server of the stream may answer, so the records may
    /// be slightly old.
    fn get_many(&self, subjects: &[String]) -> impl Future<Output = Result<Vec<Stored>, ReadError>> + Send;

    /// Writes records without waiting for each other. Returns the outcome of each.
    ///
    /// # Errors
    /// If none of them was written.
    fn each<T: Send>(
        &self,
        writes: impl Iterator<Item = (T, Result<Write, WriteError>)> + Send,
    ) -> impl Future<Output = Result<Outcomes<T>, WriteError>> + Send;
}

impl Store for Bucket {
    async fn get_at(&self, revision: Revision) -> Result<Option<Stored>, ReadError> {
        Self::get_at(self, revision).await
    }

    async fn get_many(&self, subjects: &[String]) -> Result<Vec<Stored>, ReadError> {
        Self::get_many(self, subjects).await
    }

    async fn each<T: Send>(
        &self,
        writes: impl Iterator<Item = (T, Result<Write, WriteError>)> + Send,
    ) -> Result<Outcomes<T>, WriteError> {
        Ok(self.writes().await?.each(writes).await)
    }
}

/// The destination of letters about unreadable records.
pub(crate) trait LetterBox: Clone + Send + Sync + 'static {
    fn store(&self, letter: &Letter) -> impl Future<Output = Result<(), LetterError>> + Send;
}

impl LetterBox for DeadLetters {
    async fn store(&self, letter: &Letter) -> Result<(), LetterError> {
        Self::store(self, letter).await.map(drop)
    }
}
