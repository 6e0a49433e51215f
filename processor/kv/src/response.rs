//! Parses an HTTP answer of the API. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use tracing::warn;

use super::allowance::whole_seconds;
use super::answer::{self, Failure, LONGEST_WAIT};

/// An HTTP answer of the API, before parsing.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// The HTTP status.
    pub status: u16,
    /// The `Retry-After` header, if the answer has it and it is text.
    pub retry_after: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

impl Response<'_> {
    /// Parses the answer to a bulk write or delete of `sent` keys: the keys that were not written.
    ///
    /// # Errors
    /// If the request failed, or its answer cannot be read.
    pub fn written(self, sent: usize, now: SystemTime) -> Result<HashSet<String>, Failure> {
        self.read(now, |body| answer::written(body, sent))
    }

    /// Parses the answer to a bulk read: the value of each key, or `None`.
    ///
    /// # Errors
    /// If the request failed, or its answer cannot be read.
    pub fn values(self, now: SystemTime) -> Result<HashMap<String, Option<String>>, Failure> {
        self.read(now, answer::values)
    }

    /// Parses the body of a success with `read`, and classifies any other answer.
    ///
    /// `now` is needed for a `Retry-After` that is a date.
    pub(crate) fn read<T>(
        self,
        now: SystemTime,
        read: impl FnOnce(&[u8]) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if (200..300).contains(&self.status) {
            return read(self.body);
        }
        let retry_after = self.retry_after.and_then(|value| parse_retry_after(value, now)).map(capped);
        Err(answer::failure(self.status, retry_after, self.body))
    }
}

/// Parses seconds, or an HTTP date, which RFC 9110 allows too.
fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    whole_seconds(value).or_else(|| {
        let at = httpdate::parse_http_date(value).ok()?;
        Some(at.duration_since(now).unwrap_or_default())
    })
}

/// Limits a wait to [`LONGEST_WAIT`], and logs a longer one.
fn capped(wait: Duration) -> Duration {
    if wait > LONGEST_WAIT {
        warn!(
            asked_seconds = wait.as_secs(),
            waiting_seconds = LONGEST_WAIT.as_secs(),
            "KV asks for a longer wait than any of its limits needs"
        );
    }
    wait.min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_677);
        let parse = |value| parse_retry_after(value, now);
        assert_eq!(parse(" 7 "), Some(Duration::from_secs(7)));
        for form in
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
        {
            assert_eq!(parse(form), Some(Duration::from_secs(100)), "{form}");
        }
        assert_eq!(parse("Sat, 05 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO), "the date is in the past");
        for other in ["", "soon", "-1", "1.5"] {
            assert_eq!(parse(other), None, "{other}");
        }
        let long = ["9999999999999999999", "99999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"];
        for long in long.map(|value| parse(value).unwrap()) {
            assert_eq!(capped(long), LONGEST_WAIT);
        }
    }
}
