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

/// By how much it grows where growing has failed before.
const CAREFUL: usize = 1_000;

/// How long a size that has failed is not tried again: it may have been a bad moment. When it fails again, twice
/// as long.
const AVOID: Duration = Duration::from_secs(30);

/// No longer than this.
const AVOID_MOST: Duration = Duration::from_secs(600);

/// A size that has failed.
#[derive(Clone, Copy, Debug)]
struct Failed {
    keys: usize,
    at: Instant,
    avoid: Duration,
}

/// How many keys the next request takes.
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

    /// From now on so many are the most.
    pub(crate) fn limit(&mut self, most: usize) {
        self.most = most.max(1);
        self.now = self.now.min(self.most);
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

    /// A request of so many keys was too large, or too slow. Answers whether it is smaller now.
    pub(crate) fn failed(&mut self, keys: usize, now: Instant) -> bool {
        // So much smaller than others, it did not fail for its size.
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
        size.taken(10_000, now); // one that was out beside it
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
