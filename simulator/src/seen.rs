//! What the simulator saw of its clients, for tests and benchmarks to judge them by.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::keys::KeyId;
use crate::operation::Operation;
use crate::spread::{Counts, Spread};

/// Cloudflare allows about one write a second to one key.
const LEAST_BETWEEN_WRITES: Duration = Duration::from_secs(1);

/// Counters since the start, or since the latest reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Requests that were let in, by operation (`bulk_put`, `bulk_delete`, `bulk_get`, `put`, ...).
    pub requests: BTreeMap<&'static str, u64>,
    /// All requests that arrived, refused ones too, by operation and by the status of their answer, or
    /// `none` where there was no answer.
    pub answers: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Requests that a rule befell, by its name.
    pub faults: BTreeMap<String, u64>,
    /// Keys that the requests let in were about, by operation; of lists, those on the pages they were
    /// answered with.
    pub keys: BTreeMap<&'static str, u64>,
    /// How many keys each bulk request that was let in was about, by operation.
    pub keys_per_request: BTreeMap<&'static str, Spread>,
    /// Bytes of the bodies of the requests let in, by operation; of those that have bodies.
    pub body_bytes: BTreeMap<&'static str, u64>,
    /// Keys written.
    pub keys_put: u64,
    /// Keys deleted.
    pub keys_deleted: u64,
    /// Requests answered with 429, by the rate limit or by a fault.
    pub throttled: u64,
    /// Requests answered with another error, or with a redirect.
    pub refused: u64,
    /// Requests that the rate limit refused while its sliding window was full, or in the block that
    /// followed.
    pub throttled_by_sliding_window: u64,
    /// The same of its fixed window. One request may be in both.
    pub throttled_by_fixed_window: u64,
    /// The most requests that any window of the rate limit's length has seen, wherever it begins; without
    /// a limit, of five minutes. No fixed window of any phase has seen more, and one of the worst phase has
    /// seen as many.
    pub most_in_sliding_window: usize,
    /// The most that any of the fixed windows has seen, in the phase that is configured.
    pub most_in_fixed_window: usize,
    /// Writes that came less than a second after the one before to the same key was answered.
    pub writes_too_soon: u64,
    /// Keys that were in two requests at the same time.
    pub overlapping_keys: u64,
}

impl Seen {
    /// All requests that were let in.
    #[must_use]
    pub fn total_requests(&self) -> u64 {
        self.requests.values().sum()
    }

    /// How often a rule of this name befell a request.
    #[must_use]
    pub fn fault(&self, name: &str) -> u64 {
        self.faults.get(name).copied().unwrap_or_default()
    }

    /// How many requests of this operation were answered with this status; nothing: not at all.
    #[must_use]
    pub fn answered(&self, operation: Operation, status: Option<u16>) -> u64 {
        let by_status = self.answers.get(operation.name());
        by_status.and_then(|answers| answers.get(&answer_name(status))).copied().unwrap_or_default()
    }
}

fn answer_name(status: Option<u16>) -> String {
    status.map_or_else(|| "none".to_owned(), |status| status.to_string())
}

/// The counters and what it takes to keep them.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: Seen,
    per_request: BTreeMap<&'static str, Counts>,
    /// By the numbers of keys.
    attention: Vec<Attention>,
}

/// Who is at a key.
#[derive(Debug, Default)]
struct Attention {
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
            let requests = &mut id.slot(&mut self.attention).requests;
            *requests += 1;
            self.seen.overlapping_keys += u64::from(*requests > 1);
        }
    }

    pub(crate) fn end(&mut self, ids: &[KeyId]) {
        for id in ids {
            let requests = &mut id.slot(&mut self.attention).requests;
            *requests = requests.saturating_sub(1);
        }
    }

    pub(crate) fn listed(&mut self, keys: usize) {
        *self.seen.keys.entry(Operation::List.name()).or_default() += keys as u64;
    }

    pub(crate) fn befell(&mut self, rule: &str) {
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

    /// Notes that a write of these keys is being answered as if done, whether it has landed or not: a client
    /// can only pace itself by answers.
    pub(crate) fn wrote<'a>(&mut self, ids: impl IntoIterator<Item = &'a KeyId>, now: Instant) {
        for id in ids {
            let before = id.slot(&mut self.attention).written.replace(now);
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
