//! The edge's access to KV: three reads, shaped like those of Cloudflare's binding.
//!
//! Keys, metadata and values are text, as KV stores them. Nothing is parsed here.

use std::collections::HashMap;
use std::future::Future;

use serde::{Deserialize, Serialize};

/// The most keys that one [`TaskReader::list`] may request.
pub const MAX_LIST_KEYS: usize = 1000;

/// The most keys that one [`TaskReader::get_bulk`] may request.
pub const MAX_BULK_KEYS: usize = 100;

/// A KV store of tasks.
///
/// The futures are `Send`, so that a threaded runtime can serve the router.
pub trait TaskReader: Send + Sync + 'static {
    /// One page of the keys with this prefix, in the order of their bytes, with their metadata.
    /// An empty page is not always the last one.
    fn list(
        &self,
        prefix: &str,
        limit: usize,
        cursor: Option<&str>,
    ) -> impl Future<Output = Result<KeyPage, ReadError>> + Send;

    /// The value of one key, or `None` if the key does not exist.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<String>, ReadError>> + Send;

    /// The values of at most [`MAX_BULK_KEYS`] keys in one read. Omits keys that do not exist.
    fn get_bulk(
        &self,
        keys: &[String],
    ) -> impl Future<Output = Result<HashMap<String, String>, ReadError>> + Send;
}

/// The result of one list call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPage {
    /// The keys, in the order of their bytes.
    pub keys: Vec<ListedKey>,
    /// The start of the next page; `None` after the last page.
    pub cursor: Option<String>,
}

/// A key in the result of a list call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedKey {
    /// The whole key, with its prefix.
    pub name: String,
    /// The metadata as JSON text; `None` if the key has none.
    pub metadata: Option<String>,
}

/// The reason why a read failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The store refused the cursor, because the store did not return it before.
    #[error("unknown cursor")]
    UnknownCursor,
    /// The store failed. The text is for the log, not for the visitor.
    #[error("KV failed: {0}")]
    Unavailable(String),
}
