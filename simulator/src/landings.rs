//! When each key's value landed: what a benchmark needs to tell how long an event took to get into KV. Off
//! unless asked for. It may not grow without end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use crate::keys::{KeyId, Keys};
use crate::operation::Operation;

/// A key that a write has changed. In JSON it is `[number, key, unix_micros, operation]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Landing {
    /// They are numbered from 0 in the order in which they landed.
    pub number: u64,
    /// The key.
    pub key: Arc<str>,
    /// When it landed, in microseconds since 1970 by this machine's clock. All keys of a bulk land at once.
    pub unix_micros: u64,
    /// What changed it: a put or a delete, in bulk or alone.
    pub operation: Operation,
}

impl Serialize for Landing {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (self.number, &*self.key, self.unix_micros, self.operation).serialize(to)
    }
}

/// Microseconds since 1970, by the clock that publishers on this machine have too.
pub(crate) fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The latest landings.
#[derive(Debug)]
pub(crate) struct Landings {
    most: usize,
    latest: VecDeque<(KeyId, u64, Operation)>,
    forgotten: u64,
}

impl Landings {
    /// So many of them are kept, the latest; with 0 none.
    pub(crate) fn keeping(most: usize) -> Self {
        Self { most, latest: VecDeque::new(), forgotten: 0 }
    }

    pub(crate) fn record(&mut self, id: KeyId, unix_micros: u64, operation: Operation) {
        if self.most == 0 {
            return;
        }
        if self.latest.len() == self.most {
            self.latest.pop_front();
            self.forgotten += 1;
        }
        self.latest.push_back((id, unix_micros, operation));
    }

    /// At most so many of those that are kept, from this number on.
    pub(crate) fn starting_with(&self, number: u64, most: usize, keys: &Keys) -> Vec<Landing> {
        let skipped = usize::try_from(number.saturating_sub(self.forgotten)).unwrap_or(usize::MAX);
        let numbered = (self.forgotten..).zip(&self.latest).skip(skipped).take(most);
        let landing = |(number, (id, unix_micros, operation)): (u64, &(KeyId, u64, Operation))| Landing {
            number,
            key: keys.name(*id),
            unix_micros: *unix_micros,
            operation: *operation,
        };
        numbered.map(landing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_under_their_numbers() {
        let mut keys = Keys::default();
        let ids = ["a", "b", "c"].map(|name| keys.number(&Arc::from(name)));
        let (mut two, mut none) = (Landings::keeping(2), Landings::keeping(0));
        for (id, micros) in ids.into_iter().zip(7..) {
            two.record(id, micros, Operation::BulkPut);
            none.record(id, micros, Operation::BulkPut);
        }
        let json = |number, most| serde_json::to_string(&two.starting_with(number, most, &keys)).unwrap();
        assert_eq!(json(0, 9), r#"[[1,"b",8,"bulk_put"],[2,"c",9,"bulk_put"]]"#);
        assert_eq!(json(2, 9), r#"[[2,"c",9,"bulk_put"]]"#);
        assert_eq!(json(0, 1), r#"[[1,"b",8,"bulk_put"]]"#);
        assert_eq!(json(u64::MAX, 9), "[]");
        assert!(none.starting_with(0, 9, &keys).is_empty());
    }
}
