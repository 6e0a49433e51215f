//! The rest of the token's rate limit, and the requests that other clients send with the same token. Pure.
//!
//! Cloudflare's answers have the header `Ratelimit: "default";r=50;t=30`: 50 requests are left, and the window
//! starts again in 30 seconds (<https://developers.cloudflare.com/fundamentals/api/reference/limits/>). An answer
//! without this header changes nothing.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::Duration;

use tokio::time::Instant;

/// The rest of the rate limit, from the header of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// The requests that are left.
    pub remaining: u32,
    /// The time until the window starts again.
    pub resets_in: Duration,
}

impl Allowance {
    /// Parses the header. Of several limits, returns the limit with the fewest requests left.
    pub(super) fn parse(header: &str) -> Option<Self> {
        header.split(',').filter_map(Self::parse_one).min_by_key(|allowance| allowance.remaining)
    }

    fn parse_one(policy: &str) -> Option<Self> {
        let parameter = |name| {
            policy
                .split(';')
                .skip(1)
                .find_map(|part| part.trim().split_once('=').filter(|(key, _)| *key == name))
        };
        let text = |name| parameter(name).map(|(_, value)| value.trim());
        let resets_in = text("t").and_then(whole_seconds).unwrap_or_default();
        Some(Self { remaining: text("r")?.parse().ok()?, resets_in })
    }
}

/// Parses a number of seconds from a header. A number that does not fit `u64` becomes the maximum.
pub(super) fn whole_seconds(text: &str) -> Option<Duration> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

/// The period after which counting starts again.
const COUNTED: Duration = Duration::from_secs(300);

/// The requests of others that need no report: the budget leaves room for a dashboard or a deployment.
const A_FEW: u32 = 25;

/// Counts the requests that other clients send with the same token.
#[derive(Debug, Default)]
pub struct Others {
    /// The start of counting, the requests that were left then, and our own requests since then.
    since: Option<(Instant, u32, u32)>,
    reported_at: Option<Instant>,
}

impl Others {
    /// Counts a request of our own.
    pub fn sent(&mut self) {
        if let Some((_, _, own)) = &mut self.since {
            *own += 1;
        }
    }

    /// Takes in the rest of the limit from an answer.
    ///
    /// Returns the number of requests that others sent since counting started, if it is more than 25. Reports at
    /// most once in five minutes. The number is never too high, but can be too low: in a sliding window, returned
    /// requests hide as many.
    pub fn learn(&mut self, allowance: Allowance, now: Instant) -> Option<u32> {
        let Some((since, before, own)) = self.since else {
            self.since = Some((now, allowance.remaining, 0));
            return None;
        };
        // The window started again or slid, or the count is too old.
        if allowance.remaining > before || now.duration_since(since) > COUNTED {
            self.since = Some((now, allowance.remaining, 0));
            return None;
        }
        let others = (before - allowance.remaining).saturating_sub(own);
        let is_due = self.reported_at.is_none_or(|at| now.duration_since(at) > COUNTED);
        if others <= A_FEW || !is_due {
            return None;
        }
        self.reported_at = Some(now);
        Some(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(remaining: u32) -> Allowance {
        Allowance { remaining, resets_in: Duration::from_secs(30) }
    }

    #[test]
    fn the_header_parses_as_cloudflare_documents_it_and_in_no_other_form() {
        assert_eq!(Allowance::parse(r#""default";r=50;t=30"#), Some(left(50)));
        assert_eq!(Allowance::parse(r#""burst";r=100;t=60, "default"; r=50; t=30"#), Some(left(50)));
        for (long, seconds) in [("4294967296", 4_294_967_296), ("99999999999999999999999", u64::MAX)] {
            let allowance = Allowance { remaining: 0, resets_in: Duration::from_secs(seconds) };
            assert_eq!(Allowance::parse(&format!(r#""default";r=0;t={long}"#)), Some(allowance));
        }
        for other in ["", "50", r#""default""#, r#""default";r=many"#] {
            assert_eq!(Allowance::parse(other), None, "{other}");
        }
    }

    #[test]
    fn only_requests_of_others_are_reported_and_only_once() {
        let (mut others, mut now) = (Others::default(), Instant::now());
        let mut remaining = 1_200;
        for _ in 0..200 {
            others.sent();
            remaining -= 1;
            assert_eq!(others.learn(left(remaining), now), None);
        }
        remaining -= 100;
        // Counting starts with the first answer, which follows the first request.
        assert_eq!(others.learn(left(remaining), now), Some(100));
        assert_eq!(others.learn(left(remaining - 1), now), None);
        now += COUNTED * 2;
        assert_eq!(others.learn(left(1_200), now), None, "a new window");
        assert_eq!(others.learn(left(1_000), now), Some(200));
    }
}
