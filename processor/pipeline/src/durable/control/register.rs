//! The store of control records: the bucket of the ledger, or that of a simulation.

use std::future::Future;

use crate::durable::bucket::records::Records;
use crate::durable::bucket::{Bucket, ReadError, Revision, Stored};

/// Records that can be searched, and whose newest revision is known.
pub(crate) trait Register: Records {
    /// Reads all records of a subject with wildcards from the leader of the stream. For few
    /// records.
    fn all(&self, subjects: &str) -> impl Future<Output = Result<Vec<Stored>, ReadError>> + Send;

    /// The revision of the newest write of any record.
    fn newest(&self) -> impl Future<Output = Result<Revision, ReadError>> + Send;
}

impl Register for Bucket {
    async fn all(&self, subjects: &str) -> Result<Vec<Stored>, ReadError> {
        Self::all(self, subjects).await
    }

    async fn newest(&self) -> Result<Revision, ReadError> {
        Self::newest(self).await
    }
}
