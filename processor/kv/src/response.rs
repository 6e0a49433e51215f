//! An answer of the API as it comes over the wire, and how it is read. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use tracing::warn;

use super::allowance::whole_seconds;
use super::answer::{self, Failure, LONGEST_WAIT};

/// An answer of the API as it came over the wire.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// The HTTP status.
    pub status: u16,
    /// The header of that name, if it was there and is text.
    pub retry_after: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

impl Response<'_> {
    /// Reads it as the answer to a bulk write or delete of so many keys: the keys it says were not written.
    ///
    /// # Errors
    /// As it says, by what has to happen next.
    pub fn written(self, sent: usize, now: SystemTime) -> Result<HashSet<String>, Failure> {
        self.read(now, |body| answer::written(body, sent))
    }

    /// Reads it as the answer to a bulk read: each key's value, or that there is none.
    ///
    /// # Errors
    /// As it says, by what has to happen next.
    pub fn values(self, now: SystemTime) -> Result<HashMap<String, Option<String>>, Failure> {
        self.read(now, answer::values)
    }

    /// Reads the body of a success by `read`. `now`: for a `Retry-After` that is a date.
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

/// Seconds, or the HTTP date that RFC 9110 allows as well.
fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    whole_seconds(value).or_else(|| {
        let at = httpdate::parse_http_date(value).ok()?;
        Some(at.duration_since(now).unwrap_or_default())
    })
}

/// No longer than is believed of KV.
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
        assert_eq!(parse("Sat, 05 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO), "it is over");
        for other in ["", "soon", "-1", "1.5"] {
            assert_eq!(parse(other), None, "{other}");
        }
        let long = ["9999999999999999999", "99999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"];
        for long in long.map(|value| parse(value).unwrap()) {
            assert_eq!(capped(long), LONGEST_WAIT);
        }
    }
}
