//! What task records are kept in: the ledger's bucket, or that of a simulation. And where letters about records go.

use std::future::Future;

use crate::dead_letters::Letter;
use crate::durable::bucket::lanes::Write;
use crate::durable::bucket::records::Records;
use crate::durable::bucket::{Bucket, ReadError, Revision, Stored, WriteError};
use crate::durable::dead_letters::{DeadLetters, LetterError};

/// What became of each of some writes.
pub(crate) type Outcomes<T> = Vec<(T, Result<Revision, WriteError>)>;

/// A store of records, of which many are read and written at a time.
pub(crate) trait Store: Records {
    /// Reads the record that was written at this revision; nothing, if it was replaced since.
    fn get_at(&self, revision: Revision) -> impl Future<Output = Result<Option<Stored>, ReadError>> + Send;

    /// Reads the records of these subjects. A replica of the stream may answer that is a little behind.
    fn get_many(&self, subjects: &[String]) -> impl Future<Output = Result<Vec<Stored>, ReadError>> + Send;

    /// Writes records that do not wait for each other, and answers what became of each.
    ///
    /// # Errors
    /// Where none was written.
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

/// Where the letter goes about a record that cannot be read.
pub(crate) trait LetterBox: Clone + Send + Sync + 'static {
    /// Stores a letter.
    fn store(&self, letter: &Letter) -> impl Future<Output = Result<(), LetterError>> + Send;
}

impl LetterBox for DeadLetters {
    async fn store(&self, letter: &Letter) -> Result<(), LetterError> {
        Self::store(self, letter).await.map(drop)
    }
}
