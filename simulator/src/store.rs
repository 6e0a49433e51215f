//! The namespace itself: values, metadata, expiry, and what they were before, for stale reads. Pure but for
//! the clock it is given, and it knows keys by their numbers only. It may not grow with what was
//! overwritten: the past has a bound.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::keys::{KeyId, Keys};

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
}

/// The same as it is kept: in as few bytes as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) value: Box<[u8]>,
    pub(crate) metadata: Option<Box<RawValue>>,
    pub(crate) expires: Option<Instant>,
}

impl Held {
    pub(crate) fn stored(&self) -> Stored {
        // What is JSON by its grammar and yet no `Value` (half of a surrogate pair) is shown as its text.
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
    /// Where the next page begins; nothing after the last one.
    pub(crate) cursor: Option<&'a str>,
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

/// What a key was until then.
#[derive(Debug)]
struct Past {
    id: KeyId,
    until: Instant,
    before: Option<Held>,
}

impl Past {
    fn bytes(&self) -> usize {
        self.before.as_ref().map_or(0, Held::bytes) + PAST_OVERHEAD_BYTES
    }
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    /// By the numbers of keys.
    current: Vec<Option<Held>>,
    /// Of all keys, oldest first. A stale read goes through what is younger than it asks for: such reads are
    /// rare, and a past of each key's own would cost every write more.
    past: VecDeque<Past>,
    past_bytes: usize,
}

/// The namespace at one moment.
pub(crate) struct Snapshot<'a> {
    store: &'a Store,
    view: View,
    /// What has changed since then was this.
    changed: HashMap<KeyId, Option<&'a Held>>,
}

impl<'a> Snapshot<'a> {
    pub(crate) fn get(&self, id: KeyId) -> Option<&'a Held> {
        let current = || id.find(&self.store.current).and_then(Option::as_ref);
        let held = self.changed.get(&id).copied().unwrap_or_else(current)?;
        held.expires.is_none_or(|at| self.view.is_before(at)).then_some(held)
    }
}

impl Store {
    /// Puts a value there, or takes it away. Not earlier than the change before it.
    pub(crate) fn set(&mut self, id: KeyId, held: Option<Held>, now: Instant) {
        let before = std::mem::replace(id.slot(&mut self.current), held);
        let past = Past { id, until: now, before };
        self.past_bytes += past.bytes();
        self.past.push_back(past);
        self.forget_down_to(MAX_PAST_BYTES);
    }

    /// Puts a value there as if it had always been.
    pub(crate) fn seed(&mut self, id: KeyId, held: Held) {
        for past in self.past.iter_mut().filter(|past| past.id == id) {
            self.past_bytes -= past.bytes();
            past.before = Some(held.clone());
            self.past_bytes += past.bytes();
        }
        *id.slot(&mut self.current) = Some(held);
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
            // The first change since then tells what it was.
            changed.entry(past.id).or_insert(past.before.as_ref());
        }
        Snapshot { store: self, view, changed }
    }

    /// The keys there are, in their order.
    pub(crate) fn keys(&self, keys: &mut Keys) -> Vec<String> {
        let is_there = |id: KeyId| id.find(&self.current).is_some_and(Option::is_some);
        keys.ordered("", "").filter(|(id, _)| is_there(*id)).map(|(_, name)| name.to_owned()).collect()
    }

    /// The keys with this prefix after `cursor`, which is the last key of the page before.
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

    fn held(value: &str) -> Held {
        Held { value: value.as_bytes().into(), metadata: None, expires: None }
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
            store.set(keys.number(&Arc::from(key)), Some(held("")), now);
        }
        let names = |page: &Page<'_>| page.keys.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(" ");
        let first = store.list(&mut keys, "t:", "", 2, View::of_now());
        assert_eq!(names(&first), "t:1 t:2");
        let cursor = first.cursor.unwrap().to_owned();
        let second = store.list(&mut keys, "t:", &cursor, 2, View::of_now());
        assert_eq!((names(&second).as_str(), second.cursor), ("t:3", None));
    }

    #[test]
    fn a_view_back_shows_what_was_there_then() {
        let (mut keys, mut store, start) = (Keys::default(), Store::default(), Instant::now());
        let (a, old) = (keys.number(&Arc::from("a")), keys.number(&Arc::from("old")));
        store.seed(old, held("0"));
        store.set(a, Some(held("1")), start + seconds(10));
        store.set(a, Some(held("2")), start + seconds(20));
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
        store.seed(a, held("9"));
        assert_eq!(value(&store, a, now, seconds(25)).as_deref(), Some("9"), "as if it had always been");
    }

    #[test]
    fn what_expires_is_still_there_in_a_view_back() {
        let (mut store, start) = (Store::default(), Instant::now());
        let id = Keys::default().number(&Arc::from("a"));
        store.seed(id, Held { expires: Some(start + seconds(60)), ..held("1") });
        let now = start + seconds(61);
        assert_eq!(value(&store, id, now, Duration::ZERO), None);
        assert!(value(&store, id, now, seconds(2)).is_some());
    }

    #[test]
    fn the_past_is_forgotten_oldest_first_and_the_present_is_not() {
        let (mut keys, mut store, start) = (Keys::default(), Store::default(), Instant::now());
        let (a, b) = (keys.number(&Arc::from("a")), keys.number(&Arc::from("b")));
        for n in 1..=4 {
            store.set(a, Some(held(&n.to_string())), start + seconds(n));
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
