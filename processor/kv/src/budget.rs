//! The request budget: a token bucket that keeps every window within the limit. Pure: the caller passes the time.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// The most requests to the API in any window of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestBudget {
    /// The most requests in any window.
    pub requests: NonZeroU32,
    /// The window's length.
    pub period: Duration,
}

impl Default for RequestBudget {
    /// 1,100 requests in 5 minutes: Cloudflare's 1,200 and a margin.
    ///
    /// The margin is for other users of the token, such as a dashboard. It is also for requests that reach
    /// Cloudflare closer together than they were sent.
    fn default() -> Self {
        Self { requests: NonZeroU32::MIN.saturating_add(1_099), period: Duration::from_secs(300) }
    }
}

impl RequestBudget {
    /// The share of one replica, if this many replicas share the budget without coordination.
    #[must_use]
    pub fn shared_by(self, replicas: NonZeroU32) -> Self {
        let requests = NonZeroU32::new(self.requests.get() / replicas.get()).unwrap_or(NonZeroU32::MIN);
        Self { requests, ..self }
    }
}

/// The rest of a budget that a holder leaves to the next holder.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spare {
    /// The requests that may be sent at once.
    pub requests: f64,
    /// The time for which the budget has refilled since then.
    pub refilling: Duration,
}

/// The late requests of a former holder, which every budget leaves room for.
///
/// After a pause, a projector may send a few pending requests before it notices the new holder.
const LATE: f64 = 4.0;

/// The requests that a pipeline may send at once if the earlier spending is unknown: another may have spent them.
pub const UNKNOWN: f64 = 4.0;

/// A token bucket for requests.
///
/// A bucket of capacity B refills at (limit - B) / period. So a full bucket, spent at once, and its refill during
/// the following window are together within the limit.
#[derive(Debug)]
pub struct Budget {
    capacity: f64,
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Budget {
    /// A full bucket, for a budget that was not spent for a whole period.
    ///
    /// B is a twentieth of the limit: enough for a burst, and small enough for a steady rate of 95 % of the limit.
    /// The bucket's capacity is B without the [`LATE`] requests.
    #[must_use]
    pub fn new(budget: RequestBudget, now: Instant) -> Self {
        let limit = f64::from(budget.requests.get());
        let reserve = (limit / 20.0).floor().max(1.0);
        // With a limit of 1 the refill would be 0. One request a period is within the limit.
        let refill = (limit - reserve).max(if limit > 1.0 { 0.0 } else { 1.0 });
        let capacity = (reserve - LATE).max(1.0);
        let per_second = refill / budget.period.as_secs_f64().max(0.001);
        Self { capacity, per_second, tokens: capacity, at: now }
    }

    /// A bucket whose earlier spending is unknown: it has at most [`UNKNOWN`] requests.
    #[must_use]
    pub fn unknown(budget: RequestBudget, now: Instant) -> Self {
        Self::resumed(budget, Spare { requests: UNKNOWN, refilling: Duration::ZERO }, now)
    }

    /// A bucket that continues with the rest that another holder left.
    #[must_use]
    pub fn resumed(budget: RequestBudget, spare: Spare, now: Instant) -> Self {
        let full = Self::new(budget, now);
        let tokens = spare.requests + spare.refilling.as_secs_f64() * full.per_second;
        Self { tokens: tokens.clamp(0.0, full.capacity), ..full }
    }

    /// Takes the token for one request.
    ///
    /// # Errors
    /// If there is no token: the time of the next one.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        self.ready(now)?;
        self.tokens -= 1.0;
        Ok(())
    }

    /// Whether there is a token now.
    ///
    /// # Errors
    /// If there is no token: the time of the next one.
    pub fn ready(&mut self, now: Instant) -> Result<(), Instant> {
        self.refill(now);
        if self.tokens >= 1.0 {
            return Ok(());
        }
        let missing = (1.0 - self.tokens) / self.per_second;
        // Rounded up, so that the token is there at that time.
        Err(now + Duration::from_secs_f64(missing) + Duration::from_millis(1))
    }

