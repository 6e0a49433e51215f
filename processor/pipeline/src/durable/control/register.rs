//! The store of control records: the ledger's bucket, or that of a simulation.

use std::future::Future;

use crate::durable::bucket::records::Records;
use crate::durable::bucket::{Bucket, ReadError, Revision, Stored};

/// Records of which some are looked for, and the newest is known.
pub(crate) trait Register: Records {
    /// Reads all records under a subject with wildcards, as the stream's leader has them. For few records.
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
