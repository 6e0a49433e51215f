//! The limit on requests: windows that fill, a block once one is over-full, and what a client is told of it.
//! Pure: the caller brings the clock.
//!
//! Cloudflare says "1,200 requests per five minute period" and not which kind of window that is. A sliding
//! window refuses whatever a fixed one of the same length would, and more: across the border of two fixed
//! windows twice the limit passes. So both are watched, whichever of them refuses.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// So many requests in a window of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The most requests in a window.
    pub requests: usize,
    /// The window's length, and the block's.
    pub period: Duration,
    /// The windows that refuse.
    pub windows: Windows,
}

/// Which windows refuse. Requests are counted in both kinds, whichever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// The window that ends now, whenever that is.
    Sliding,
    /// Windows that follow each other from the start of the simulator.
    Fixed {
        /// How long after the start one of them begins.
        phase: Duration,
    },
    /// A request is refused where either would refuse it.
    Both {
        /// As of [`Windows::Fixed`].
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

/// What a client is told of the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    pub(crate) limit: RateLimit,
    /// How many more requests the fuller window takes.
    pub(crate) remaining: usize,
    /// When it takes more.
    pub(crate) resets: Duration,
}

/// What the windows have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) most_in_sliding: usize,
    pub(crate) most_in_fixed: usize,
    /// Requests refused because this window was full, in the block that followed too.
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
    /// Those of the sliding window, oldest first.
    latest: VecDeque<Instant>,
    /// Which fixed window it is, and how many it has.
    fixed: (u128, usize),
    block: Option<Block>,
    tally: Tally,
}

impl Traffic {
    pub(crate) fn since(start: Instant) -> Self {
        Self { start, latest: VecDeque::new(), fixed: (0, 0), block: None, tally: Tally::default() }
    }

    /// Counts a request that nothing limits.
    pub(crate) fn count(&mut self, now: Instant) {
        self.advance(RateLimit::CLOUDFLARE, now);
        self.push(now);
    }

    /// Counts a request, or refuses it with how long to wait.
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

    /// What is left after the last request, which came now.
    pub(crate) fn quota(&self, limit: RateLimit, now: Instant) -> Quota {
        let left = |count| limit.requests.saturating_sub(count);
        let (remaining, resets) = if let Some(block) = &self.block {
            (0, block.until - now)
        } else if limit.windows.slides() {
            // Where both refuse, this one is never the emptier.
            let oldest = self.latest.front().map_or(now, |oldest| *oldest);
            (left(self.latest.len()), oldest + limit.period - now)
        } else {
            (left(self.fixed.1), limit.period.saturating_sub(self.over_of_window(limit, now)))
        };
        Quota { limit, remaining, resets }
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Time since the first border of fixed windows, which is not after the start.
    fn since_border(&self, limit: RateLimit, now: Instant) -> u128 {
        let period = limit.period.as_nanos().max(1);
        let before_start = (period - limit.windows.phase().as_nanos() % period) % period;
        now.duration_since(self.start).as_nanos() + before_start
    }

    /// How much of the present fixed window is over.
    fn over_of_window(&self, limit: RateLimit, now: Instant) -> Duration {
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
    fn one_too_many_blocks_everything_for_a_period() {
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
    fn a_border_lets_twice_the_limit_pass_and_the_sliding_window_sees_it() {
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

    /// The most that a sliding window sees is the most of the worst phase's fixed windows: whoever stays
    /// below the limit in the one need not know the phase of the other.
    #[test]
    fn the_worst_phase_sees_what_the_sliding_window_sees() {
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
    fn the_quota_says_what_is_left_and_until_when() {
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
    fn without_a_limit_it_counts_all_the_same() {
        let start = Instant::now();
        let mut traffic = Traffic::since(start);
        (0..2_000).for_each(|_| traffic.count(start));
        traffic.count(start + PERIOD);
        assert_eq!((traffic.tally().most_in_sliding, traffic.tally().most_in_fixed), (2_000, 2_000));
    }
}
