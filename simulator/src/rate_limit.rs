//! The rate limit: windows, the block after a full window, and the quota in answers. Pure: the caller passes the
//! time.
//!
//! Cloudflare documents "1,200 requests per five minute period", but not the kind of window. A sliding window refuses
//! all that a fixed window of the same length refuses, and more: twice the limit can pass around the border of two
//! fixed windows. So the simulator counts both kinds, even if only one of them refuses.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// A limit on the requests in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The most requests in a window.
    pub requests: usize,
    /// The length of a window, and of the block after a full window.
    pub period: Duration,
    /// The kinds of windows that refuse.
    pub windows: Windows,
}

/// The kinds of windows that refuse. Requests are always counted in both kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// The period before each request.
    Sliding,
    /// Consecutive windows.
    Fixed {
        /// A window begins this long after the start of the simulator.
        phase: Duration,
    },
    /// Both kinds: a request is refused if one of them refuses it.
    Both {
        /// As in [`Windows::Fixed`].
        phase: Duration,
    },
}

impl Windows {
    fn slides(self) -> bool {
        !matches!(self, Self::Fixed { .. })
    }

    fn is_fixed(self) -> bool {
        !matches!(self, Self::Sliding)
    }

    fn phase(self) -> Duration {
        match self {
            Self::Sliding => Duration::ZERO,
            Self::Fixed { phase } | Self::Both { phase } => phase,
        }
    }
}

impl RateLimit {
    /// "1,200 requests per five minute period"; past it "all API calls for the next five minutes will be
    /// blocked". <https://developers.cloudflare.com/fundamentals/api/reference/limits/>
    pub const CLOUDFLARE: Self = Self {
        requests: 1_200,
        period: Duration::from_secs(300),
        windows: Windows::Both { phase: Duration::ZERO },
    };
}

/// The state of the limit, for the headers of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    pub(crate) limit: RateLimit,
    /// The requests that are left in the fuller window.
    pub(crate) remaining: usize,
    /// The time until that window admits more.
    pub(crate) resets: Duration,
}

/// The counters of the windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) most_in_sliding: usize,
    pub(crate) most_in_fixed: usize,
    /// Requests refused while this window was full, or in the block after it.
    pub(crate) refused_by_sliding: u64,
    pub(crate) refused_by_fixed: u64,
}

#[derive(Debug)]
struct Block {
    until: Instant,
    by_sliding: bool,
    by_fixed: bool,
}

/// The requests of the latest windows.
#[derive(Debug)]
pub(crate) struct Traffic {
    start: Instant,
    /// The requests in the sliding window, oldest first.
    latest: VecDeque<Instant>,
    /// The number of the current fixed window, and its requests.
    fixed: (u128, usize),
    block: Option<Block>,
    tally: Tally,
}

impl Traffic {
    pub(crate) fn since(start: Instant) -> Self {
        Self { start, latest: VecDeque::new(), fixed: (0, 0), block: None, tally: Tally::default() }
    }

    /// Counts a request without a limit.
    pub(crate) fn count(&mut self, now: Instant) {
        self.advance(RateLimit::CLOUDFLARE, now);
        self.push(now);
    }

    /// Admits and counts a request, or returns the time to wait.
    pub(crate) fn admit(&mut self, limit: RateLimit, now: Instant) -> Result<(), Duration> {
        self.advance(limit, now);
        if self.block.as_ref().is_none_or(|block| block.until <= now) {
            let by_sliding = limit.windows.slides() && self.latest.len() >= limit.requests;
            let by_fixed = limit.windows.is_fixed() && self.fixed.1 >= limit.requests;
            let full = by_sliding || by_fixed;
            self.block = full.then(|| Block { until: now + limit.period, by_sliding, by_fixed });
        }
        let Some(block) = &self.block else {
            self.push(now);
            return Ok(());
        };
        self.tally.refused_by_sliding += u64::from(block.by_sliding);
        self.tally.refused_by_fixed += u64::from(block.by_fixed);
        Err(block.until - now)
    }

