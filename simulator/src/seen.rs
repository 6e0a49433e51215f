//! The counters of the simulator, with which tests and benchmarks check its clients.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::keys::KeyId;
use crate::operation::Operation;
use crate::spread::{Counts, Spread};

/// The least time between writes to a key: Cloudflare allows about one write a second.
const LEAST_BETWEEN_WRITES: Duration = Duration::from_secs(1);

/// The counters since the start or the last reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Admitted requests, by operation (`bulk_put`, `bulk_delete`, `bulk_get`, `put`, ...).
    pub requests: BTreeMap<&'static str, u64>,
    /// All requests, refused requests included, by operation and by the status of the answer. The status is `none`
    /// without an answer.
    pub answers: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Requests with a fault, by the name of the rule.
    pub faults: BTreeMap<String, u64>,
    /// Keys of admitted requests, by operation; for lists, the keys in their answers.
    pub keys: BTreeMap<&'static str, u64>,
    /// The number of keys in each admitted bulk request, by operation.
    pub keys_per_request: BTreeMap<&'static str, Spread>,
    /// Bytes in the bodies of admitted requests, by operation; only operations with a body.
    pub body_bytes: BTreeMap<&'static str, u64>,
    /// Keys written.
    pub keys_put: u64,
    /// Keys deleted.
    pub keys_deleted: u64,
    /// Requests answered with 429, by the rate limit or by a fault.
    pub throttled: u64,
    /// Requests answered with another error, or with a redirect.
    pub refused: u64,
    /// Requests that the rate limit refused while its sliding window was full, or in the block after it.
    pub throttled_by_sliding_window: u64,
    /// Requests that the rate limit refused by its fixed window. A request can count for both windows.
    pub throttled_by_fixed_window: u64,
    /// The most requests in any sliding window of the rate limit's period, or of five minutes without a limit.
    ///
    /// This is also the most requests in any fixed window of any phase.
    pub most_in_sliding_window: usize,
    /// The most requests in any fixed window of the configured phase.
    pub most_in_fixed_window: usize,
    /// Writes to a key less than a second after the answer to the write before.
    pub writes_too_soon: u64,
    /// Keys in two requests at the same time.
    pub overlapping_keys: u64,
}

impl Seen {
    /// The number of admitted requests.
    #[must_use]
    pub fn total_requests(&self) -> u64 {
        self.requests.values().sum()
    }

    /// The number of requests with a fault of this rule name.
    #[must_use]
    pub fn fault(&self, name: &str) -> u64 {
        self.faults.get(name).copied().unwrap_or_default()
    }

    /// The number of requests with this operation and this status; `None` counts requests without an answer.
    #[must_use]
    pub fn answered(&self, operation: Operation, status: Option<u16>) -> u64 {
        let by_status = self.answers.get(operation.name());
        by_status.and_then(|answers| answers.get(&answer_name(status))).copied().unwrap_or_default()
    }
}

fn answer_name(status: Option<u16>) -> String {
    status.map_or_else(|| "none".to_owned(), |status| status.to_string())
}

/// The counters, and the data to update them.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: Seen,
    per_request: BTreeMap<&'static str, Counts>,
    /// The activity of each key, by its number.
    activity: Vec<KeyActivity>,
}

/// The requests in flight for a key, and its last write.
#[derive(Debug, Default)]
struct KeyActivity {
    requests: u32,
    written: Option<Instant>,
}

impl Watch {
    pub(crate) fn seen(&self) -> Seen {
        let spread = |(operation, counts): (&&'static str, &Counts)| (*operation, counts.spread());
        Seen { keys_per_request: self.per_request.iter().map(spread).collect(), ..self.seen.clone() }
    }

    pub(crate) fn begin(&mut self, operation: Operation, ids: &[KeyId], body_bytes: usize) {
        let (name, keys) = (operation.name(), ids.len());
        *self.seen.requests.entry(name).or_default() += 1;
        if operation != Operation::List {
            *self.seen.keys.entry(name).or_default() += keys as u64;
        }
        if operation.is_bulk() {
            self.per_request.entry(name).or_default().add(keys);
        }
        if operation.has_body() {
            *self.seen.body_bytes.entry(name).or_default() += body_bytes as u64;
        }
        for id in ids {
            let requests = &mut id.slot(&mut self.activity).requests;
            *requests += 1;
            self.seen.overlapping_keys += u64::from(*requests > 1);
        }
    }

    pub(crate) fn end(&mut self, ids: &[KeyId]) {
        for id in ids {
            let requests = &mut id.slot(&mut self.activity).requests;
            *requests = requests.saturating_sub(1);
        }
    }

    pub(crate) fn listed(&mut self, keys: usize) {
        *self.seen.keys.entry(Operation::List.name()).or_default() += keys as u64;
    }

    pub(crate) fn applied(&mut self, rule: &str) {
        *self.seen.faults.entry(rule.to_owned()).or_default() += 1;
    }

    pub(crate) fn answered(&mut self, operation: Operation, status: Option<u16>) {
        let answers = self.seen.answers.entry(operation.name()).or_default();
        *answers.entry(answer_name(status)).or_default() += 1;
        match status {
            Some(429) => self.seen.throttled += 1,
            Some(status) if !(200..300).contains(&status) => self.seen.refused += 1,
            _ => {}
        }
    }

    /// Notes the answer to a write of these keys, even if the write has not landed.
    ///
    /// Answers are all that a client can pace its writes by.
    pub(crate) fn wrote<'a>(&mut self, ids: impl IntoIterator<Item = &'a KeyId>, now: Instant) {
        for id in ids {
            let before = id.slot(&mut self.activity).written.replace(now);
            let is_soon = before.is_some_and(|before| now.duration_since(before) < LEAST_BETWEEN_WRITES);
            self.seen.writes_too_soon += u64::from(is_soon);
        }
    }

    pub(crate) fn landed(&mut self, put: bool) {
        if put {
            self.seen.keys_put += 1;
        } else {
            self.seen.keys_deleted += 1;
        }
    }
}
