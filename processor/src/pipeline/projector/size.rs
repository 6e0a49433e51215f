//! How many keys a request takes: begins small, doubles while KV takes full requests, and is halved when KV finds
//! one too large or too slow. Pure.
//!
//! Cloudflare allows 10,000 keys, and has answered puts of 5,000 with 524; wrangler sends 1,000.

use std::time::Duration;

use tokio::time::Instant;

/// Where it begins.
const FIRST: usize = 1_000;

/// It is not halved below this: what fails so small does not fail for its size.
const LEAST: usize = 100;

/// How many full requests have to succeed before it grows again after a failure, and by how much.
const CAREFUL: usize = 1_000;

/// How long a size that has failed is not tried again.
const AVOID: Duration = Duration::from_secs(600);

/// See the module's head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchSize {
    now: usize,
    most: usize,
    /// The size that failed last, and when.
    failed: Option<(usize, Instant)>,
}

impl BatchSize {
    pub(crate) fn new(most: usize) -> Self {
        Self { now: FIRST.min(most).max(1), most: most.max(1), failed: None }
    }

    /// How many keys go into a request.
    pub(crate) fn keys(&self) -> usize {
        self.now
    }

    /// A request of so many keys was taken.
    pub(crate) fn taken(&mut self, keys: usize, now: Instant) {
        // One that was not full proves nothing.
        if keys < self.now {
            return;
        }
        let avoided = self.failed.filter(|(_, at)| now.duration_since(*at) < AVOID);
        let wanted = match avoided {
            None => self.now.saturating_mul(2),
            Some((size, _)) => (self.now + CAREFUL).min(size.saturating_sub(CAREFUL)).max(self.now),
        };
        self.now = wanted.min(self.most);
    }

    /// A request of so many keys was too large, or too slow. Answers whether it is smaller now.
    pub(crate) fn failed(&mut self, keys: usize, now: Instant) -> bool {
        // Another of the same size failed just before, or it was not its size.
        if keys <= self.now / 2 || self.now <= LEAST {
            return false;
        }
        self.failed = Some((keys, now));
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
    fn what_was_too_large_is_halved_and_not_tried_again_for_a_while() {
        let (mut size, now) = (BatchSize::new(10_000), Instant::now());
        (0..4).for_each(|_| size.taken(size.keys(), now));
        assert!(size.failed(10_000, now));
        assert!(!size.failed(2_000, now), "smaller than it is: something else was wrong");
        assert_eq!(size.keys(), 5_000);
        (0..9).for_each(|_| size.taken(size.keys(), now));
        assert_eq!(size.keys(), 9_000);
        size.taken(9_000, now + AVOID);
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
