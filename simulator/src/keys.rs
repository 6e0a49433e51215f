//! The names of keys and their numbers. A request looks up each of its keys only once.
//!
//! Other modules keep the data of a key by its number. A number is valid until the next reset.

use std::collections::HashMap;
use std::sync::Arc;

/// The number of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KeyId(usize);

impl KeyId {
    /// The data of this key in a list by number. The list grows as needed.
    pub(crate) fn slot<T: Default>(self, list: &mut Vec<T>) -> &mut T {
        if list.len() <= self.0 {
            list.resize_with(self.0 + 1, T::default);
        }
        &mut list[self.0]
    }

    /// The data of this key in a list by number, or `None` if the list is shorter.
    pub(crate) fn find<T>(self, list: &[T]) -> Option<&T> {
        list.get(self.0)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Keys {
    ids: HashMap<Arc<str>, KeyId>,
    names: Vec<Arc<str>>,
    /// The keys in the order of their names, without those added since the last [`Keys::ordered`].
    ///
    /// Lists are rare, and an ordered map would cost more with every write.
    ordered: Vec<KeyId>,
}

impl Keys {
    /// The number of a key. A new key gets the next number.
    pub(crate) fn number(&mut self, name: &Arc<str>) -> KeyId {
        let next = KeyId(self.names.len());
        // A lookup before the insertion would hash the name twice.
        let id = *self.ids.entry(Arc::clone(name)).or_insert(next);
        if id == next {
            self.names.push(Arc::clone(name));
        }
        id
    }

    /// The number of a key, if the key has one.
    pub(crate) fn find(&self, name: &str) -> Option<KeyId> {
        self.ids.get(name).copied()
    }

    pub(crate) fn name(&self, id: KeyId) -> Arc<str> {
        Arc::clone(&self.names[id.0])
    }

    /// The keys with this prefix after `cursor`, in the order of their names.
    pub(crate) fn ordered(&mut self, prefix: &str, cursor: &str) -> impl Iterator<Item = (KeyId, &str)> {
        let names = &self.names;
        if self.ordered.len() < names.len() {
            self.ordered.extend((self.ordered.len()..names.len()).map(KeyId));
            // Fast, because most of the list is in order already.
            self.ordered.sort_by(|one, other| names[one.0].cmp(&names[other.0]));
        }
        let is_before = |id: &KeyId| {
            let name = &*names[id.0];
            if cursor.is_empty() { name < prefix } else { name <= cursor }
        };
        let first = self.ordered.partition_point(is_before);
        let named = self.ordered[first..].iter().map(|id| (*id, &*names[id.0]));
        named.take_while(move |(_, name)| name.starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stable_and_keys_are_ordered_by_name() {
        let mut keys = Keys::default();
        let numbers = ["t:2", "u", "t:1", "t:2"].map(|name| keys.number(&Arc::from(name)));
        assert_eq!((numbers[0], keys.find("t:2"), keys.find("none")), (numbers[3], Some(numbers[0]), None));
        let names = |keys: &mut Keys, prefix, cursor| {
            keys.ordered(prefix, cursor).map(|(_, name)| name.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&mut keys, "", ""), ["t:1", "t:2", "u"]);
        keys.number(&Arc::from("t:11"));
        assert_eq!(names(&mut keys, "t:", ""), ["t:1", "t:11", "t:2"]);
        assert_eq!(names(&mut keys, "t:", "t:11"), ["t:2"]);
        assert_eq!(&*keys.name(numbers[1]), "u");
    }
}
