//! What KV itself says is left of the token's limit, and whether others use it too. Pure.
//!
//! Answers carry `Ratelimit: "default";r=50;t=30`: so many requests are left, and the window starts anew in so
//! many seconds (<https://developers.cloudflare.com/fundamentals/api/reference/limits/>). Where they do not,
//! nothing is concluded.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::Duration;

use tokio::time::Instant;

/// What an answer says is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Requests.
    pub remaining: u32,
    /// Until there are more.
    pub resets_in: Duration,
}

impl Allowance {
    /// Reads the header; of several limits, the one of which least is left.
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

/// A number of seconds, as headers have it. One that is too long to be counted is as long as can be.
pub(super) fn whole_seconds(text: &str) -> Option<Duration> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

/// How long requests are counted before they are counted anew.
const COUNTED: Duration = Duration::from_secs(300);

/// So many requests of others are taken for what a budget leaves room for: a dashboard, a deployment.
const A_FEW: u32 = 25;

/// Counts what others spend of the same token.
#[derive(Debug, Default)]
pub struct Others {
    /// When counting began, what was left then, and how many requests of our own were sent since.
    since: Option<(Instant, u32, u32)>,
    told: Option<Instant>,
}

impl Others {
    /// A request of our own was sent.
    pub fn sent(&mut self) {
        if let Some((_, _, own)) = &mut self.since {
            *own += 1;
        }
    }

    /// An answer said what is left. Answers how many requests others have sent of late, when they are more than a
    /// few and that was not told within the last five minutes.
    ///
    /// Never too many: in a sliding window some come back meanwhile, and hide as many.
    pub fn learn(&mut self, allowance: Allowance, now: Instant) -> Option<u32> {
        let Some((since, before, own)) = self.since else {
            self.since = Some((now, allowance.remaining, 0));
            return None;
        };
        // The window has begun anew, or has slid.
        if allowance.remaining > before || now.duration_since(since) > COUNTED {
            self.since = Some((now, allowance.remaining, 0));
            return None;
        }
        let others = (before - allowance.remaining).saturating_sub(own);
        let news = self.told.is_none_or(|at| now.duration_since(at) > COUNTED);
        if others <= A_FEW || !news {
            return None;
        }
        self.told = Some(now);
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
    fn the_header_is_read_as_cloudflare_documents_it_and_nothing_else_is() {
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
    fn our_own_requests_are_no_news_and_those_of_others_are_told_once() {
        let (mut others, mut now) = (Others::default(), Instant::now());
        let mut remaining = 1_200;
        for _ in 0..200 {
            others.sent();
            remaining -= 1;
            assert_eq!(others.learn(left(remaining), now), None);
        }
        remaining -= 100;
        // The first answer was to the first request: it is the one that is missing here.
        assert_eq!(others.learn(left(remaining), now), Some(100));
        assert_eq!(others.learn(left(remaining - 1), now), None);
        now += COUNTED * 2;
        assert_eq!(others.learn(left(1_200), now), None, "a new window");
        assert_eq!(others.learn(left(1_000), now), Some(200));
    }
}
