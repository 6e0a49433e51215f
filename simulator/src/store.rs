//! The data of the namespace: values, metadata and expiry, and their past for stale reads.
//!
//! The store uses the numbers of keys, not their names. The size of the past is limited.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::keys::{KeyId, Keys};

/// The most bytes of the past: enough for a minute of a test's writes.
///
/// Over this limit the oldest change is removed first. A stale read then answers the oldest known state.
const MAX_PAST_BYTES: usize = 64 * 1024 * 1024;

/// The approximate memory of a past value, in addition to its bytes.
const PAST_OVERHEAD_BYTES: usize = 128;

/// A value and its metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The value's bytes.
    pub value: Vec<u8>,
    /// The metadata, if any.
    pub metadata: Option<Value>,
}

/// A value, its metadata and its expiry, in as few bytes as the request had.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) value: Box<[u8]>,
    pub(crate) metadata: Option<Box<RawValue>>,
    pub(crate) expires: Option<Instant>,
}

impl Entry {
    pub(crate) fn stored(&self) -> Stored {
        // Valid JSON that does not fit a `Value` (half of a surrogate pair) is shown as text.
        let metadata = self.metadata.as_ref().map(|raw| {
            serde_json::from_str(raw.get()).unwrap_or_else(|_| Value::String(raw.get().to_owned()))
        });
        Stored { value: self.value.to_vec(), metadata }
    }

    fn bytes(&self) -> usize {
        self.value.len() + self.metadata.as_ref().map_or(0, |raw| raw.get().len())
    }
}

/// One page of keys.
pub(crate) struct Page<'a> {
    pub(crate) keys: Vec<(&'a str, Option<&'a RawValue>)>,
    /// The start of the next page; `None` after the last page.
    pub(crate) cursor: Option<&'a str>,
}

/// The time at which a read sees the namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    now: Instant,
    /// The age of the view.
    age: Duration,
}

impl View {
    pub(crate) fn of_now() -> Self {
        Self::back(Duration::ZERO)
    }

    pub(crate) fn back(age: Duration) -> Self {
        Self { now: Instant::now(), age }
    }

    /// Whether the view is before this time.
    ///
    /// The age is added to the time, because an `Instant` cannot always be decreased by it.
    fn is_before(self, moment: Instant) -> bool {
        moment.checked_add(self.age).is_none_or(|moment| moment > self.now)
    }
}

/// The entry of a key until a change.
#[derive(Debug)]
struct Past {
    id: KeyId,
    until: Instant,
    before: Option<Entry>,
}

impl Past {
    fn bytes(&self) -> usize {
        self.before.as_ref().map_or(0, Entry::bytes) + PAST_OVERHEAD_BYTES
    }
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    /// The entry of each key, by its number.
    current: Vec<Option<Entry>>,
    /// The changes of all keys, oldest first.
    ///
    /// A stale read scans all changes after its time. Such reads are rare, and a past for each key would cost more
    /// with every write.
    past: VecDeque<Past>,
    past_bytes: usize,
}

/// The namespace at the time of a view.
pub(crate) struct Snapshot<'a> {
    store: &'a Store,
    view: View,
    /// The entries at that time of the keys that changed later.
    changed: HashMap<KeyId, Option<&'a Entry>>,
}

impl<'a> Snapshot<'a> {
    pub(crate) fn get(&self, id: KeyId) -> Option<&'a Entry> {
        let current = || id.find(&self.store.current).and_then(Option::as_ref);
        let entry = self.changed.get(&id).copied().unwrap_or_else(current)?;
        entry.expires.is_none_or(|at| self.view.is_before(at)).then_some(entry)
    }
}

impl Store {
    /// Sets or deletes an entry. `now` must not be before the last change.
    pub(crate) fn set(&mut self, id: KeyId, entry: Option<Entry>, now: Instant) {
        let before = std::mem::replace(id.slot(&mut self.current), entry);
        let past = Past { id, until: now, before };
        self.past_bytes += past.bytes();
        self.past.push_back(past);
        self.forget_down_to(MAX_PAST_BYTES);
    }

    /// Sets an entry as if it had always existed.
    pub(crate) fn seed(&mut self, id: KeyId, entry: Entry) {
        for past in self.past.iter_mut().filter(|past| past.id == id) {
            self.past_bytes -= past.bytes();
            past.before = Some(entry.clone());
            self.past_bytes += past.bytes();
        }
        *id.slot(&mut self.current) = Some(entry);
    }

    fn forget_down_to(&mut self, most: usize) {
        while self.past_bytes > most
            && let Some(past) = self.past.pop_front()
        {
            self.past_bytes -= past.bytes();
        }
    }

