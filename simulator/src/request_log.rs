//! The log of the latest requests, refused requests included. Tests look at single requests.
//!
//! The numbers of requests and of their keys are limited.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::operation::Operation;

/// The most requests in the log: more than half an hour at Cloudflare's limit. The oldest are removed first.
const MAX_REQUESTS: usize = 10_000;

/// The most keys of a request whose keys are kept. More keys are only counted.
const MAX_KEYS: usize = 200;

/// A request in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    /// The time at which the request's head arrived, before any latency.
    pub at: Instant,
    /// The operation.
    pub operation: Operation,
    /// The number of keys; 0 if the request was refused before its keys were parsed.
    pub key_count: usize,
    /// The keys; empty for more than 200.
    pub keys: Vec<String>,
    /// The status of the answer; `None` without an answer, or before it.
    pub answered: Option<u16>,
    /// The name of the rule that applied to the request.
    pub fault: Option<String>,
}

/// The number of a request in the log, in the order of arrival.
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

    /// The request with this number, if it is still in the log.
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
    fn the_log_keeps_the_latest_requests_with_their_answers() {
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
    fn the_log_keeps_the_keys_of_small_requests_only() {
        let (mut log, now) = (RequestLog::default(), Instant::now());
        for count in [2, MAX_KEYS + 1] {
            let number = log.arrived(Operation::BulkPut, now);
            log.keys(number, std::iter::repeat_n("key", count));
        }
        let kept: Vec<_> = log.requests().iter().map(|seen| (seen.key_count, seen.keys.len())).collect();
        assert_eq!(kept, [(2, 2), (MAX_KEYS + 1, 0)]);
    }
}
