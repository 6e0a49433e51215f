//! When a request is worth sending. Pure.
//!
//! An idle pipeline writes at once. A busy one lets changes gather while a request is out; and the less of the
//! budget is left, the longer it lets them gather, so that the budget never runs dry and a reserve stays for
//! what fills a request by itself.

use std::time::Duration;

/// The most requests of one kind that are out at a time. Four cover the latency of full batches; more would
/// only spend the budget sooner.
const MOST_IN_FLIGHT: usize = 4;

/// Down to this level of the budget nothing is held back.
const PLENTY: f64 = 0.5;

/// At this level requests that are not full go out as slowly as the budget refills, so that it sinks no lower.
const RESERVE: f64 = 0.2;

/// One part of so many of a full request is worth sending where no more keys can gather.
const WORTHWHILE: usize = 4;

/// For so many times the time between two requests deletes wait to fill a request of their own, beside puts.
const PATIENCE: f64 = 8.0;

/// What is known when the question is whether to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation {
    /// How many keys could go.
    pub(crate) ready: usize,
    /// How many requests of this kind are out.
    pub(crate) in_flight: usize,
    /// How many keys a request takes.
    pub(crate) full: usize,
    /// How long ago the last request was sent.
    pub(crate) since_last: Duration,
    /// How long it should be between two that are not full, by [`spacing`].
    pub(crate) spacing: Duration,
    /// Whether memory has room for more keys, before some of these are done.
    pub(crate) more_may_come: bool,
}

/// Whether to send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worth {
    /// Now.
    Now,
    /// After this long, unless something happens before.
    Later(Duration),
    /// Not before something happens.
    No,
}

impl Situation {
    /// Whether a request is worth sending now, later or not at all.
    pub(crate) fn worth_sending(self) -> Worth {
        if self.ready == 0 || !has_place(self.in_flight) {
            return Worth::No;
        }
        if self.ready >= self.full {
            return Worth::Now;
        }
        // Nothing can gather beside what is out: where requests abound, a part of one is better than none.
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

/// How long it should be between two requests that are not full, at this level of the budget (0.0 to 1.0), which
/// gains a request in each `interval`.
pub(crate) fn spacing(level: f64, interval: Duration) -> Duration {
    interval.mul_f64(scarcity(level))
}

/// How long deletes may wait for others, so that two requests are not sent where one and a bit would do.
pub(crate) fn patience(level: f64, interval: Duration) -> Duration {
    interval.mul_f64(scarcity(level) * PATIENCE)
}

/// 0 where there is plenty, 1 at the reserve and below.
fn scarcity(level: f64) -> f64 {
    ((PLENTY - level) / (PLENTY - RESERVE)).clamp(0.0, 1.0)
}

/// Whether one more request may go beside those that are out, whatever is in it.
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
            // Each answer takes 50 ms, and there is always something to write.
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
