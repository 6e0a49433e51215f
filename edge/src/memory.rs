//! A KV store in memory, for tests and for demos without Cloudflare.
//!
//! The order, the paging and the metadata are as in KV. A write is visible at once, which KV does not promise:
//! do not depend on that.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use taskpipeline_contract::{Task, TaskId, TaskKey, TaskMetadata};

use crate::reader::{KeyPage, ListedKey, ReadError, TaskReader};

type Entries = BTreeMap<String, Entry>;

#[derive(Clone, Debug)]
struct Entry {
    value: String,
    metadata: Option<String>,
}

/// A KV store in memory. Clones share their entries.
#[derive(Clone, Debug, Default)]
pub struct MemoryReader {
    entries: Arc<RwLock<Entries>>,
}

impl MemoryReader {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores a task as the processor does: the JSON as the value, and the metadata.
    ///
    /// # Errors
    /// If `serde_json` cannot write the task; every valid task can be written.
    pub fn put(&self, task: &Task) -> Result<(), serde_json::Error> {
        let value = serde_json::to_string(task)?;
        let metadata = serde_json::to_string(&TaskMetadata::from(task))?;
        self.put_text(TaskKey::new(task.id.clone()).to_string(), value, Some(metadata));
        Ok(())
    }

    /// Stores any text under any key, as another writer in the namespace could.
    pub fn put_text(&self, key: impl Into<String>, value: impl Into<String>, metadata: Option<String>) {
        self.write().insert(key.into(), Entry { value: value.into(), metadata });
    }

    /// Removes a task.
    pub fn remove(&self, id: &TaskId) {
        self.write().remove(&TaskKey::new(id.clone()).to_string());
    }

    // A panic elsewhere cannot leave a partial change in the map, so a poisoned lock is safe to use.
    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TaskReader for MemoryReader {
    async fn list(&self, prefix: &str, limit: usize, cursor: Option<&str>) -> Result<KeyPage, ReadError> {
        let start = match cursor {
            None => Bound::Included(prefix.to_owned()),
            Some(cursor) => Bound::Excluded(cursor_key(cursor).ok_or(ReadError::UnknownCursor)?),
        };
        let entries = self.read();
        let mut rest = entries
            .range((start, Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(prefix))
            .peekable();
        let keys: Vec<ListedKey> = rest
            .by_ref()
            .take(limit)
            .map(|(name, entry)| ListedKey { name: name.clone(), metadata: entry.metadata.clone() })
            .collect();
        let more = rest.peek().is_some();
        let cursor = keys.last().filter(|_| more).map(|key| key_cursor(&key.name));
        Ok(KeyPage { keys, cursor })
    }

    async fn get(&self, key: &str) -> Result<Option<String>, ReadError> {
        Ok(self.read().get(key).map(|entry| entry.value.clone()))
    }

    async fn get_bulk(&self, keys: &[String]) -> Result<HashMap<String, String>, ReadError> {
        let entries = self.read();
        Ok(keys.iter().filter_map(|key| Some((key.clone(), entries.get(key)?.value.clone()))).collect())
    }
}

/// Makes the cursor: the last key of the page in hexadecimal, so that clients treat it as opaque.
fn key_cursor(key: &str) -> String {
    key.bytes().fold(String::new(), |mut cursor, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(cursor, "{byte:02x}");
        cursor
    })
}

/// The key in a cursor; `None` if the text is not such a cursor.
fn cursor_key(cursor: &str) -> Option<String> {
    if !cursor.len().is_multiple_of(2) || !cursor.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let bytes = (0..cursor.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(cursor.get(at..at + 2)?, 16).ok())
        .collect::<Option<Vec<u8>>>()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_cover_every_key_of_the_prefix_once_and_in_order() {
        let store = MemoryReader::new();
        for name in ["tasks:b", "tasks:é", "tasks:a", "other", "tasks:", "tasksx"] {
            store.put_text(name, "", None);
        }
        let mut seen = Vec::new();
        let mut cursor = None;
        loop {
            let page = store.list("tasks:", 2, cursor.as_deref()).await.unwrap();
            seen.extend(page.keys.into_iter().map(|key| key.name));
            cursor = page.cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, ["tasks:", "tasks:a", "tasks:b", "tasks:é"]);
    }

    #[tokio::test]
    async fn a_full_last_page_has_no_cursor() {
        let store = MemoryReader::new();
        store.put_text("tasks:a", "", None);
        assert_eq!(store.list("tasks:", 1, None).await.unwrap().cursor, None);
    }

    #[tokio::test]
    async fn an_unknown_cursor_is_refused() {
        let store = MemoryReader::new();
        for cursor in ["zz", "abc", "ff", "+1"] {
            assert_eq!(
                store.list("tasks:", 1, Some(cursor)).await,
                Err(ReadError::UnknownCursor),
                "{cursor}"
            );
        }
    }
}