    pub(crate) fn at(&self, view: View) -> Snapshot<'_> {
        let first = self.past.partition_point(|past| !view.is_before(past.until));
        let mut changed = HashMap::new();
        for past in self.past.range(first..) {
            // The first change after that time has the entry before it.
            changed.entry(past.id).or_insert(past.before.as_ref());
        }
        Snapshot { store: self, view, changed }
    }

    /// The existing keys, in their order.
    pub(crate) fn keys(&self, keys: &mut Keys) -> Vec<String> {
        let is_there = |id: KeyId| id.find(&self.current).is_some_and(Option::is_some);
        keys.ordered("", "").filter(|(id, _)| is_there(*id)).map(|(_, name)| name.to_owned()).collect()
    }

    /// Lists the keys with this prefix after `cursor`, the last key of the page before.
    pub(crate) fn list<'a>(
        &'a self,
        keys: &'a mut Keys,
        prefix: &str,
        cursor: &str,
        limit: usize,
        view: View,
    ) -> Page<'a> {
        let then = self.at(view);
        let mut matching = keys
            .ordered(prefix, cursor)
            .filter_map(|(id, name)| Some((name, then.get(id)?.metadata.as_deref())));
        let keys: Vec<_> = matching.by_ref().take(limit).collect();
        let cursor = matching.next().and(keys.last()).map(|(key, _)| *key);
        Page { keys, cursor }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn entry(value: &str) -> Entry {
        Entry { value: value.as_bytes().into(), metadata: None, expires: None }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn value(store: &Store, id: KeyId, now: Instant, age: Duration) -> Option<String> {
        let found = store.at(View { now, age }).get(id)?;
        Some(String::from_utf8_lossy(&found.value).into_owned())
    }

    #[test]
    fn a_list_is_paged_within_its_prefix() {
        let (mut keys, mut store) = (Keys::default(), Store::default());
        let now = Instant::now();
        for key in ["u:1", "t:3", "a:1", "t:1", "t:2"] {
            store.set(keys.number(&Arc::from(key)), Some(entry("")), now);
        }
        let names = |page: &Page<'_>| page.keys.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(" ");
        let first = store.list(&mut keys, "t:", "", 2, View::of_now());
        assert_eq!(names(&first), "t:1 t:2");
        let cursor = first.cursor.unwrap().to_owned();
        let second = store.list(&mut keys, "t:", &cursor, 2, View::of_now());
        assert_eq!((names(&second).as_str(), second.cursor), ("t:3", None));
    }

    #[test]
    fn a_view_back_shows_the_entries_of_that_time() {
        let (mut keys, mut store, start) = (Keys::default(), Store::default(), Instant::now());
        let (a, old) = (keys.number(&Arc::from("a")), keys.number(&Arc::from("old")));
        store.seed(old, entry("0"));
        store.set(a, Some(entry("1")), start + seconds(10));
        store.set(a, Some(entry("2")), start + seconds(20));
        store.set(a, None, start + seconds(30));
        store.set(old, None, start + seconds(30));
        let now = start + seconds(40);
        let found = [0, 10, 11, 20, 21, 30, 31, u64::MAX].map(|age| value(&store, a, now, seconds(age)));
        let expected = [None, None, Some("2"), Some("2"), Some("1"), Some("1"), None, None];
        assert_eq!(found, expected.map(|value| value.map(str::to_owned)));
        let olds = [10, 3_600].map(|age| value(&store, old, now, seconds(age)));
        assert_eq!(olds, [None, Some("0".to_owned())]);
        let view = View { now, age: seconds(15) };
        assert_eq!(store.list(&mut keys, "", "", 10, view).keys.len(), 2);
        assert!(store.keys(&mut keys).is_empty());
        store.seed(a, entry("9"));
        assert_eq!(value(&store, a, now, seconds(25)).as_deref(), Some("9"), "as if it had always been");
    }

    #[test]
    fn an_expired_entry_exists_in_a_view_back() {
        let (mut store, start) = (Store::default(), Instant::now());
        let id = Keys::default().number(&Arc::from("a"));
        store.seed(id, Entry { expires: Some(start + seconds(60)), ..entry("1") });
        let now = start + seconds(61);
        assert_eq!(value(&store, id, now, Duration::ZERO), None);
        assert!(value(&store, id, now, seconds(2)).is_some());
    }

    #[test]
    fn the_oldest_past_is_removed_first_and_current_entries_never() {
        let (mut keys, mut store, start) = (Keys::default(), Store::default(), Instant::now());
        let (a, b) = (keys.number(&Arc::from("a")), keys.number(&Arc::from("b")));
        for n in 1..=4 {
            store.set(a, Some(entry(&n.to_string())), start + seconds(n));
        }
        store.set(b, None, start + seconds(5));
        store.forget_down_to(2 * (PAST_OVERHEAD_BYTES + 1));
        let now = start + seconds(6);
        assert_eq!(value(&store, a, now, seconds(100)).as_deref(), Some("3"));
        store.forget_down_to(0);
        assert_eq!(value(&store, a, now, seconds(100)).as_deref(), Some("4"));
        assert_eq!((store.past.len(), store.past_bytes), (0, 0));
    }
}
