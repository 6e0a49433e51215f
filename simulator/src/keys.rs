//! The names of keys, each kept once and numbered, so that a request has to look each of its keys up only
//! once. What is under a key, and who asks for it, is kept elsewhere by its number.
//!
//! A name is never forgotten, so that its number holds until the next reset.

use std::collections::HashMap;
use std::sync::Arc;

/// The number of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KeyId(usize);

impl KeyId {
    /// What is kept for this key in a list that grows as numbers come.
    pub(crate) fn slot<T: Default>(self, list: &mut Vec<T>) -> &mut T {
        if list.len() <= self.0 {
            list.resize_with(self.0 + 1, T::default);
        }
        &mut list[self.0]
    }

    /// The same without making it.
    pub(crate) fn find<T>(self, list: &[T]) -> Option<&T> {
        list.get(self.0)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Keys {
    ids: HashMap<Arc<str>, KeyId>,
    names: Vec<Arc<str>>,
    /// By name; not of those that came since somebody last asked for the order. Lists are rare, and an
    /// ordered map would cost every write more than they cost.
    ordered: Vec<KeyId>,
}

impl Keys {
    /// The number of a key, which has one from now on.
    pub(crate) fn number(&mut self, name: &Arc<str>) -> KeyId {
        let next = KeyId(self.names.len());
        // Not looked for first: that would be hashed twice.
        let id = *self.ids.entry(Arc::clone(name)).or_insert(next);
        if id == next {
            self.names.push(Arc::clone(name));
        }
        id
    }

    /// The number of a key, if anybody has named it.
    pub(crate) fn find(&self, name: &str) -> Option<KeyId> {
        self.ids.get(name).copied()
    }

    pub(crate) fn name(&self, id: KeyId) -> Arc<str> {
        Arc::clone(&self.names[id.0])
    }

    /// The keys with this prefix in the order of their names, from it or from behind `cursor`.
    pub(crate) fn ordered(&mut self, prefix: &str, cursor: &str) -> impl Iterator<Item = (KeyId, &str)> {
        let names = &self.names;
        if self.ordered.len() < names.len() {
            self.ordered.extend((self.ordered.len()..names.len()).map(KeyId));
            // Quick where most of it is in order already.
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
    fn a_number_holds_and_the_order_is_that_of_the_names() {
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
