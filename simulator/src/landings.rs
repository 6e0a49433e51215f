//! The landings: the time at which each write changed a key. Benchmarks measure the latency of events with them.
//!
//! Off by default. The number of landings is limited.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use crate::keys::{KeyId, Keys};
use crate::operation::Operation;

/// The change of a key by a write. In JSON: `[number, key, unix_micros, operation]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Landing {
    /// The number of the landing, from 0, in the order of landings.
    pub number: u64,
    /// The key.
    pub key: Arc<str>,
    /// The time, in microseconds since 1970 by this machine's clock. All keys of a bulk write land at once.
    pub unix_micros: u64,
    /// The operation of the write.
    pub operation: Operation,
}

impl Serialize for Landing {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (self.number, &*self.key, self.unix_micros, self.operation).serialize(to)
    }
}

/// Microseconds since 1970, by the clock that publishers on this machine use too.
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
    /// Keeps the latest `most` landings; 0 keeps none.
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

    /// At most `most` landings from this number on.
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
    fn the_latest_landings_keep_their_numbers() {
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
