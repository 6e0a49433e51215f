//! The request budget: a token bucket that keeps any window within the limit. Pure: the caller brings the
//! clock.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// How many requests the API may see in any window of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestBudget {
    /// The most requests in any window.
    pub requests: NonZeroU32,
    /// The window's length.
    pub period: Duration,
}

impl Default for RequestBudget {
    /// 1,100 in 5 minutes: Cloudflare's 1,200 less a margin for what else uses the token, such as a
    /// dashboard, and for requests that reach Cloudflare closer together than they were sent.
    fn default() -> Self {
        Self { requests: NonZeroU32::MIN.saturating_add(1_099), period: Duration::from_secs(300) }
    }
}

/// A bucket of capacity B that refills at (limit - B) / period, so that a full bucket spent at once and
/// all that flows in during the window after it are together no more than the limit.
#[derive(Debug)]
pub struct Budget {
    capacity: f64,
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Budget {
    /// A full bucket. B is a tenth of the limit: enough to answer a burst at once, and small enough that
    /// the steady rate stays near the limit.
    #[must_use]
    pub fn new(budget: RequestBudget, now: Instant) -> Self {
        let limit = f64::from(budget.requests.get());
        let capacity = (limit / 10.0).floor().max(1.0);
        // A limit of 1 leaves nothing to refill with; one request a period is still within it.
        let refill = (limit - capacity).max(if limit > 1.0 { 0.0 } else { 1.0 });
        Self {
            capacity,
            per_second: refill / budget.period.as_secs_f64().max(0.001),
            tokens: capacity,
            at: now,
        }
    }

    /// Takes the token for one request, or says when there will be one.
    ///
    /// # Errors
    /// The moment at which a token will be there.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        self.ready(now)?;
        self.tokens -= 1.0;
        Ok(())
    }

    /// Whether there is a token now.
    ///
    /// # Errors
    /// The moment at which a token will be there.
    pub fn ready(&mut self, now: Instant) -> Result<(), Instant> {
        self.refill(now);
        if self.tokens >= 1.0 {
            return Ok(());
        }
        let missing = (1.0 - self.tokens) / self.per_second;
        // Rounded up: asked again at that very moment, the token must be there.
        Err(now + Duration::from_secs_f64(missing) + Duration::from_millis(1))
    }

    /// How many requests could be sent now, for the metric.
    pub fn available(&mut self, now: Instant) -> f64 {
        self.refill(now);
        self.tokens.floor()
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.per_second).min(self.capacity);
        self.at = now.max(self.at);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn budget(requests: u32, seconds: u64) -> RequestBudget {
        RequestBudget { requests: NonZeroU32::new(requests).unwrap(), period: Duration::from_secs(seconds) }
    }

    /// Asks at the given gaps for ever more, and returns the most that any window of the period saw and
    /// how many requests were let through in all.
    fn most_in_a_window(limit: RequestBudget, gaps: &[u64]) -> (usize, usize) {
        let start = Instant::now();
        let mut bucket = Budget::new(limit, start);
        let (mut now, mut window, mut most, mut sent) = (start, VecDeque::new(), 0, 0);
        for gap in gaps.iter().cycle().take(20_000) {
            now += Duration::from_millis(*gap);
            if bucket.take(now).is_ok() {
                sent += 1;
                window.push_back(now);
                while window.front().is_some_and(|&first| now - first >= limit.period) {
                    window.pop_front();
                }
                most = most.max(window.len());
            }
        }
        (most, sent)
    }

    proptest! {
        #[test]
        fn no_window_ever_sees_more_than_the_limit(
            requests in 1_u32..2_000, seconds in 1_u64..600,
            gaps in proptest::collection::vec(0_u64..2_000, 1..20)
        ) {
            let (most, _) = most_in_a_window(budget(requests, seconds), &gaps);
            prop_assert!(most <= requests as usize, "{most} in a window, {requests} allowed");
        }
    }

    #[test]
    fn nine_tenths_of_the_limit_are_used_in_the_long_run() {
        // 20,000 asks 50 ms apart: 1,000 s, in which 1,100 a 300 s would be 3,667.
        let (most, sent) = most_in_a_window(budget(1_100, 300), &[50]);
        assert!((990..=1_100).contains(&most), "{most}");
        assert!(sent >= 3_300, "{sent}");
    }

    #[test]
    fn a_refusal_names_the_moment_of_the_next_token() {
        let start = Instant::now();
        for limit in [budget(1, 300), budget(2, 300), budget(1_100, 300)] {
            let mut bucket = Budget::new(limit, start);
            while bucket.take(start).is_ok() {}
            let next = bucket.take(start).unwrap_err();
            assert!(bucket.take(next - Duration::from_millis(50)).is_err());
            assert!(bucket.take(next).is_ok(), "{limit:?}");
        }
    }
}
