//! The namespace itself: keys, values, metadata, expiry, and what they were before, for stale reads. Pure but
//! for the clock it is given. It may not grow with what was overwritten: the past has a bound.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

/// The most that is kept of the past. Beyond it the oldest goes first, and a stale read answers with the
/// oldest that is known. Enough for a minute of a test's writes.
const MAX_PAST_BYTES: usize = 64 * 1024 * 1024;

/// What one past value takes beside its bytes, roughly.
const PAST_OVERHEAD_BYTES: usize = 128;

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

/// The moment at which the namespace is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    now: Instant,
    /// How long before now.
    age: Duration,
}

impl View {
    pub(crate) fn of_now() -> Self {
        Self::back(Duration::ZERO)
    }

    pub(crate) fn back(age: Duration) -> Self {
        Self { now: Instant::now(), age }
    }

    /// Whether this was still to come. The age is added here since an `Instant` cannot always go back by it.
    fn is_before(self, moment: Instant) -> bool {
        moment.checked_add(self.age).is_none_or(|moment| moment > self.now)
    }
}

/// One key, now and before.
#[derive(Debug, Default)]
struct Versions {
    current: Option<Stored>,
    /// What it was until then, oldest first.
    past: VecDeque<(Instant, Option<Stored>)>,
}

impl Versions {
    fn seen(&self, view: View) -> Option<&Stored> {
        let past = self.past.iter().find(|(until, _)| view.is_before(*until)).map(|(_, stored)| stored);
        let stored = past.unwrap_or(&self.current).as_ref();
        stored.filter(|stored| stored.expires.is_none_or(|at| view.is_before(at)))
    }

    fn is_nothing(&self) -> bool {
        self.current.is_none() && self.past.is_empty()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    keys: BTreeMap<String, Versions>,
    /// Whose oldest past goes next, and how many bytes that frees.
    oldest: VecDeque<(String, usize)>,
    past_bytes: usize,
}

impl Store {
    /// Puts a value there, or takes it away.
    pub(crate) fn set(&mut self, key: String, stored: Option<Stored>, now: Instant) {
        let versions = self.keys.entry(key.clone()).or_default();
        let before = std::mem::replace(&mut versions.current, stored);
        let bytes = before.as_ref().map_or(0, |stored| stored.value.len()) + key.len() + PAST_OVERHEAD_BYTES;
        versions.past.push_back((now, before));
        self.oldest.push_back((key, bytes));
        self.past_bytes += bytes;
        self.forget_down_to(MAX_PAST_BYTES);
    }

    /// Puts a value there as if it had always been.
    pub(crate) fn seed(&mut self, key: &str, stored: Stored) {
        let versions = self.keys.entry(key.to_owned()).or_default();
        for (_, before) in &mut versions.past {
            *before = Some(stored.clone());
        }
        versions.current = Some(stored);
    }

    fn forget_down_to(&mut self, most: usize) {
        while self.past_bytes > most
            && let Some((key, bytes)) = self.oldest.pop_front()
        {
            self.past_bytes -= bytes;
            if let Some(versions) = self.keys.get_mut(&key) {
                versions.past.pop_front();
                if versions.is_nothing() {
                    self.keys.remove(&key);
                }
            }
        }
    }

    pub(crate) fn get(&self, key: &str, view: View) -> Option<&Stored> {
        self.keys.get(key)?.seen(view)
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        let there = self.keys.iter().filter(|(_, versions)| versions.current.is_some());
        there.map(|(key, _)| key.clone()).collect()
    }

    /// The keys with this prefix after `cursor`, which is the last key of the page before.
    pub(crate) fn list(&self, prefix: &str, cursor: &str, limit: usize, view: View) -> Page {
        let from = if cursor.is_empty() { Bound::Included(prefix) } else { Bound::Excluded(cursor) };
        let mut matching = self
            .keys
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter_map(|(key, versions)| Some((key.clone(), versions.seen(view)?.metadata.clone())));
        let keys: Vec<_> = matching.by_ref().take(limit).collect();
        let cursor = matching.next().and(keys.last()).map(|(key, _)| key.clone());
        Page { keys, cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(value: &str) -> Stored {
        Stored { value: value.into(), metadata: None, expires: None }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_list_is_paged_within_its_prefix() {
        let mut store = Store::default();
        let now = Instant::now();
        for key in ["a:1", "t:1", "t:2", "t:3", "u:1"] {
            store.set(key.to_owned(), Some(stored("")), now);
        }
        let names = |page: &Page| page.keys.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        let first = store.list("t:", "", 2, View::of_now());
        assert_eq!(names(&first), ["t:1", "t:2"]);
        let second = store.list("t:", &first.cursor.unwrap(), 2, View::of_now());
        assert_eq!(names(&second), ["t:3"]);
        assert_eq!(second.cursor, None);
    }

    #[test]
    fn a_view_back_shows_what_was_there_then() {
        let (mut store, start) = (Store::default(), Instant::now());
        store.seed("old", stored("0"));
        store.set("a".to_owned(), Some(stored("1")), start + seconds(10));
        store.set("a".to_owned(), Some(stored("2")), start + seconds(20));
        store.set("a".to_owned(), None, start + seconds(30));
        store.set("old".to_owned(), None, start + seconds(30));
        let now = start + seconds(40);
        let value = |key: &str, age| {
            let found = store.get(key, View { now, age: seconds(age) });
            found.map(|stored| String::from_utf8_lossy(&stored.value).into_owned())
        };
        let a = [0, 10, 11, 20, 21, 30, 31, u64::MAX].map(|age| value("a", age));
        let expected = [None, None, Some("2"), Some("2"), Some("1"), Some("1"), None, None];
        assert_eq!(a, expected.map(|value| value.map(str::to_owned)));
        assert_eq!((value("old", 10), value("old", 3_600).as_deref()), (None, Some("0")));
        assert_eq!(store.list("", "", 10, View { now, age: seconds(15) }).keys.len(), 2);
        assert!(store.keys().is_empty());
    }

    #[test]
    fn what_expires_is_still_there_in_a_view_back() {
        let (mut store, start) = (Store::default(), Instant::now());
        store.seed("a", Stored { expires: Some(start + seconds(60)), ..stored("1") });
        let now = start + seconds(61);
        assert!(store.get("a", View { now, age: Duration::ZERO }).is_none());
        assert!(store.get("a", View { now, age: seconds(2) }).is_some());
    }

    #[test]
    fn the_past_is_forgotten_oldest_first_and_the_present_is_not() {
        let (mut store, start) = (Store::default(), Instant::now());
        for n in 1..=4 {
            store.set("a".to_owned(), Some(stored(&n.to_string())), start + seconds(n));
        }
        store.set("b".to_owned(), None, start + seconds(5));
        store.forget_down_to(2 * (PAST_OVERHEAD_BYTES + 2));
        let now = start + seconds(6);
        assert_eq!(store.get("a", View { now, age: seconds(100) }), Some(&stored("3")));
        store.forget_down_to(0);
        assert_eq!(store.get("a", View { now, age: seconds(100) }), Some(&stored("4")));
        assert_eq!((store.keys.len(), store.past_bytes), (1, 0), "nothing is left of what never was");
    }
}
