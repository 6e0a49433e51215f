//! The namespace itself: keys, values, metadata, expiry. Pure but for the clock it is given.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio::time::Instant;

/// A value and what is stored beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The value's bytes.
    pub value: Vec<u8>,
    /// The metadata, if any.
    pub metadata: Option<Value>,
    pub(crate) expires: Option<Instant>,
}

/// One page of keys.
pub(crate) struct Page {
    pub(crate) keys: Vec<(String, Option<Value>)>,
    /// Where the next page begins; nothing after the last one.
    pub(crate) cursor: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    values: BTreeMap<String, Stored>,
}

impl Store {
    pub(crate) fn put(&mut self, key: String, stored: Stored) {
        self.values.insert(key, stored);
    }

    pub(crate) fn delete(&mut self, key: &str) {
        self.values.remove(key);
    }

    pub(crate) fn get(&self, key: &str, now: Instant) -> Option<&Stored> {
        self.values.get(key).filter(|stored| stored.expires.is_none_or(|at| at > now))
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.values.keys().cloned().collect()
    }

    /// The keys with this prefix after `cursor`, which is the last key of the page before.
    pub(crate) fn list(&self, prefix: &str, cursor: &str, limit: usize, now: Instant) -> Page {
        use std::ops::Bound;
        let from = if cursor.is_empty() { Bound::Included(prefix) } else { Bound::Excluded(cursor) };
        let mut matching = self
            .values
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(_, stored)| stored.expires.is_none_or(|at| at > now))
            .map(|(key, stored)| (key.clone(), stored.metadata.clone()));
        let keys: Vec<_> = matching.by_ref().take(limit).collect();
        let cursor = matching.next().and(keys.last()).map(|(key, _)| key.clone());
        Page { keys, cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_paged_within_its_prefix() {
        let mut store = Store::default();
        for key in ["a:1", "t:1", "t:2", "t:3", "u:1"] {
            store.put(key.to_owned(), Stored { value: Vec::new(), metadata: None, expires: None });
        }
        let names = |page: &Page| page.keys.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        let now = Instant::now();
        let first = store.list("t:", "", 2, now);
        assert_eq!(names(&first), ["t:1", "t:2"]);
        let second = store.list("t:", &first.cursor.unwrap(), 2, now);
        assert_eq!(names(&second), ["t:3"]);
        assert_eq!(second.cursor, None);
    }
}
