//! A cache of list calls, so that similar requests share one call.
//!
//! The key of the cache is the prefix, the cursor and one of two page sizes. So requests with different filters and
//! limits share list calls. Values are not cached here: KV caches them.

use std::collections::HashMap;
use std::future::Future;

use crate::links;
use crate::reader::{KeyPage, ReadError, TaskReader};

/// A cache of texts. The cache decides how long it keeps a text, and may keep none.
pub trait ListCache: Send + Sync + 'static {
    /// The text under this key, if the cache has it.
    fn get(&self, key: &str) -> impl Future<Output = Option<String>> + Send;

    /// Stores a text under this key.
    fn put(&self, key: &str, text: String) -> impl Future<Output = ()> + Send;
}

/// A [`TaskReader`] that caches list calls in a [`ListCache`].
#[derive(Debug)]
pub struct Cached<R, C> {
    reader: R,
    cache: C,
}

impl<R: TaskReader, C: ListCache> Cached<R, C> {
    /// A reader that looks in `cache` before it calls `reader`.
    pub fn new(reader: R, cache: C) -> Self {
        Self { reader, cache }
    }
}

impl<R: TaskReader, C: ListCache> TaskReader for Cached<R, C> {
    async fn list(&self, prefix: &str, limit: usize, cursor: Option<&str>) -> Result<KeyPage, ReadError> {
        let key = format!("{}/{limit}/{}", links::encode(prefix), links::encode(cursor.unwrap_or_default()));
        let cached = self.cache.get(&key).await;
        if let Some(page) = cached.and_then(|text| serde_json::from_str(&text).ok()) {
            return Ok(page);
        }
        let page = self.reader.list(prefix, limit, cursor).await?;
        if let Ok(text) = serde_json::to_string(&page) {
            self.cache.put(&key, text).await;
        }
        Ok(page)
    }

    async fn get(&self, key: &str) -> Result<Option<String>, ReadError> {
        self.reader.get(key).await
    }

    async fn get_bulk(&self, keys: &[String]) -> Result<HashMap<String, String>, ReadError> {
        self.reader.get_bulk(keys).await
    }
}
