//! The latency of answers.

use std::time::Duration;

/// The latency of an answer: a fixed part, an exponential tail, and a part that grows with the request's body.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// The least latency.
    pub least: Duration,
    /// The mean of the exponential tail.
    pub tail: Duration,
    /// The additional latency for each MiB (1,048,576 bytes) of the request's body.
    pub per_mebibyte: Duration,
}

impl Latency {
    /// 80 ms, 20 ms more on average, and 100 ms for each MiB. Assumed, not measured.
    ///
    /// Cloudflare does not document latencies. 100 ms for each MiB is a line of 100 Mbit/s (84 ms) with its
    /// overhead. Cloudflare's own work on a large bulk write can take much longer: clients report a 524 for 5,000
    /// pairs.
    /// <https://github.com/cloudflare/workers-sdk/issues/7021>
    pub const LIKELY: Self = Self {
        least: Duration::from_millis(80),
        tail: Duration::from_millis(20),
        per_mebibyte: Duration::from_millis(100),
    };

    /// No latency.
    pub const NONE: Self = Self { least: Duration::ZERO, tail: Duration::ZERO, per_mebibyte: Duration::ZERO };

    /// Draws the latency of one answer. `dice` is a random number in 0.0..1.0.
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
    fn a_large_body_takes_longer_and_a_small_body_hardly() {
        assert_eq!(Latency::LIKELY.draw(0.0, 5 << 20), Duration::from_millis(580));
        assert!(Latency::LIKELY.draw(0.0, 1_000) < Duration::from_micros(80_100));
    }
}
