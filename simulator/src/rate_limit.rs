//! The limit on requests: a sliding window, and a block once it is exceeded. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// So many requests in any window of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The most requests in a window.
    pub requests: usize,
    /// The window's length, and the block's.
    pub period: Duration,
}

impl RateLimit {
    /// "1,200 requests per five minutes"; past it "all API calls for the next five minutes will be
    /// blocked". <https://developers.cloudflare.com/fundamentals/api/reference/limits/>
    pub const CLOUDFLARE: Self = Self { requests: 1_200, period: Duration::from_secs(300) };
}

/// The requests of the last window.
#[derive(Debug, Default)]
pub(crate) struct Window {
    requests: VecDeque<Instant>,
    blocked_until: Option<Instant>,
    most: usize,
}

impl Window {
    /// Counts a request; refuses it with how long to wait.
    pub(crate) fn admit(&mut self, limit: RateLimit, now: Instant) -> Result<(), Duration> {
        if let Some(until) = self.blocked_until.filter(|until| *until > now) {
            return Err(until - now);
        }
        while self.requests.front().is_some_and(|first| now.duration_since(*first) >= limit.period) {
            self.requests.pop_front();
        }
        if self.requests.len() >= limit.requests {
            self.blocked_until = Some(now + limit.period);
            return Err(limit.period);
        }
        self.requests.push_back(now);
        self.most = self.most.max(self.requests.len());
        Ok(())
    }

    /// The most requests that any window has seen.
    pub(crate) fn most(&self) -> usize {
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_too_many_blocks_everything_for_a_period() {
        let limit = RateLimit { requests: 3, period: Duration::from_secs(300) };
        let (mut window, start) = (Window::default(), Instant::now());
        for second in 0..3 {
            assert_eq!(window.admit(limit, start + Duration::from_secs(second)), Ok(()));
        }
        let fourth = start + Duration::from_secs(299);
        assert_eq!(window.admit(limit, fourth), Err(limit.period));
        assert!(window.admit(limit, fourth + Duration::from_secs(299)).is_err());
        assert_eq!(window.admit(limit, fourth + limit.period), Ok(()));
        assert_eq!(window.most(), 3);
    }
}
