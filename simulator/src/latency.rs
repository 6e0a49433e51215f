//! How long an answer takes.

use std::time::Duration;

/// A fixed part and an exponential tail, as requests over the internet have it, and a part that grows with
/// what is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Every answer takes this long at least.
    pub least: Duration,
    /// The mean of what comes on top.
    pub tail: Duration,
    /// What each MiB (1,048,576 bytes) of the request's body takes besides.
    pub per_mebibyte: Duration,
}

impl Latency {
    /// 80 ms, 20 ms more on average, and 100 ms a MiB. Assumed, not measured: Cloudflare says nothing of it,
    /// and 100 ms a MiB is a line of 100 Mbit/s (84 ms) with its overhead. Cloudflare's own work on a large
    /// bulk may take much longer: clients have seen 5,000 pairs end in a 524.
    /// <https://github.com/cloudflare/workers-sdk/issues/7021>
    pub const LIKELY: Self = Self {
        least: Duration::from_millis(80),
        tail: Duration::from_millis(20),
        per_mebibyte: Duration::from_millis(100),
    };

    /// None at all.
    pub const NONE: Self = Self { least: Duration::ZERO, tail: Duration::ZERO, per_mebibyte: Duration::ZERO };

    /// One answer's latency; `dice` in 0.0..1.0.
    pub(crate) fn draw(self, dice: f64, body_bytes: usize) -> Duration {
        let mebibytes = body_bytes as f64 / f64::from(1 << 20);
        self.least
            + self.tail.mul_f64(-(1.0 - dice.clamp(0.0, 0.999_999)).ln())
            + self.per_mebibyte.mul_f64(mebibytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_the_sum_of_both_parts() {
        let drawn = |n| Latency::LIKELY.draw((f64::from(n) + 0.5) / 1_000.0, 0);
        let mean = (0..1_000).map(drawn).sum::<Duration>() / 1_000;
        assert!((98..=102).contains(&mean.as_millis()), "{mean:?}");
        assert_eq!(Latency::NONE.draw(0.9, 1 << 30), Duration::ZERO);
    }

    #[test]
    fn a_large_body_takes_longer_and_a_small_one_hardly() {
        assert_eq!(Latency::LIKELY.draw(0.0, 5 << 20), Duration::from_millis(580));
        assert!(Latency::LIKELY.draw(0.0, 1_000) < Duration::from_micros(80_100));
    }
}
