//! Decides when a request is worthwhile. Pure.
//!
//! An idle pipeline writes at once. A busy one gathers changes while a request is in flight. The
//! less of the budget is left, the longer it gathers. So the budget never runs out, and a reserve
//! stays for requests that fill by themselves.

use std::time::Duration;

/// The most requests of one kind in flight. Four cover the latency of full batches; more would only
/// spend the budget sooner.
const MOST_IN_FLIGHT: usize = 4;

/// Above this level of the budget, nothing is delayed.
const PLENTY: f64 = 0.5;

/// At this level, requests that are not full are sent as slowly as the budget refills, so that the
/// budget sinks no lower.
const RESERVE: f64 = 0.2;

/// If no more keys can gather, a request of one part in so many of a full one is worthwhile.
const WORTHWHILE: usize = 4;

/// How long deletes wait beside puts to fill a request of their own, as a multiple of the spacing.
const PATIENCE: f64 = 8.0;

/// The facts that the decision to send depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation {
    /// The number of keys that could be sent.
    pub(crate) ready: usize,
    /// The number of requests of this kind in flight.
    pub(crate) in_flight: usize,
    /// The number of keys of a full request.
    pub(crate) full: usize,
    /// The time since the last request.
    pub(crate) since_last: Duration,
    /// The wanted time between two requests that are not full, by [`spacing`].
    pub(crate) spacing: Duration,
    /// Whether memory has room for more keys before some of these are done.
    pub(crate) more_may_come: bool,
}

/// The decision whether to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worth {
    /// Send now.
    Now,
    /// Send after this time, unless something changes before.
    Later(Duration),
    /// Send only after something changes.
    No,
}

impl Situation {
    /// Decides whether a request is worthwhile now, later or not at all.
    pub(crate) fn worth_sending(self) -> Worth {
        if self.ready == 0 || !has_place(self.in_flight) {
            return Worth::No;
        }
        if self.ready >= self.full {
            return Worth::Now;
        }
        // No keys can gather beside the requests in flight. If the budget is plentiful, a part of a
        // request is better than none.
        if !self.more_may_come && self.spacing.is_zero() && self.ready >= self.full / WORTHWHILE {
            return Worth::Now;
        }
        if self.in_flight > 0 {
            return Worth::No;
        }
        match self.spacing.checked_sub(self.since_last) {
            None | Some(Duration::ZERO) => Worth::Now,
            Some(left) => Worth::Later(left),
        }
    }
}

/// The wanted time between two requests that are not full.
///
/// `level` of the budget is in 0.0..=1.0; the budget gains one request in each `interval`.
pub(crate) fn spacing(level: f64, interval: Duration) -> Duration {
    interval.mul_f64(scarcity(level))
}

/// How long deletes may wait for others, so that one full request replaces two partial ones.
pub(crate) fn patience(level: f64, interval: Duration) -> Duration {
    interval.mul_f64(scarcity(level) * PATIENCE)
}

/// 0 if the budget is plentiful, 1 at the reserve and below.
fn scarcity(level: f64) -> f64 {
    ((PLENTY - level) / (PLENTY - RESERVE)).clamp(0.0, 1.0)
}

/// Returns whether one more request, of any kind, is allowed beside those in flight.
pub(crate) fn has_place(in_flight: usize) -> bool {
    in_flight < MOST_IN_FLIGHT
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(287);

    fn idle(ready: usize) -> Situation {
        let since_last = Duration::from_millis(100);
        Situation {
            ready,
            in_flight: 0,
            full: 1_000,
            since_last,
            spacing: Duration::ZERO,
            more_may_come: true,
        }
    }

    #[test]
    fn idle_sends_at_once_and_busy_gathers() {
        assert_eq!(idle(1).worth_sending(), Worth::Now);
        assert_eq!(idle(0).worth_sending(), Worth::No);
        let busy = |ready, in_flight| Situation { in_flight, ..idle(ready) }.worth_sending();
        assert_eq!(busy(999, 1), Worth::No);
        assert_eq!(busy(1_000, 3), Worth::Now);
        assert_eq!(busy(5_000, 4), Worth::No);
    }

    #[test]
    fn where_memory_is_full_a_part_of_a_request_goes_out_if_there_is_plenty_of_budget() {
        let crowded = |ready, spacing| {
            Situation { in_flight: 2, more_may_come: false, spacing, ..idle(ready) }.worth_sending()
        };
        assert_eq!(crowded(250, Duration::ZERO), Worth::Now);
        assert_eq!(crowded(249, Duration::ZERO), Worth::No);
        assert_eq!(crowded(999, INTERVAL), Worth::No);
    }

    #[test]
    fn when_the_budget_gets_scarce_what_is_not_full_waits_and_what_is_full_does_not() {
        let scarce = |ready| Situation { spacing: INTERVAL, ..idle(ready) }.worth_sending();
        assert_eq!(scarce(10), Worth::Later(Duration::from_millis(187)));
        assert_eq!(scarce(1_000), Worth::Now);
    }

    #[test]
    fn a_reserve_stays_however_long_there_is_a_little_to_write() {
        let (mut level, mut least): (f64, f64) = (1.0, 1.0);
        let capacity = 51.0;
        for _ in 0..10_000 {
            // Each answer takes 50 ms, and there is always a task to write.
            let gap = spacing(level, INTERVAL).max(Duration::from_millis(50));
            level = (level - 1.0 / capacity + gap.as_secs_f64() / INTERVAL.as_secs_f64() / capacity).min(1.0);
            least = least.min(level);
        }
        assert!(least > RESERVE - 1.0 / capacity, "{least}");
        assert!(level < PLENTY, "{level}: and it was used");
    }

    #[test]
    fn deletes_wait_for_others_only_where_requests_are_scarce() {
        assert_eq!(patience(0.9, INTERVAL), Duration::ZERO);
        assert!(patience(0.0, INTERVAL) > Duration::from_secs(2));
        assert!(patience(0.0, INTERVAL) < Duration::from_secs(3));
    }
}
