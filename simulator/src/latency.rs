//! How long an answer takes.

use std::time::Duration;

/// A fixed part and an exponential tail, as requests over the internet have it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Every answer takes this long at least.
    pub least: Duration,
    /// The mean of what comes on top.
    pub tail: Duration,
}

impl Latency {
    /// 80 ms and 20 ms more on average.
    pub const LIKELY: Self = Self { least: Duration::from_millis(80), tail: Duration::from_millis(20) };

    /// None at all.
    pub const NONE: Self = Self { least: Duration::ZERO, tail: Duration::ZERO };

    /// One answer's latency; `dice` in 0.0..1.0.
    pub(crate) fn draw(self, dice: f64) -> Duration {
        self.least + self.tail.mul_f64(-(1.0 - dice.clamp(0.0, 0.999_999)).ln())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_the_sum_of_both_parts() {
        let total: Duration = (0..1_000).map(|n| Latency::LIKELY.draw((f64::from(n) + 0.5) / 1_000.0)).sum();
        let mean = total / 1_000;
        assert!((98..=102).contains(&mean.as_millis()), "{mean:?}");
        assert_eq!(Latency::NONE.draw(0.9), Duration::ZERO);
    }
}
