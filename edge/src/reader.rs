//! What the edge asks of KV: three reads, shaped as Cloudflare's binding offers them.
//!
//! No parsing and no policy here: keys, metadata and values are text, as they lie in the store.

use std::collections::HashMap;
use std::future::Future;

use serde::{Deserialize, Serialize};

/// The most keys one [`TaskReader::list`] may ask for.
pub const MAX_LIST_KEYS: usize = 1000;

/// The most keys one [`TaskReader::get_bulk`] may ask for.
pub const MAX_BULK_KEYS: usize = 100;

/// A KV store that holds tasks.
///
/// The futures are `Send`, so that the router over it can be served by a threaded runtime.
pub trait TaskReader: Send + Sync + 'static {
    /// One page of the keys that begin with `prefix`, in the order of their bytes, with their metadata.
    /// A page may be empty and not the last.
    fn list(
        &self,
        prefix: &str,
        limit: usize,
        cursor: Option<&str>,
    ) -> impl Future<Output = Result<KeyPage, ReadError>> + Send;

    /// The value of one key; nothing when there is none.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<String>, ReadError>> + Send;

    /// The values of at most [`MAX_BULK_KEYS`] keys in one read; a key without a value is left out.
    fn get_bulk(
        &self,
        keys: &[String],
    ) -> impl Future<Output = Result<HashMap<String, String>, ReadError>> + Send;
}

/// What one list call gives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPage {
    /// The keys, in order.
    pub keys: Vec<ListedKey>,
    /// Where the next page begins; nothing when this is the last.
    pub cursor: Option<String>,
}

/// A key as a list call gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedKey {
    /// The whole key, prefix included.
    pub name: String,
    /// Its metadata, JSON in text; nothing when it was written without.
    pub metadata: Option<String>,
}

/// Why a read gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The store refused the cursor: it is not one that the store gave.
    #[error("unknown cursor")]
    UnknownCursor,
    /// The store did not answer as it should. The text is for the log, not for the visitor.
    #[error("KV failed: {0}")]
    Unavailable(String),
}
