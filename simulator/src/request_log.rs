//! The latest requests that arrived, refused ones too, for tests to look at one by one. It may not grow
//! without end: neither the number of requests nor that of their keys.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::operation::Operation;

/// The most requests that are kept; the oldest go first. More than half an hour at Cloudflare's limit.
const MAX_REQUESTS: usize = 10_000;

/// The keys of a request with more of them are only counted.
const MAX_KEYS: usize = 200;

/// A request that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    /// When its head had arrived, before any latency.
    pub at: Instant,
    /// What it was for.
    pub operation: Operation,
    /// How many keys it was about; 0 where it was refused before they were read.
    pub key_count: usize,
    /// The keys, unless there were more than 200.
    pub keys: Vec<String>,
    /// The status of its answer; nothing where there was none, or none yet.
    pub answered: Option<u16>,
    /// The name of the rule that befell it.
    pub fault: Option<String>,
}

/// Which request of the log; they are numbered as they arrive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number(usize);

#[derive(Debug, Default)]
pub(crate) struct RequestLog {
    requests: VecDeque<LoggedRequest>,
    forgotten: usize,
}

impl RequestLog {
    pub(crate) fn arrived(&mut self, operation: Operation, at: Instant) -> Number {
        if self.requests.len() == MAX_REQUESTS {
            self.requests.pop_front();
            self.forgotten += 1;
        }
        self.requests.push_back(LoggedRequest {
            at,
            operation,
            key_count: 0,
            keys: Vec::new(),
            answered: None,
            fault: None,
        });
        Number(self.forgotten + self.requests.len() - 1)
    }

    /// The request with this number, unless it is forgotten.
    fn find(&mut self, number: Number) -> Option<&mut LoggedRequest> {
        self.requests.get_mut(number.0.checked_sub(self.forgotten)?)
    }

    pub(crate) fn keys<'a>(&mut self, number: Number, keys: impl Iterator<Item = &'a str> + Clone) {
        if let Some(request) = self.find(number) {
            request.key_count = keys.clone().count();
            if request.key_count <= MAX_KEYS {
                request.keys = keys.map(str::to_owned).collect();
            }
        }
    }

    pub(crate) fn fault(&mut self, number: Number, name: &str) {
        if let Some(request) = self.find(number) {
            request.fault = Some(name.to_owned());
        }
    }

    pub(crate) fn answered(&mut self, number: Number, status: Option<u16>) {
        if let Some(request) = self.find(number) {
            request.answered = status;
        }
    }

    pub(crate) fn requests(&self) -> Vec<LoggedRequest> {
        self.requests.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_are_kept_and_answers_find_theirs() {
        let (mut log, now) = (RequestLog::default(), Instant::now());
        let first = log.arrived(Operation::Get, now);
        let second = log.arrived(Operation::Put, now);
        for _ in 0..MAX_REQUESTS - 1 {
            log.arrived(Operation::List, now);
        }
        log.answered(first, Some(500));
        log.answered(second, Some(200));
        let requests = log.requests();
        assert_eq!((requests.len(), requests[0].operation), (MAX_REQUESTS, Operation::Put));
        assert_eq!((requests[0].answered, requests[1].answered), (Some(200), None));
    }

    #[test]
    fn keys_are_kept_of_small_requests_only() {
        let (mut log, now) = (RequestLog::default(), Instant::now());
        for count in [2, MAX_KEYS + 1] {
            let number = log.arrived(Operation::BulkPut, now);
            log.keys(number, std::iter::repeat_n("key", count));
        }
        let kept: Vec<_> = log.requests().iter().map(|seen| (seen.key_count, seen.keys.len())).collect();
        assert_eq!(kept, [(2, 2), (MAX_KEYS + 1, 0)]);
    }
}