    /// The number of requests that may be sent now, for the metric.
    pub fn available(&mut self, now: Instant) -> f64 {
        self.refill(now);
        self.tokens.floor()
    }

    /// The number of requests that may be sent now.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to the capacity, part of a u32"
    )]
    pub fn whole(&mut self, now: Instant) -> u32 {
        self.refill(now);
        self.tokens as u32
    }

    /// The level of the bucket, from 0.0 to 1.0.
    pub fn level(&mut self, now: Instant) -> f64 {
        self.refill(now);
        self.tokens / self.capacity
    }

    /// The time in which the bucket gains one request.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.per_second)
    }

    /// Limits the bucket to this many requests, the rest that KV reports.
    pub fn at_most(&mut self, requests: u32, now: Instant) {
        self.refill(now);
        self.tokens = self.tokens.min(f64::from(requests));
    }

    /// Changes the limit. Spent requests remain spent.
    pub fn change(&mut self, budget: RequestBudget, now: Instant) {
        let spare = Spare { requests: self.available(now), refilling: Duration::ZERO };
        *self = Self::resumed(budget, spare, now);
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

    /// Takes tokens at the given gaps. Returns the most tokens in any window of the period, and the total.
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
        fn no_window_has_more_requests_than_the_limit(
            requests in 1_u32..2_000, seconds in 1_u64..600,
            gaps in proptest::collection::vec(0_u64..2_000, 1..20)
        ) {
            let (most, _) = most_in_a_window(budget(requests, seconds), &gaps);
            prop_assert!(most <= requests as usize, "{most} in a window, {requests} allowed");
        }
    }

    #[test]
    fn a_steady_load_uses_95_percent_of_the_limit() {
        // 20,000 attempts with gaps of 50 ms take 1,000 s. 1,100 requests in 300 s would be 3,667 in that time.
        let (most, sent) = most_in_a_window(budget(1_100, 300), &[50]);
        assert!((1_045..=1_100).contains(&most), "{most}");
        assert!(sent >= 3_480, "{sent}");
    }

    #[test]
    fn a_budget_that_passes_between_holders_is_never_spent_twice() {
        let (limit, start) = (budget(1_100, 300), Instant::now());
        let (mut now, mut spent) = (start, Vec::new());
        let mut bucket = Budget::new(limit, now);
        for round in 0..60 {
            while bucket.take(now).is_ok() {
                spent.push(now);
            }
            // The holder continues for as long as it may, and then stops before it sends its late requests.
            for _ in 0..30 {
                now += Duration::from_millis(100);
                if bucket.take(now).is_ok() {
                    spent.push(now);
                }
            }
            now += Duration::from_secs(1);
            let spare = Spare { requests: 0.0, refilling: Duration::from_secs(1) };
            bucket = Budget::resumed(limit, spare, now);
            // A former holder sends a late request, within the number that the budget leaves room for.
            if round % 15 == 0 {
                spent.push(now);
            }
        }
        let most = (0..spent.len())
            .map(|n| spent[n..].iter().take_while(|at| **at < spent[n] + limit.period).count())
            .max();
        assert!(most <= Some(1_100), "{most:?}");
        assert!(spent.len() > 700, "{}", spent.len());
    }

    #[test]
    fn the_rest_that_kv_reports_and_a_changed_limit_take_effect_at_once() {
        let now = Instant::now();
        let mut bucket = Budget::new(budget(1_100, 300), now);
        bucket.at_most(2, now);
        assert_eq!(bucket.available(now), 2.0);
        bucket.change(budget(2_200, 300), now);
        assert_eq!(bucket.available(now), 2.0);
        bucket.change(budget(1, 300), now);
        assert_eq!(bucket.available(now), 1.0);
    }

    #[test]
    fn a_refusal_names_the_time_of_the_next_token() {
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
