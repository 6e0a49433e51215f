//! What the simulator saw of its clients, for tests and benchmarks to judge them by.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::operation::Operation;

/// Cloudflare allows about one write a second to one key.
const LEAST_BETWEEN_WRITES: Duration = Duration::from_secs(1);

/// Counters since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Requests that were let in, by operation (`bulk_put`, `bulk_delete`, `bulk_get`, `put`, ...).
    pub requests: BTreeMap<&'static str, u64>,
    /// All requests that arrived, refused ones too, by operation and by the status of their answer, or
    /// `none` where there was no answer.
    pub answers: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Requests that a rule befell, by its name.
    pub faults: BTreeMap<String, u64>,
    /// Keys written.
    pub keys_put: u64,
    /// Keys deleted.
    pub keys_deleted: u64,
    /// Requests answered with 429, by the rate limit or by a fault.
    pub throttled: u64,
    /// Requests answered with another error, or with a redirect.
    pub refused: u64,
    /// The most requests that any window of the rate limit's length has seen.
    pub most_in_a_window: usize,
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
    pub(crate) seen: Seen,
    busy: HashMap<String, u32>,
    written: HashMap<String, Instant>,
}

impl Watch {
    pub(crate) fn begin<'a>(&mut self, operation: Operation, keys: impl Iterator<Item = &'a str>) {
        *self.seen.requests.entry(operation.name()).or_default() += 1;
        for key in keys {
            let requests = self.busy.entry(key.to_owned()).or_default();
            *requests += 1;
            if *requests > 1 {
                self.seen.overlapping_keys += 1;
            }
        }
    }

    pub(crate) fn end<'a>(&mut self, keys: impl Iterator<Item = &'a str>) {
        for key in keys {
            if let Some(requests) = self.busy.get_mut(key) {
                *requests -= 1;
                if *requests == 0 {
                    self.busy.remove(key);
                }
            }
        }
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

    pub(crate) fn wrote(&mut self, key: &str, now: Instant) {
        if let Some(before) = self.written.insert(key.to_owned(), now)
            && now.duration_since(before) < LEAST_BETWEEN_WRITES
        {
            self.seen.writes_too_soon += 1;
        }
    }
}
