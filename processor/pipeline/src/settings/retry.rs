//! Decides when a failed write is retried, and when it is given up. Pure: the caller passes the
//! random number.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::num::NonZeroU32;
use std::time::Duration;

/// The retry policy of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The most attempts of a write, including the first.
    pub max_attempts: NonZeroU32,
    /// The delays before attempts 2, 3, ... The last delay holds for all later attempts too.
    pub delays: Vec<Duration>,
}

impl Default for RetryPolicy {
    /// Five attempts, with delays of 1, 3, 10 and 20 s; a sixth, if allowed, after 30 s.
    fn default() -> Self {
        Self {
            max_attempts: NonZeroU32::MIN.saturating_add(4),
            delays: [1, 3, 10, 20, 30].map(Duration::from_secs).to_vec(),
        }
    }
}

impl RetryPolicy {
    /// The delay after `attempts` failed attempts, or `None` if they are exhausted.
    ///
    /// `dice` in 0.0..1.0 sets a jitter of 0 to 10 %. So replicas that failed together do not retry
    /// together.
    #[must_use]
    pub fn delay_after(&self, attempts: u32, dice: f64) -> Option<Duration> {
        if attempts >= self.max_attempts.get() {
            return None;
        }
        let index = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX);
        let delay = self.delays.get(index).or(self.delays.last()).copied().unwrap_or_default();
        Some(delay.mul_f64(1.0 + dice.clamp(0.0, 1.0) / 10.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_followed_and_its_last_delay_stays() {
        let policy = RetryPolicy { max_attempts: NonZeroU32::new(9).unwrap(), ..RetryPolicy::default() };
        let seconds: Vec<_> = (1..9).map(|n| policy.delay_after(n, 0.0).unwrap().as_secs()).collect();
        assert_eq!(seconds, [1, 3, 10, 20, 30, 30, 30, 30]);
        assert_eq!(policy.delay_after(9, 0.0), None);
    }

    #[test]
    fn five_attempts_are_the_default() {
        assert!(RetryPolicy::default().delay_after(4, 0.0).is_some());
        assert_eq!(RetryPolicy::default().delay_after(5, 0.0), None);
    }

    #[test]
    fn jitter_adds_at_most_a_tenth() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.delay_after(3, 1.0), Some(Duration::from_secs(11)));
        assert_eq!(policy.delay_after(3, 0.5), Some(Duration::from_millis(10_500)));
    }
}
