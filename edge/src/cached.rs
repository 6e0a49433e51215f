//! Lists that are remembered for a while, so that many like requests cost one list call. A list call is asked for by its cursor
//! and one of two sizes, so that requests which differ in filter and limit share it. Values are not remembered here: KV does it.

use std::collections::HashMap;
use std::future::Future;

use crate::links;
use crate::reader::{KeyPage, ReadError, TaskReader};

/// Keeps texts for a while; how long is its own affair. One that keeps nothing is right, too.
pub trait ListCache: Send + Sync + 'static {
    /// The text that is stored under this key, if there is one.
    fn get(&self, key: &str) -> impl Future<Output = Option<String>> + Send;

    /// Keeps a text under this key.
    fn put(&self, key: &str, text: String) -> impl Future<Output = ()> + Send;
}

/// Remembers lists for a while, so that like requests cost one list call.
#[derive(Debug)]
pub struct Cached<R, C> {
    reader: R,
    cache: C,
}

impl<R: TaskReader, C: ListCache> Cached<R, C> {
    /// A reader that asks `cache` before it lists.
    pub fn new(reader: R, cache: C) -> Self {
        Self { reader, cache }
    }
}

impl<R: TaskReader, C: ListCache> TaskReader for Cached<R, C> {
    async fn list(&self, prefix: &str, limit: usize, cursor: Option<&str>) -> Result<KeyPage, ReadError> {
        let key = format!("{}/{limit}/{}", links::encode(prefix), links::encode(cursor.unwrap_or_default()));
        let kept = self.cache.get(&key).await;
        if let Some(page) = kept.and_then(|text| serde_json::from_str(&text).ok()) {
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
