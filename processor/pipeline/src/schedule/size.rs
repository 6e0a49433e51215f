//! Decides how many keys a request has. Pure.
//!
//! The size starts small and doubles while KV accepts full requests. It halves if a request is too
//! large or too slow for KV.
//!
//! Cloudflare allows 10,000 keys, and has answered puts of 5,000 with 524. wrangler sends 1,000.

use std::time::Duration;

use tokio::time::Instant;

/// The size of the first requests.
const FIRST: usize = 1_000;

/// The least size after halving: a request this small does not fail because of its size.
const LEAST: usize = 100;

/// The growth after a size has failed before.
const CAREFUL: usize = 1_000;

/// How long a failed size is avoided, because it may have been a short fault. The time doubles with
/// each further failure.
const AVOID: Duration = Duration::from_secs(30);

/// The longest time that a failed size is avoided.
const AVOID_MOST: Duration = Duration::from_secs(600);

/// A size that has failed.
#[derive(Clone, Copy, Debug)]
struct Failed {
    keys: usize,
    at: Instant,
    avoid: Duration,
}

/// The number of keys of the next request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchSize {
    now: usize,
    most: usize,
    failed: Option<Failed>,
}

impl BatchSize {
    pub(crate) fn new(most: usize) -> Self {
        Self { now: FIRST.min(most).max(1), most: most.max(1), failed: None }
    }

    /// Sets the most keys of a request.
    pub(crate) fn limit(&mut self, most: usize) {
        self.most = most.max(1);
        self.now = self.now.min(self.most);
    }

    /// The number of keys of a full request.
    pub(crate) fn keys(&self) -> usize {
        self.now
    }

    /// Learns that KV accepted a request of `keys` keys.
    pub(crate) fn taken(&mut self, keys: usize, now: Instant) {
        // A request that was not full proves nothing.
        if keys < self.now {
            return;
        }
        if self.failed.is_some_and(|failed| keys >= failed.keys) {
            self.failed = None;
        }
        let wanted = match self.failed {
            None => self.now.saturating_mul(2),
            Some(failed) if now.duration_since(failed.at) < failed.avoid => {
                (self.now + CAREFUL).min(failed.keys.saturating_sub(CAREFUL)).max(self.now)
            }
            Some(_) => self.now + CAREFUL,
        };
        self.now = wanted.min(self.most);
    }

    /// Learns that a request of `keys` keys was too large or too slow. Returns whether the size is
    /// smaller now.
    pub(crate) fn failed(&mut self, keys: usize, now: Instant) -> bool {
        // A request so much smaller than others did not fail because of its size.
        if keys < self.now / 4 || self.now <= LEAST {
            return false;
        }
        let again =
            self.failed.filter(|failed| keys >= failed.keys / 4 * 3 && now >= failed.at + failed.avoid);
        let avoid = again.map_or(AVOID, |failed| (failed.avoid * 2).min(AVOID_MOST));
        self.failed = Some(Failed { keys, at: now, avoid });
        let before = self.now;
        self.now = (keys.min(self.now) / 2).max(LEAST.min(self.most));
        self.now < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_requests_that_are_taken_make_it_grow_to_the_most_and_no_further() {
        let (mut size, now) = (BatchSize::new(10_000), Instant::now());
        let mut sizes = vec![size.keys()];
        for _ in 0..5 {
            size.taken(size.keys() - 1, now);
            size.taken(size.keys(), now);
            sizes.push(size.keys());
        }
        assert_eq!(sizes, [1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
        assert_eq!(BatchSize::new(50).keys(), 50);
    }

    #[test]
    fn what_was_too_large_is_halved_and_tried_again_later_and_later() {
        let (mut size, mut now) = (BatchSize::new(10_000), Instant::now());
        (0..4).for_each(|_| size.taken(size.keys(), now));
        assert!(size.failed(10_000, now));
        assert!(!size.failed(1_000, now), "so small, something else was wrong");
        assert_eq!(size.keys(), 5_000);
        let mut waits = Vec::new();
        for _ in 0..6 {
            let began = now;
            while size.keys() < 10_000 {
                now += Duration::from_secs(1);
                size.taken(size.keys(), now);
                assert!(now - began < Duration::from_secs(700));
            }
            waits.push((now - began).as_secs());
            size.failed(10_000, now);
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 600]);
    }

    #[test]
    fn one_bad_moment_is_soon_forgotten() {
        let (mut size, now) = (BatchSize::new(10_000), Instant::now());
        (0..4).for_each(|_| size.taken(size.keys(), now));
        size.failed(10_000, now);
        size.taken(10_000, now); // A request that was in flight at the same time.
        assert_eq!(size.keys(), 10_000);
    }

    #[test]
    fn it_does_not_shrink_to_nothing_when_kv_is_down() {
        let (mut size, now) = (BatchSize::new(10_000), Instant::now());
        for _ in 0..50 {
            size.failed(size.keys(), now);
        }
        assert_eq!(size.keys(), LEAST);
        (0..20).for_each(|_| size.taken(size.keys(), now + AVOID));
        assert_eq!(size.keys(), 10_000);
    }
}