    /// The quota after the last request, which came now.
    pub(crate) fn quota(&self, limit: RateLimit, now: Instant) -> Quota {
        let left = |count| limit.requests.saturating_sub(count);
        let (remaining, resets) = if let Some(block) = &self.block {
            (0, block.until - now)
        } else if limit.windows.slides() {
            // If both kinds refuse, the sliding window is never the emptier.
            let oldest = self.latest.front().map_or(now, |oldest| *oldest);
            (left(self.latest.len()), oldest + limit.period - now)
        } else {
            (left(self.fixed.1), limit.period.saturating_sub(self.elapsed_in_window(limit, now)))
        };
        Quota { limit, remaining, resets }
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// The nanoseconds since the first border of fixed windows, which is not after the start.
    fn since_border(&self, limit: RateLimit, now: Instant) -> u128 {
        let period = limit.period.as_nanos().max(1);
        let before_start = (period - limit.windows.phase().as_nanos() % period) % period;
        now.duration_since(self.start).as_nanos() + before_start
    }

    /// The time since the current fixed window began.
    fn elapsed_in_window(&self, limit: RateLimit, now: Instant) -> Duration {
        let nanos = self.since_border(limit, now) % limit.period.as_nanos().max(1);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn advance(&mut self, limit: RateLimit, now: Instant) {
        while self.latest.front().is_some_and(|first| now.duration_since(*first) >= limit.period) {
            self.latest.pop_front();
        }
        let window = self.since_border(limit, now) / limit.period.as_nanos().max(1);
        if self.fixed.0 != window {
            self.fixed = (window, 0);
        }
    }

    fn push(&mut self, now: Instant) {
        self.latest.push_back(now);
        self.fixed.1 += 1;
        self.tally.most_in_sliding = self.tally.most_in_sliding.max(self.latest.len());
        self.tally.most_in_fixed = self.tally.most_in_fixed.max(self.fixed.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(300);

    fn three(windows: Windows) -> RateLimit {
        RateLimit { requests: 3, period: PERIOD, windows }
    }

    /// Which of the requests at these seconds are let in, and what was seen.
    fn let_in(limit: RateLimit, seconds: &[u64]) -> (Vec<bool>, Tally) {
        let start = Instant::now();
        let mut traffic = Traffic::since(start);
        let admit = |second: &u64| traffic.admit(limit, start + Duration::from_secs(*second)).is_ok();
        let admitted = seconds.iter().map(admit).collect();
        (admitted, traffic.tally())
    }

    #[test]
    fn a_request_over_the_limit_blocks_all_requests_for_a_period() {
        for windows in [RateLimit::CLOUDFLARE.windows, Windows::Sliding, Windows::Fixed { phase: PERIOD }] {
            let (limit, start) = (three(windows), Instant::now());
            let mut traffic = Traffic::since(start);
            for second in 0..3 {
                assert_eq!(traffic.admit(limit, start + Duration::from_secs(second)), Ok(()));
            }
            let fourth = start + Duration::from_secs(299);
            assert_eq!(traffic.admit(limit, fourth), Err(PERIOD));
            let later = fourth + Duration::from_secs(299);
            assert_eq!(traffic.admit(limit, later), Err(Duration::from_secs(1)));
            assert_eq!(traffic.quota(limit, later).remaining, 0);
            assert_eq!(traffic.admit(limit, fourth + PERIOD), Ok(()));
            let Tally { most_in_sliding, most_in_fixed, refused_by_sliding, refused_by_fixed } =
                traffic.tally();
            assert_eq!((most_in_sliding, most_in_fixed), (3, 3));
            let by = |refuses| if refuses { 2 } else { 0 };
            assert_eq!(refused_by_sliding, by(windows.slides()), "{windows:?}");
            assert_eq!(refused_by_fixed, by(windows.is_fixed()), "{windows:?}");
        }
    }

    #[test]
    fn twice_the_limit_passes_a_border_and_the_sliding_window_counts_it() {
        let seconds = [97, 98, 99, 100, 101, 102];
        let fixed = three(Windows::Fixed { phase: Duration::from_secs(100) });
        let (admitted, tally) = let_in(fixed, &seconds);
        assert_eq!(admitted, [true; 6]);
        assert_eq!((tally.most_in_sliding, tally.most_in_fixed), (6, 3));

        let both = three(Windows::Both { phase: Duration::from_secs(100) });
        let (admitted, tally) = let_in(both, &seconds);
        assert_eq!(admitted, [true, true, true, false, false, false]);
        assert_eq!((tally.refused_by_sliding, tally.refused_by_fixed), (3, 0));

        let elsewhere = three(Windows::Fixed { phase: Duration::from_secs(99) });
        assert_eq!(let_in(elsewhere, &seconds).0, [true, true, true, true, true, false]);
    }

    /// The maximum of the sliding window is that of the fixed windows with the worst phase. So a client within the
    /// limit of a sliding window is within the limit of fixed windows of any phase.
    #[test]
    fn the_worst_phase_has_the_same_maximum_as_the_sliding_window() {
        let seconds = [0, 10, 250, 299, 305, 306, 310, 400, 549, 555, 700, 701, 702];
        let of = |windows| {
            let limit = RateLimit { requests: usize::MAX, period: PERIOD, windows };
            let_in(limit, &seconds).1
        };
        let phases = 0..PERIOD.as_secs();
        let fixed =
            phases.map(|phase| of(Windows::Fixed { phase: Duration::from_secs(phase) }).most_in_fixed);
        assert_eq!(fixed.max().unwrap(), of(Windows::Sliding).most_in_sliding);
    }

    #[test]
    fn the_quota_has_the_requests_that_are_left_and_the_time() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let quota = |windows, seconds: &[u64]| {
            let mut traffic = Traffic::since(start);
            let limit = three(windows);
            seconds.iter().for_each(|second| traffic.admit(limit, at(*second)).unwrap());
            let quota = traffic.quota(limit, at(seconds[seconds.len() - 1]));
            (quota.remaining, quota.resets.as_secs())
        };
        let phase = Duration::from_secs(130);
        assert_eq!(quota(Windows::Sliding, &[10, 110]), (1, 200));
        assert_eq!(quota(Windows::Fixed { phase }, &[10, 110]), (1, 20));
        assert_eq!(quota(Windows::Fixed { phase }, &[10, 110, 140]), (2, 290));
        assert_eq!(quota(Windows::Both { phase }, &[10, 110, 140]), (0, 170));
    }

    #[test]
    fn without_a_limit_requests_are_counted_too() {
        let start = Instant::now();
        let mut traffic = Traffic::since(start);
        (0..2_000).for_each(|_| traffic.count(start));
        traffic.count(start + PERIOD);
        assert_eq!((traffic.tally().most_in_sliding, traffic.tally().most_in_fixed), (2_000, 2_000));
    }
}
